"""Byte ranges of files, wherever the files are: on this disk, or behind any file system that fsspec speaks for.

A reader asks for the bytes that it wants and gets no others, so the memory is that of the tensor, and a hub sends
nothing that is not looked at.
"""

import os
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkscope.errors import InputError

# A system call of this size lets other threads and signals come in between.
LOCAL_STEP = 8 * 2**20
# Far fewer requests than a disk would get; large enough that their start does not count.
REMOTE_STEP = 32 * 2**20


class Memory(threading.local):
    """Memory for what a thread reads, used again and again: fresh pages cost the system as much as the reading."""

    def __init__(self) -> None:
        self._bytes, self._used = np.empty(0, dtype=np.uint8), 0

    def clear(self) -> None:
        """What was taken is given up, and will be written over."""
        self._used = 0

    def take(self, count: int) -> NDArray[np.uint8]:
        """So many bytes, uint8 [count]."""
        begin = self._used
        if begin + count > len(self._bytes):
            fresh = np.empty(count, dtype=np.uint8)
            if begin == 0:
                self._bytes, self._used = fresh, count
            return fresh
        # Entries of any dtype lie at multiples of their size.
        self._used = -(-(begin + count) // 64) * 64
        return self._bytes[begin : begin + count]


class ByteRanges(ABC):
    """A file that gives any range of its bytes.

    Attributes
    ----------
    label : str
        What messages call it.
    size : int
        Bytes.
    bytes_read : int
        How many were asked for so far.
    """

    label: str
    size: int

    def __init__(self) -> None:
        self.bytes_read = 0
        self._lock = threading.Lock()

    def read(self, offset: int, count: int, memory: Memory | None = None) -> NDArray[np.uint8]:
        """The bytes [offset, offset + count), in `memory` where it is given.

        Raises
        ------
        InputError
            If the file ends before, or cannot be read.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise InputError(f"{self.label} is truncated or damaged: it ends before the data that its header names")
        buffer = np.empty(count, dtype=np.uint8) if memory is None else memory.take(count)
        try:
            self._fill(buffer.data, offset)
        except InputError:
            raise
        except Exception as error:  # Every remote file system raises its own kinds.
            raise InputError(f"cannot read {self.label}: {first_line(error)}") from error
        with self._lock:
            self.bytes_read += count
        return buffer

    @abstractmethod
    def _fill(self, target: memoryview, offset: int) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


class LocalRanges(ByteRanges):
    """A file on this machine, by positioned reads: what was read once does not stay mapped into the process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.label = str(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        self.size = os.fstat(self._descriptor).st_size

    def _fill(self, target: memoryview, offset: int) -> None:
        done = 0
        if hasattr(os, "posix_fadvise"):
            # The kernel reads ahead of what is copied.
            os.posix_fadvise(self._descriptor, offset, len(target), os.POSIX_FADV_WILLNEED)
        while done < len(target):
            stop = min(done + LOCAL_STEP, len(target))
            count = self._read_into(target[done:stop], offset + done)
            if count == 0:
                raise InputError(f"{self.label} is truncated: it ended while it was read")
            done += count

    def _read_into(self, target: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [target], offset)
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        data = os.read(self._descriptor, len(target))
        target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RemoteRanges(ByteRanges):
    """A file behind an fsspec file system, read without any cache: what is asked for is what is sent.

    Parameters
    ----------
    system : fsspec.AbstractFileSystem
        Such as huggingface_hub's HfFileSystem.
    path : str
        The file, as that system names it.
    label : str
        What messages call it.
    options : optional
        Handed to the system's ``open``.
    """

    def __init__(self, system: Any, path: str, label: str, **options: Any) -> None:
        super().__init__()
        self.label = label
        try:
            self._file = system.open(path, "rb", cache_type="none", **options)
            self.size = int(self._file.size)
        except FileNotFoundError as error:
            raise InputError(f"there is no {label}") from error
        except Exception as error:
            raise InputError(f"cannot read {label}: {first_line(error)}") from error

    def _fill(self, target: memoryview, offset: int) -> None:
        for start in range(0, len(target), REMOTE_STEP):
            stop = min(start + REMOTE_STEP, len(target))
            with self._lock:
                self._file.seek(offset + start)
                data = self._file.read(stop - start)
            if len(data) != stop - start:
                raise InputError(f"{self.label} sent {len(data)} bytes where {stop - start} were asked for; try again")
            target[start:stop] = data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
