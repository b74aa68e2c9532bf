"""Disks that are full or fail: what to tell of them, and waiting for them."""

import errno
import os
from pathlib import Path
from types import TracebackType

from sinkscope.errors import DiskError


def wait_for_disk(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class writing:
    """Turns a failing disk inside the block into a `DiskError`; `again` is what to do once it works."""

    def __init__(self, path: Path, again: str = "go on with --resume") -> None:
        self.path = path
        self.again = again

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (OSError, RuntimeError)):
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            raise DiskError(f"cannot write {self.path} ({reason}); {self._remedy(error)}") from error

    def _remedy(self, error: OSError | RuntimeError) -> str:
        if isinstance(error, FileNotFoundError):
            return "it was taken away; start again with another --run"
        number = getattr(error, "errno", None)
        if number == errno.ENAMETOOLONG:
            return "choose a shorter name with --run"
        if number in (errno.EROFS, errno.EACCES, errno.EPERM):
            return f"make its folder writable, then {self.again}"
        if number == errno.EFBIG:
            return f"allow larger files (`ulimit -f`), then {self.again}"
        return f"free space there, then {self.again}"
