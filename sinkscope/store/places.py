"""Where the data of a run file's datasets are, to be overwritten as plain bytes.

The datasets are contiguous and never move, so a writer needs no HDF5: nothing of its metadata is touched, no buffer of
it can hold back what was written, and other threads run meanwhile.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import h5py
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class _Place:
    """Offset in the file, and bytes of one row."""

    offset: int
    row: int


class OpenPlaces:
    """Named datasets of a run file, open for overwriting."""

    def __init__(self, file: BinaryIO, places: dict[str, _Place]) -> None:
        self._file = file
        self._places = places

    @classmethod
    def open(cls, path: Path, file: h5py.File, names: Iterable[str]) -> Self:
        """Open the datasets of `file`, which is the one at `path`; empty ones are left out."""
        places = {}
        for name in names:
            dataset = file[name]
            if dataset.nbytes:
                places[name] = _Place(dataset.id.get_offset(), dataset.nbytes // (dataset.shape or (1,))[0])
        return cls(path.open("r+b", buffering=0), places)

    def put(self, name: str, array: NDArray[Any], row: int = 0) -> None:
        """Overwrite a dataset from `row` on with an array of its dtype; an OSError if the disk is full or fails."""
        if not array.size:
            return
        place = self._places[name]
        self._file.seek(place.offset + row * place.row)
        left = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        while left:
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
