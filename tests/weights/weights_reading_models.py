"""Tiny models on disk, and a server for them. Nothing is downloaded."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from sinkscope.weights.checkpoint import Checkpoint, open_checkpoint

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "phi3": {},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {"n_head": 4, "n_layer": 2},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "granitemoe": {"num_local_experts": 4},
    "jamba": {"num_experts": 4, "attn_layer_offset": 0, "attn_layer_period": 2, "use_mamba_kernels": False},
    "llava": {"text_config": {"model_type": "llama", **SHAPE}, "vision_config": VISION, "image_token_id": 3},
}


def make_model(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A model of a family with random weights."""
    torch.manual_seed(seed)
    own = {**FAMILIES[family], **changes}
    kind = own.pop("model_type", family)
    settings = own if "text_config" in own else {**SHAPE, **own}
    config = AutoConfig.for_model(kind, **settings)
    auto = AutoModelForImageTextToText if "vision_config" in own else AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norm weights are all ones otherwise, and would hide a mix-up.
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model.eval()


def save_model(model: nn.Module, folder: Path, **options: Any) -> Path:
    """Save as safetensors, in the layout in which checkpoints of the family are kept."""
    model.save_pretrained(folder, **options)
    return folder


def assert_equal_parameters(checkpoint: Checkpoint, model: nn.Module, atol: float = 0.0) -> int:
    """Compare every parameter with what is read for it; return how many parts were read."""
    parts = 0
    for name, parameter in model.named_parameters():
        found = checkpoint.find(name)
        assert [stored.parameter for stored in found] == [name] * len(found)
        for number, stored in enumerate(found):
            tensor = checkpoint.read(stored)
            expected = parameter if stored.part is None else parameter[stored.part]
            assert stored.part in (None, number)
            assert tuple(tensor.shape) == stored.shape == tuple(expected.shape)
            torch.testing.assert_close(tensor.float(), expected.detach().float(), atol=atol, rtol=0.0, msg=name)
        if found[0].part is not None:
            assert len(found) == len(parameter)
            parts += len(found)
    return parts


def read_whole(folder: Path, parameter: str, **options: Any) -> Tensor:
    """One parameter, its parts put together."""
    with open_checkpoint(folder, **options) as checkpoint:
        tensors = [checkpoint.read(stored) for stored in checkpoint.find(parameter)]
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors)


def change_tensors(folder: Path, change: Any) -> None:
    """Rewrite the only safetensors file of a folder: `change` maps a dict of tensors to another."""
    path = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(path)).items()}, path, {"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    """Set values of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class Served:
    """A folder behind a local server, with what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.sent: dict[str, int] = {}
        self.ranges: list[tuple[str, int, int]] = []


@contextmanager
def serve(folder: Path, repository: str | None = None, ranges: bool = True, listing: bool = False) -> Iterator[Served]:
    """Serve a folder with byte ranges; with `repository`, as the hub serves a repository of that name."""
    served = Served(folder)
    handler = type(
        "Handler", (_Handler,), {"served": served, "repository": repository, "ranges": ranges, "listing": listing}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Served
    repository: str | None
    ranges: bool
    listing: bool
    protocol_version = "HTTP/1.1"
    commit = "0" * 40

    def log_message(self, *arguments: Any) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        names = [path.name for path in self.served.folder.iterdir() if f"{path.name}" in asked]
        self._json([self._entry(name) for name in names])

    def _entry(self, name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": (self.served.folder / name).stat().st_size, "oid": "1" * 40}

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        if self.repository is not None:
            api = f"/api/models/{self.repository}"
            names = sorted(file.name for file in self.served.folder.iterdir())
            if path.startswith(f"{api}/tree/"):
                return self._json([self._entry(name) for name in names])
            if path == api or path.startswith(f"{api}/revision/"):
                siblings = [{"rfilename": name} for name in names]
                return self._json({"id": self.repository, "sha": self.commit, "siblings": siblings})
            if not path.startswith(f"/{self.repository}/resolve/"):
                return self._missing("RepoNotFound")
        return self._file(path.rsplit("/", 1)[1], body)

    def _file(self, name: str, body: bool) -> None:
        path = self.served.folder / name
        if not name and self.listing:
            return self._page()
        if not name or not path.is_file():
            return self._missing("EntryNotFound")
        data = path.read_bytes()
        status, start, stop = 200, 0, len(data)
        asked = self.headers.get("Range")
        if asked and self.ranges and body:
            first, last = asked.removeprefix("bytes=").split("-")
            status, start, stop = 206, int(first), min(int(last) + 1 if last else len(data), len(data))
            self.served.ranges.append((name, start, stop))
        self.send_response(status)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", '"' + "2" * 40 + '"')
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.served.sent[name] = self.served.sent.get(name, 0) + stop - start
            self.wfile.write(data[start:stop])
        return None

    def _page(self) -> None:
        links = [f'<li><a href="{path.name}">{path.name}</a></li>' for path in self.served.folder.iterdir()]
        data = "".join(links).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
