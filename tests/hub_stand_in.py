"""A stand-in for the hub on this machine: what huggingface_hub and datasets ask of it, and its failures."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BLOCK = 2**14

IMPATIENT = """
import contextlib, functools, io, json, sys, time
wait = time.sleep
time.sleep = lambda seconds: wait(min(seconds, 0.01))
from huggingface_hub import constants, hf_file_system
constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = 1.0
hf_file_system.http_backoff = functools.partial(hf_file_system.http_backoff, max_retries=1)
"""
COMMANDS = """
from sinkscope.cli.main import run
outcomes = []
for call in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(call)
    outcomes.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(outcomes))
"""


@dataclass(frozen=True)
class Outcome:
    """Exit code and outputs of a command."""

    code: int
    out: str
    err: str

    def refused(self, *fragments: str) -> None:
        """It ended with one line, which holds the fragments, and nothing else."""
        assert self.code == 2, (self.code, self.err)
        (line,) = self.err.splitlines()
        assert line.startswith("sinkscope: error: "), line
        assert self.out == ""
        for fragment in fragments:
            assert fragment in line, line


@dataclass
class Repository:
    """A folder that the hub serves: `commit` is what its branch main and its tags stand for.

    Attributes
    ----------
    closed : str
        Why nobody may read it: "gated", or "" for one that is open.
    stops_after : int or None
        The server goes away once it has sent so many bytes of the repository's files.
    stalls : bool
        It takes requests for files and does not answer them.
    """

    folder: Path
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    tags: tuple[str, ...] = ()
    closed: str = ""
    stops_after: int | None = None
    stalls: bool = False

    def knows(self, revision: str) -> bool:
        return revision in ("main", self.commit, *self.tags)


@dataclass
class Hub:
    """The running stand-in.

    Attributes
    ----------
    repositories : dict
        By kind and name, such as "datasets/some/corpus".
    url : str
    sent : Counter
        Bytes of files that each of them has sent.
    asked : list of (repository, file, start, stop)
        What was asked for of its files.
    noise : str
        What the last program wrote to stderr beside the outputs of its commands, such as notes of libraries.
    """

    repositories: dict[str, Repository]
    url: str = ""
    sent: Counter[str] = field(default_factory=Counter)
    asked: list[tuple[str, str, int, int]] = field(default_factory=list)
    noise: str = ""

    def covered(self, repository: str) -> int:
        """Bytes of its files that were asked for at all, however often."""
        found, end = 0, ("", 0)
        for place, name, start, stop in sorted(self.asked):
            if place == repository:
                first = max(start, end[1]) if name == end[0] else start
                found += max(0, stop - first)
                end = (name, max(stop, first))
        return found

    def commands(self, home: Path, *calls: list[object]) -> list[Outcome]:
        """What `sinkscope` makes of some arguments each, one after another in one process, with `home` for all caches.

        The process does not wait long for a hub that does not answer.
        """
        given = [[str(argument) for argument in call] for call in calls]
        return [Outcome(*entry) for entry in self.python(home, COMMANDS, given)]

    def python(self, home: Path, code: str, given: object) -> Any:
        """What a program prints as JSON that reads `given` as JSON, with `home` for all caches."""
        done = subprocess.run(
            [sys.executable, "-c", IMPATIENT + code],
            input=json.dumps(given),
            env=self._environment(home),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.noise = done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def _environment(self, home: Path) -> dict[str, str]:
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return kept | own


@contextmanager
def serve_hub(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Serve the repositories until the block ends."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

    def _answer(self, body: str = "") -> None:
        path = urllib.parse.unquote(self.path.split("?")[0]).strip("/")
        parts = path.split("/")
        api = parts[0] == "api"
        kind = parts[1] if api else "datasets" if parts[0] == "datasets" else "models"
        rest = parts[2:] if api else parts[1:] if parts[0] == "datasets" else parts
        name, rest = "/".join(rest[:2]), rest[2:]
        self.place = f"{kind}/{name}"
        repository = self.hub.repositories.get(self.place)
        if repository is None:
            # The hub does not tell those who may not know whether there is a private repository.
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if api and not rest:
            return self._json(self._facts(name, repository))
        if len(rest) < 2 or rest[0] not in ("revision", "tree", "paths-info", "resolve"):
            return self._refuse(404, "EntryNotFound", "Not found")
        what, revision, inner = rest[0], rest[1], "/".join(rest[2:])
        if not repository.knows(revision):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if what == "revision":
            return self._json(self._facts(name, repository))
        if repository.closed and what == "resolve":
            return self._refuse(401, "GatedRepo", f"Access to {name} is restricted")
        if what == "tree":
            return self._tree(repository, inner)
        if what == "paths-info":
            form = urllib.parse.parse_qs(body)
            paths = json.loads(body)["paths"] if body.startswith("{") else form.get("paths", [])
            there = [repository.folder / entry for entry in paths if (repository.folder / entry).exists()]
            return self._json([_entry(repository, path) for path in there])
        return self._file(repository, inner)

    def _facts(self, name: str, repository: Repository) -> dict[str, Any]:
        files = sorted(path for path in repository.folder.rglob("*") if path.is_file())
        siblings = [{"rfilename": path.relative_to(repository.folder).as_posix()} for path in files]
        return {"id": name, "sha": repository.commit, "siblings": siblings, "gated": repository.closed or False}

    def _tree(self, repository: Repository, inner: str) -> None:
        folder = repository.folder / inner
        if not folder.is_dir():
            return self._refuse(404, "EntryNotFound", "Not found")
        found = folder.rglob("*") if "recursive=true" in self.path.lower() else folder.iterdir()
        return self._json([_entry(repository, path) for path in sorted(found)])

    def _file(self, repository: Repository, inner: str) -> None:
        path = repository.folder / inner
        if not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        if repository.stalls:
            self.hub.asked.append((self.place, inner, 0, 0))
            time.sleep(30)
        size = path.stat().st_size
        status, start, stop = 200, 0, size
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            status, start, stop = 206, int(first), min(int(last) + 1 if last else size, size)
        self.send_response(status)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{_oid(path)}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if self.command != "HEAD":
            self.hub.asked.append((self.place, inner, start, stop))
            self._send_blocks(repository, path, start, stop)

    def _send_blocks(self, repository: Repository, path: Path, start: int, stop: int) -> None:
        with path.open("rb") as file, contextlib.suppress(OSError):  # Whoever asked has read enough.
            file.seek(start)
            for place in range(start, stop, BLOCK):
                if repository.stops_after is not None and self.hub.sent[self.place] >= repository.stops_after:
                    self.close_connection = True
                    return
                block = file.read(min(BLOCK, stop - place))
                self.wfile.write(block)
                self.hub.sent[self.place] += len(block)
            return
        self.close_connection = True

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(path: Path) -> str:
    """What stands for the content, which is too much to read for every request."""
    return sha1(f"{path} {path.stat().st_size}".encode()).hexdigest()


def _entry(repository: Repository, path: Path) -> dict[str, Any]:
    name = path.relative_to(repository.folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "1" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": _oid(path), "size": path.stat().st_size}


def save_tiny_llama(folder: Path, vocabulary: int = 259) -> Path:
    """A random Llama of 2 layers and a tokenizer over bytes; with a larger vocabulary, most of it is the embedding."""
    torch.manual_seed(0)
    ids = {
        name: number
        for number, name in enumerate(["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, bos_token_id=0, eos_token_id=1, **shape)).save_pretrained(
        folder
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder
