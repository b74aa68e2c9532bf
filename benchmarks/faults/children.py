"""The command line in processes that are forked from this one, where all modules are imported: they begin at once."""

import importlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sinkscope.cli.main import cli, main

WARM = (
    "h5py",
    "hdf5plugin",
    "sinkscope.calibration",
    "sinkscope.capture.distributed",
    "sinkscope.cli.merge",
    "sinkscope.cli.profile",
    "sinkscope.discovery",
    "sinkscope.pipeline",
    "sinkscope.report",
    "torch.distributed",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)
STOPPING = (signal.SIGINT, signal.SIGTERM)
HANG_SECONDS = 180

Prepare = Callable[[], None]
"""Called in the child before the command."""


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes
    ----------
    code : int
        Its exit code; the negative number of the signal that ended it.
    out, err : str
        What it printed.
    seconds : float
        How long it took.
    """

    code: int
    out: str
    err: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """Its lines of error."""
        return [line for line in self.err.splitlines() if line.startswith("sinkscope: error: ")]

    @property
    def message(self) -> str:
        return self.errors[-1] if self.errors else ""

    def unclear(self, code: int, *fragments: str) -> list[str]:
        """What is wrong with it as a failure that ends with an exit code and one line with all of the fragments."""
        problems = [] if self.code == code else [f"exit code {self.code}, not {code}: {self.err[-300:]!r}"]
        if len(self.errors) != 1 or self.err.splitlines()[-1] != self.message:
            problems.append(f"not one last line of error: {self.err[-600:]!r}")
        if any(word in self.err for word in ("Traceback", "Exception ignored", "unexpected ")):
            problems.append(f"a traceback or an unexpected error: {self.err[-600:]!r}")
        missing = [fragment for fragment in fragments if fragment not in self.message]
        return problems + ([f"{self.message!r} does not say {missing}"] if missing else [])


class Child:
    """A command at work in `folder`; what it prints goes to files beside the folder.

    Parameters
    ----------
    arguments : sequence of str
        After the word `sinkscope`.
    folder : Path
        Where it works.
    prepare : callable, optional
        Called in the child before the command.
    environment : mapping, optional
        More environment variables.
    name : str
        Tells the files of one child from those of others that work in the same folder.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        prepare: Prepare | None = None,
        environment: Mapping[str, str] | None = None,
        name: str = "child",
    ) -> None:
        self._outputs = [folder.parent / f"{folder.name}.{name}.{stream}" for stream in ("out", "err")]
        for path in self._outputs:  # A child may be killed before it opens them.
            path.touch()
        self._began = time.monotonic()
        # A signal that comes before the command has begun waits for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _serve(self._outputs, arguments, folder, prepare, environment or {})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._status: int | None = None

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.running():
            os.kill(self.pid, number)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is None

    def ended(self) -> Ending:
        """Wait for its end; one that hangs is killed."""
        while self.running():
            if time.monotonic() - self._began > HANG_SECONDS:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        seconds = time.monotonic() - self._began
        assert self._status is not None
        out, err = (path.read_bytes().decode("utf-8", "backslashreplace") for path in self._outputs)
        return Ending(os.waitstatus_to_exitcode(self._status), out, err, seconds)


def command(arguments: Sequence[str], folder: Path, prepare: Prepare | None = None, name: str = "child") -> Ending:
    """Run a command to its end."""
    return Child(arguments, folder, prepare, name=name).ended()


def warm() -> None:
    """Import what the commands need, so that their children need not."""
    torch.set_num_threads(1)
    os.environ.setdefault("TQDM_DISABLE", "1")
    for module in WARM:
        importlib.import_module(module)


def console_streams() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Standard output and error as a console script has them, on the descriptors that libraries in C write to."""
    return (
        io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "strict"),
        io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True),
    )


def _let_in_by_the_command() -> None:
    """Let signals come from the moment on at which the command handles errors."""
    begin = cli.main

    def let_in(*arguments: Any, **options: Any) -> Any:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        return begin(*arguments, **options)

    cli.main = let_in  # type: ignore[method-assign]


def _serve(
    outputs: Sequence[Path],
    arguments: Sequence[str],
    folder: Path,
    prepare: Prepare | None,
    environment: Mapping[str, str],
) -> None:
    """The child: the command's `main`, as in a process that was just started. Never returns."""
    code = 99
    try:
        # PyTorch makes its thread pool anew after a fork, and fails where several threads are the first to ask for it.
        torch.set_num_threads(1)
        for number, path in enumerate(outputs, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = console_streams()
        os.chdir(folder)
        os.environ.update(environment)
        sys.argv = ["sinkscope", *arguments]
        if prepare is not None:
            prepare()
        # Shells may have started this process with them ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _let_in_by_the_command()
        main()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 0
        sys.stdout.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)
