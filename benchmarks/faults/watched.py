"""Work in a child process that is watched: whether it crashes or hangs, and what it prints, writes, starts and needs.

The child is forked warm and takes one piece of work after the other. After a crash or a hang the next one takes over.
"""

import contextlib
import faulthandler
import hashlib
import importlib
import multiprocessing
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.faults.children import console_streams
from benchmarks.process_memory import memory, reset_peak
from sinkscope.cli.output import note
from sinkscope.errors import SinkscopeError

HANG_SECONDS = 60
WORKS_PER_CHILD = 500
MORE_ADDRESSES = 6 * 2**30
"""A child may map so many bytes more than it has: enough for any honest work here, and less than the machine has."""

WARM = (
    "h5py",
    "hdf5plugin",
    "pyarrow.parquet",
    "sinkscope.answering",
    "sinkscope.calibration",
    "sinkscope.capture.distributed",
    *(f"sinkscope.cli.{name}" for name in ("apply", "discover", "info", "inspect", "merge", "profile", "registry")),
    "sinkscope.discovery",
    "sinkscope.redistribution.applicator",
    "sinkscope.report",
    "sinkscope.store.merge",
    "sinkscope.weights",
)
"""Imported before the first child is forked, so that what happens there is the work's own doing."""

STARTING = frozenset(
    f"{module}.{name}"
    for module, names in {
        "os": ("system", "exec", "posix_spawn", "spawn", "fork", "forkpty", "startfile"),
        "socket": ("connect", "getaddrinfo", "gethostbyname", "sendto", "bind"),
        "subprocess": ("Popen",),
        "pickle": ("find_class",),
        "ctypes": ("dlopen",),
        "webbrowser": ("open",),
    }.items()
    for name in names
)
"""Audit events of work that starts a program, reaches for the network, or runs what it reads."""
CHANGING = frozenset(f"os.{name}" for name in ("remove", "rename", "mkdir", "rmdir", "link", "symlink", "truncate"))


class Content(Protocol):
    """What is written as a file, or in the place of one."""

    def write(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Work:
    """One piece of work.

    Attributes
    ----------
    call : tuple of str
        The arguments of the command `sinkscope`; or the name of one of the child's functions and its arguments.
    files : dict of str to bytes or Content
        What the folder holds in which it is done.
    """

    call: tuple[str, ...]
    files: dict[str, "bytes | Content"] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Ending:
    """How a piece of work ended.

    Attributes
    ----------
    code : int or None
        The exit code; None where the process died or hung, and `death` says how.
    out, err : str
        What it printed.
    memory : int
        Bytes by which its memory grew at most.
    strange : tuple of str
        What it started, ran, or touched outside its folder.
    changed : tuple of str
        Names in its folder that are new, gone or have other contents.
    """

    code: int | None
    out: str = ""
    err: str = ""
    memory: int = 0
    strange: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    death: str | None = None


class Accepted(SinkscopeError):
    """Raised where a model would be loaded: all inputs that come before it were taken."""

    exit_code = 99


class Watched:
    """The child; a context manager.

    Parameters
    ----------
    folder : Path
        For its scratch files.
    functions : dict of str to callable, optional
        What it can be asked to call besides the command line; a `SinkscopeError` of theirs ends as the command's.
    prepare : callable, optional
        Called in every new child. By default loading a model raises `Accepted` there.
    """

    def __init__(
        self,
        folder: Path,
        functions: dict[str, Callable[..., Any]] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._folder, self._functions = folder, functions or {}
        self._prepare = prepare or stop_at_models
        self._process: Any = None
        self._done = 0
        for module in WARM:
            importlib.import_module(module)

    def run(self, work: Work) -> Ending:
        """Do one piece of work."""
        if self._process is None or self._done >= WORKS_PER_CHILD:
            self._start()
        self._done += 1
        self._pipe.send(work)
        try:
            if self._pipe.poll(HANG_SECONDS):
                ending: Ending | Exception = self._pipe.recv()
                if isinstance(ending, Exception):
                    raise ending  # The files could not be made, which is no finding.
                return ending
            death = f"hung for {HANG_SECONDS} s"
            os.kill(self._process.pid, signal.SIGABRT)  # Has it tell where.
            self._process.join(5)
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            death = f"died of {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"
        said = (self._scratch / "stderr").read_text(errors="backslashreplace")
        self._stop()
        return Ending(None, err=said, death=death)

    @property
    def folder(self) -> Path:
        """Where the last piece of work was done."""
        return self._scratch / "here"

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        self._stop()
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._scratch = Path(tempfile.mkdtemp(dir=self._folder))
        arguments = (theirs, self._scratch, self._functions, self._prepare)
        sys.stdout.flush()
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._done = 0

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._process = None


def stop_at_models() -> None:
    """In this process, loading a model raises `Accepted`."""

    def load(*_: object, **__: object) -> None:
        raise Accepted("the inputs were accepted")

    module = types.ModuleType("sinkscope.pipeline")
    module.__dict__.update(load=load, resolve=load, measure_model=load, profile_model=load)
    sys.modules["sinkscope.pipeline"] = module


def _serve(pipe: Any, scratch: Path, functions: dict[str, Callable[..., Any]], prepare: Callable[[], None]) -> None:
    """The child: takes work until its parent kills it or goes away."""
    from sinkscope.cli.main import run

    prepare()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MORE_ADDRESSES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder, watch = scratch / "here", _Audit(scratch)
    os.environ["SINKSCOPE_PROFILES"] = str(folder / "profiles")
    temporary = scratch / "temporary"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    outputs = [scratch / "stdout", scratch / "stderr"]
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    faulthandler.enable(file=2)
    with contextlib.suppress(EOFError):
        while True:
            work: Work = pipe.recv()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            os.chdir(folder)
            try:
                write_files(work.files, folder)
            except Exception as error:
                pipe.send(error)
                continue
            before = _listing(folder)
            for path in outputs:
                os.truncate(path, 0)
            reset_peak()
            at_first = memory("VmRSS")
            with _fresh_streams(), watch:
                code = _called(functions[work.call[0]], work.call[1:]) if work.call[0] in functions else run(work.call)
            grown = memory("VmHWM") - at_first
            after = _listing(folder)
            changed = tuple(sorted(name for name in before.keys() | after if before.get(name) != after.get(name)))
            out, err = (path.read_bytes().decode("utf-8", "backslashreplace") for path in outputs)
            left = [f"left {name} behind" for name in os.listdir(temporary)]
            pipe.send(Ending(code, out, err, grown, (*watch.seen, *left), changed))


def write_files(files: dict[str, bytes | Content], folder: Path) -> None:
    """Make the files of a piece of work in a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.write(path)


def _called(function: Callable[..., Any], arguments: tuple[str, ...]) -> int:
    """Call a function, with its errors told as the command line tells them, those that are unexpected, too."""
    try:
        function(*arguments)
    except SinkscopeError as error:
        note(f"sinkscope: error: {error}")
        return error.exit_code
    except Exception as error:
        note(f"sinkscope: error: unexpected {type(error).__name__}: {error}")
        return 1
    return 0


@contextlib.contextmanager
def _fresh_streams() -> Iterator[None]:
    """`sys.stdout` and `sys.stderr` as a console script has them, on the descriptors that libraries in C write to."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = console_streams()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before


class _Audit:
    """Notes what happens inside its context that no reading of a file needs."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._on = str(scratch), False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def __enter__(self) -> None:
        self.seen.clear()
        self._on = True

    def __exit__(self, *_: object) -> None:
        self._on = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in STARTING:
            self.seen.append(f"{event} {arguments[:2]!r}"[:200])
        elif event == "exec" and getattr(arguments[0], "co_filename", "").startswith(self._scratch):
            self.seen.append(f"ran {arguments[0].co_filename}")
        elif event in CHANGING or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING):
            place = arguments[0]
            if isinstance(place, str | bytes | os.PathLike):
                place = os.path.abspath(os.fsdecode(place))
                if not place.startswith(self._scratch) and place != os.devnull:
                    self.seen.append(f"{event} {place}")


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _listing(folder: Path) -> dict[str, Any]:
    """Every name below a folder with what is there; nothing is followed or waited for."""
    found: dict[str, Any] = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            mode = path.lstat().st_mode
            content: Any = mode
            if stat.S_ISREG(mode):
                content = hashlib.sha1(path.read_bytes()).digest()
            elif stat.S_ISLNK(mode):
                content = os.readlink(path)
            found[str(path.relative_to(folder))] = content
    return found
