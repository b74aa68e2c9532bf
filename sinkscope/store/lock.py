"""A lock that keeps a second writer from a run file."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from sinkscope.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows has no flock: there, the lock does not protect.
    fcntl = None  # type: ignore[assignment]


class WriterLock:
    """Holds ``RUN.h5.lock`` with flock while a writer is open.

    The kernel releases the lock when its process dies, however it dies, so a stale lock file never blocks.

    Raises
    ------
    StoreError
        If another writer holds the lock, or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        self._descriptor: int | None = None
        while self._descriptor is None:
            self._descriptor = self._acquire(path)

    def _acquire(self, path: Path) -> int | None:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}; choose another place with --run") from error
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreError(
                f"{path} is being written by another run (process {owner}); wait for it or choose another --run"
            ) from error
        # The file may have been unlinked by its last owner between open and flock: then this lock guards nothing.
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)
        return descriptor

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
