"""New HDF5 files on disks that may be full."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, to be written in the block.

    HDF5 cannot close a file that it cannot write: it tries again wherever the process goes on, prints what failed, and
    may crash it. So it is told that all is well, and the disk's error is raised once the file is closed.

    Raises
    ------
    OSError
        At the end of the block, if the disk is full or fails; also in place of an error that came of it.
    """
    with path.open("w+b", buffering=0) as opened:
        target = _Unfailing(opened)
        try:
            with h5py.File(target, "w") as file:
                yield file
        finally:
            if target.error is not None:
                raise target.error


class _Unfailing:
    """A binary file whose writes succeed; `error` holds the first error there was."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        count = self._file.readinto(view) or 0
        # Where a write has failed, the file may be shorter than HDF5 believes.
        view[count:] = bytes(len(view) - count)
        return len(view)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size) or b""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        try:
            while self.error is None and left:
                left = left[self._file.write(left) :]
        except BaseException as error:  # An interrupt, too: raised inside of HDF5 it would not reach its caller.
            self.error = error
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except BaseException as error:
            self.error = self.error or error
            return size or 0

    def flush(self) -> None:
        """Nothing is held back."""
