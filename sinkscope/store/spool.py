"""Columns of numbers that grow at their end, and lie on the disk once they are long."""

import os
import tempfile
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sinkscope.errors import DiskError

IN_MEMORY = 2**16
"""Bytes of a column from which on it lies in a temporary file."""


class Spool(np.lib.mixins.NDArrayOperatorsMixin):
    """One dimension of numbers, of which stretches are read when they are asked for.

    It stands where an array does: stretches of it are arrays, and anything else is that of the whole array, which is
    then in memory for the time. To be used by one thread at a time.

    Parameters
    ----------
    dtype : dtype
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.shape: tuple[int] = (0,)
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, prefix="sinkscope-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def append(self, values: NDArray[Any]) -> None:
        """Put numbers at the end.

        Raises
        ------
        DiskError
            If the folder of temporary files is full or cannot be written.
        """
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(np.ascontiguousarray(values, self.dtype).tobytes())
            self._file.flush()
        except OSError as error:
            raise DiskError(
                f"cannot write temporary files to {tempfile.gettempdir()} ({error.strerror or error}); free space "
                "there, or name another folder in TMPDIR"
            ) from error
        self.shape = (len(self) + len(values),)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, slice) or key.step not in (None, 1):
            return np.asarray(self)[key]
        start, stop, _ = key.indices(len(self))
        self._file.seek(start * self.dtype.itemsize)
        return np.frombuffer(self._file.read(max(0, stop - start) * self.dtype.itemsize), self.dtype)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        whole: NDArray[Any] = self[:].astype(dtype or self.dtype, copy=False)
        return whole

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        whole = (np.asarray(value) if isinstance(value, Spool) else value for value in inputs)
        return getattr(ufunc, method)(*whole, **options)
