"""A lock that keeps a second writer from a run file."""

import contextlib
import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from sinkscope.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows has no flock: there, the lock does not protect.
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class LastWriter:
    """The process that writes a run file, or died while it did.

    Attributes
    ----------
    process : int
        Its number.
    began : float
        When it began to write, in seconds since 1970.
    samples_done : int
        The samples that the file held then.
    host : str
        Its machine.
    alive : bool or None
        None where that cannot be known, on another machine.
    """

    process: int
    began: float
    samples_done: int
    host: str
    alive: bool | None


def last_writer(path: Path) -> LastWriter | None:
    """Who writes the run file at `path`, or was killed while it did; None where the last one has closed it.

    Reads the lock file only: to try the lock itself could keep a writer from taking it.
    """
    try:
        process, began, samples_done, host = WriterLock.place(path).read_text(encoding="ascii").split()
        owner = LastWriter(int(process), float(began), int(samples_done), host, None)
    except (OSError, ValueError):
        return None
    if host != socket.gethostname() or fcntl is None:  # On Windows, the question below would end the process.
        return owner
    try:
        os.kill(owner.process, 0)
    except ProcessLookupError:
        return replace(owner, alive=False)
    except (OSError, OverflowError):  # It is there and belongs to somebody else.
        pass
    return replace(owner, alive=True)


def _owner(descriptor: int) -> str:
    """Whose a lock is that was just seen to be held, for a message; it says so a moment after it was taken."""
    for _ in range(50):
        if told := os.pread(descriptor, 32, 0).decode("ascii", "replace").split():
            return f" (process {told[0]})"
        time.sleep(0.01)
    return ""


class WriterLock:
    """Holds ``RUN.h5.lock`` with flock while a writer is open.

    The kernel releases the lock when its process dies, however it dies, so a stale lock file never blocks.

    Raises
    ------
    StoreError
        If another writer holds the lock, or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.place(path)
        self._descriptor: int | None = None
        while self._descriptor is None:
            self._descriptor = self._acquire(path)

    @staticmethod
    def place(path: Path) -> Path:
        """The lock file of the run file `path`."""
        return path.with_name(path.name + ".lock")

    def _acquire(self, path: Path) -> int | None:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}; choose another place with --run") from error
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise StoreError(
                f"{path} is being written by another run{owner}; wait for it or choose another --run"
            ) from error
        # The file may have been unlinked by its last owner between open and flock: then this lock guards nothing.
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:
            os.close(descriptor)
            return None
        self._note(descriptor, str(os.getpid()))
        return descriptor

    def tell(self, samples_done: int) -> None:
        """Write into the lock file, for `last_writer`, since when and where this process writes, and from where on."""
        if self._descriptor is not None:
            told = f"{os.getpid()} {time.time():.3f} {samples_done} {socket.gethostname()}"
            self._note(self._descriptor, told)

    @staticmethod
    def _note(descriptor: int, text: str) -> None:
        """Replace what the lock file tells; on a full disk it tells less, and the lock holds all the same."""
        written = 0
        with contextlib.suppress(OSError):
            # Before what was there is cut off, for those who are refused meanwhile and read whose the lock is.
            written = os.pwrite(descriptor, text.encode("ascii", "replace") + b"\n", 0)
        os.ftruncate(descriptor, written)

    def release(self) -> None:
        """Remove the lock file and release the lock; does nothing the second time."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
