"""Where the data of a run file's datasets are, to be overwritten as plain bytes.

The datasets are contiguous and never move, so a writer needs no HDF5: nothing of its metadata is touched, no buffer of
it can hold back what was written, and other threads run meanwhile.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sinkscope.store.seal import overwrite_attribute, read_seal


@dataclass(frozen=True)
class _Place:
    """Offset in the file, and bytes of one row."""

    offset: int
    row: int


class OpenPlaces:
    """A run file that is open for overwriting. What is written goes into this file, whatever its path leads to later.

    Raises
    ------
    ValueError
        If it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, _Place] = {}
        self._file = path.open("r+b", buffering=0)
        try:
            self._seal = read_seal(self._file)
        except BaseException:
            self.close()
            raise

    def find(self, file: h5py.File, names: Iterable[str]) -> None:
        """Find the datasets that are to be overwritten in `file`, which is the one at the path; but empty ones."""
        for name in names:
            dataset = file[name]
            if dataset.nbytes:
                self._places[name] = _Place(dataset.id.get_offset(), dataset.nbytes // (dataset.shape or (1,))[0])

    def is_whole(self) -> bool:
        """Whether the file is what its path leads to and as long as it was; an OSError if nothing is there."""
        opened = os.fstat(self._file.fileno())
        return os.path.samestat(opened, os.stat(self._path)) and opened.st_size == self._seal.size

    def names(self) -> int:
        """How many names, hard links, the file has."""
        return os.fstat(self._file.fileno()).st_nlink

    def put(self, name: str, array: NDArray[Any], row: int = 0) -> None:
        """Overwrite a dataset from `row` on with an array of its dtype; an OSError if the disk is full or fails."""
        if not array.size:
            return
        place = self._places[name]
        self._file.seek(place.offset + row * place.row)
        left = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        while left:
            left = left[self._file.write(left) :]

    def put_attribute(self, name: str, value: str) -> None:
        """Overwrite one of the attributes that change."""
        overwrite_attribute(self._file, self._seal, name, value)

    def wait(self) -> None:
        """Wait until what was written is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
