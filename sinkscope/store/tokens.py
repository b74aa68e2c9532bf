"""The table of the calibration tokens: which token is where, one sample after another."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOKEN_DTYPES = {"id": "int32", "position": "int32", "sample": "int32", "kind": "uint8"}
"""The columns of the table in a run file."""

BLOCK = 2**15
"""Rows of a column that are in memory at a time."""


@dataclass(frozen=True)
class TokenTable:
    """The calibration tokens, ordered by sample and position.

    What follows from the lengths of the samples is made when it is asked for. While a run is made, `id` and `kind` may
    lie on the disk, see `Spool`; whoever may have many of them goes through them by `blocks`.

    Attributes
    ----------
    id : int32 [N]
    kind : uint8 [N]
    lengths : int32 [samples]
        Number of tokens of every sample.
    places : int32 [N], optional
        Their positions, where these are not 0, 1, 2, ... in every sample.
    """

    id: NDArray[np.int32]
    kind: NDArray[np.uint8]
    lengths: NDArray[np.int32]
    places: NDArray[np.int32] | None = None

    @classmethod
    def of_columns(
        cls, id: NDArray[Any], position: NDArray[Any], sample: NDArray[Any], kind: NDArray[Any]
    ) -> "TokenTable":
        """From the whole columns, [N], of a run file.

        Raises
        ------
        ValueError
            If they are not of one length and their dtypes, or samples are not numbered from 0 with their rows together
            and in order.
        """
        columns, count = {"id": id, "position": position, "sample": sample, "kind": kind}, len(id)
        if any(column.shape != (count,) or column.dtype != TOKEN_DTYPES[name] for name, column in columns.items()):
            raise ValueError("/tokens cannot be so")
        if count and (sample[0] != 0 or not all(np.isin(steps, (0, 1)).all() for steps in differences(sample))):
            raise ValueError("/tokens/sample cannot be so")
        samples = int(sample[-1]) + 1 if count else 0
        # Of the column's own dtype: otherwise the whole of it is converted first.
        edges = np.searchsorted(sample, np.arange(samples + 1, dtype=sample.dtype))
        table = cls(id, kind, np.diff(edges).astype(np.int32))
        usual = all(np.array_equal(position[rows], block) for rows, block in table.blocks("position"))
        return table if usual else cls(id, kind, table.lengths, position)

    def __len__(self) -> int:
        return len(self.id)

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """The first row of every sample, and the number of rows: int64 [samples + 1]."""
        return np.append(0, np.cumsum(self.lengths, dtype=np.int64))

    @cached_property
    def sample(self) -> NDArray[np.int32]:
        """The sample of every token, int32 [N]."""
        return np.repeat(np.arange(len(self.lengths), dtype=np.int32), self.lengths)

    @cached_property
    def position(self) -> NDArray[np.int32]:
        """The position of every token in its sample, int32 [N]."""
        if self.places is not None:
            return self.places
        return (np.arange(len(self)) - np.repeat(self.edges[:-1], self.lengths)).astype(np.int32)

    def sample_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples of some rows."""
        return np.searchsorted(self.edges, rows, side="right") - 1

    def position_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions of some rows."""
        if self.places is not None:
            return self.places[rows].astype(np.int64)
        return rows - self.edges[self.sample_of(rows)]

    def rows_of(self, samples: Iterable[int]) -> NDArray[np.int64]:
        """The rows of some samples, one after another."""
        return np.concatenate(
            [np.zeros(0, np.int64), *(np.arange(*self.edges[number : number + 2]) for number in samples)]
        )

    def blocks(self, name: str) -> Iterator[tuple[slice, NDArray[Any]]]:
        """A column of `TOKEN_DTYPES`, some rows at a time, and which these are."""
        for start in range(0, len(self), BLOCK):
            rows = slice(start, min(start + BLOCK, len(self)))
            numbers = np.arange(rows.start, rows.stop)
            if name == "sample":
                block = self.sample_of(numbers)
            elif name == "position":
                block = self.position_of(numbers)
            else:
                block = getattr(self, name)[rows]
            yield rows, block.astype(TOKEN_DTYPES[name], copy=False)

    def distinct_ids(self) -> NDArray[np.int32]:
        """All ids, each once, ascending."""
        found = np.zeros(0, np.int32)
        for _, block in self.blocks("id"):
            found = np.union1d(found, block)
        return found

    def count_kinds(self, kinds: int) -> NDArray[np.int64]:
        """Number of tokens of each of so many kinds."""
        counts = (np.bincount(block, minlength=kinds) for _, block in self.blocks("kind"))
        return np.sum([np.zeros(kinds, np.int64), *counts], axis=0)

    def take(self, chosen: NDArray[np.bool_]) -> "TokenTable":
        """The table of the chosen samples, bool [samples]; the others keep their numbers and have no tokens."""
        if chosen.all():
            return self
        rows = np.repeat(chosen, self.lengths)
        places = None if self.places is None else self.places[rows]
        return TokenTable(self.id[rows], self.kind[rows], np.where(chosen, self.lengths, np.int32(0)), places)

    def taken(self, chosen: NDArray[np.bool_], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows of this table are in `take(chosen)`; -1 for those of other samples, and for -1: no token."""
        if chosen.all():
            return rows
        sample, edges = self.sample_of(rows), np.append(0, np.cumsum(np.where(chosen, self.lengths, 0)))
        return np.where((rows >= 0) & chosen[sample], rows - self.edges[sample] + edges[sample], -1)


def differences(column: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The differences of neighbours, some at a time: the tables of a large run fill much of the memory already."""
    for start in range(0, len(column) - 1, BLOCK):
        yield np.diff(column[start : start + BLOCK + 1])
