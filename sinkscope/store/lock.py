"""A lock that keeps a second writer from a run file."""

import contextlib
import errno
import os
import socket
import stat
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

NOTE_BYTES = 512
"""A lock file tells no more than that."""

LATEST = 2**37
"""Seconds since 1970 after which nothing has begun: some thousand years, which dates can still tell."""

TRIES, PAUSE = 5, 0.01
"""How often, and after how many seconds, a lock is asked for: `last_writer` may hold it for a moment."""


UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system without locks says to them: there, too, the lock does not protect."""


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
        None where that cannot be known, on another machine or where there are no locks.
    """

    process: int
    began: float
    samples_done: int
    host: str
    alive: bool | None


def real_place(path: Path) -> Path:
    """The file that a path leads to, through all links; also where there is none yet."""
    return Path(os.path.realpath(path))


def unfinished_place(path: Path, ending: str) -> Path:
    """Where the file that `path` leads to is made before it takes its place: hidden, beside it."""
    place = real_place(path)
    return place.with_name(f".{place.name}.{ending}")


def last_writer(path: Path) -> LastWriter | None:
    """Who writes the run file at `path`, or was killed while it did; None where the last one has closed it.

    Whether it is alive is asked of its lock, which ends with it: its number may belong to another process by now.
    """
    try:
        descriptor = os.open(WriterLock.place(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        owner = _noted(os.read(descriptor, NOTE_BYTES)) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        return None if owner is None else replace(owner, alive=_alive(descriptor, owner.host))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _noted(note: bytes) -> LastWriter | None:
    """What a lock file tells, or None where that is nothing or nonsense."""
    try:
        process, began, samples_done, host = note.decode("ascii").split()
        owner = LastWriter(int(process), float(began), int(samples_done), host, None)
    except ValueError:
        return None
    possible = owner.process > 0 and 0 <= owner.began < LATEST and owner.samples_done >= 0 and host.isprintable()
    return owner if possible else None


def _alive(descriptor: int, host: str) -> bool | None:
    """Whether the lock is held. One of another machine, which may not be seen here, may be held all the same."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False if host == socket.gethostname() else None


def _owner(descriptor: int) -> str:
    """Whose a lock is that was just seen to be held, for a message; it says so a moment after it was taken."""
    for _ in range(50):
        told = os.pread(descriptor, 32, 0).decode("ascii", "replace").split()
        if told:
            return f" (process {told[0]})" if told[0].isdigit() else ""
        time.sleep(0.01)
    return ""


class WriterLock:
    """Holds ``RUN.h5.lock`` with flock while a writer is open, beside the file that `path` leads to.

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
        place = real_place(path)
        return place.with_name(place.name + ".lock")

    def _acquire(self, path: Path) -> int | None:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}; choose another place with --run") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise StoreError(f"cannot write {path}: {self.path} is no file that could lock it; remove that")
            if not _locked(descriptor):
                raise StoreError(
                    f"{path} is being written by another run{_owner(descriptor)}; wait for it or choose another --run"
                )
        except BaseException:
            os.close(descriptor)
            raise
        # The file may have been unlinked by its last owner between open and flock: then this lock guards nothing.
        if not self._is_in_place(descriptor):
            os.close(descriptor)
            return None
        self._note(descriptor, str(os.getpid()))
        return descriptor

    def _is_in_place(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return False

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
            if self._is_in_place(self._descriptor):  # Else somebody has removed it, and it is another writer's.
                self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _locked(descriptor: int) -> bool:
    """Take the lock of an open file, unless another process has it."""
    if fcntl is None:
        return True
    for left in reversed(range(TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if left:
                time.sleep(PAUSE)
        except OSError as error:
            if error.errno not in UNKNOWN:
                raise
            return True
        else:
            return True
    return False
