"""Reading a run file, finished or still being written."""

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sinkscope.errors import StoreError
from sinkscope.store.integrity import checksum
from sinkscope.store.layout import (
    ATTENTION_MEASURED,
    ROW_DATASETS,
    AttentionTable,
    RunAttributes,
    Statistics,
    TokenTable,
)
from sinkscope.store.structure import damage_named, open_file, read_plan, read_record, read_statistics

# A writer may commit twice while the accumulators are being read; the next attempt then sees the newer state.
ATTEMPTS = 5


class RunReader:
    """Read access to a run file; a context manager.

    Of a file that is still being written, or was left behind by a killed run, the last committed state is shown: its
    tables hold the committed samples only, with token rows renumbered to match. Row data are checked against their
    checksums when a dataset is first used.

    Parameters
    ----------
    path : str or path
        The run file.

    Attributes
    ----------
    attributes : RunAttributes
    tokens : TokenTable
    token_text : dict of int to str
    statistics : Statistics
    attention : AttentionTable or None
        None where attention was not measured.

    Raises
    ------
    StoreError
        If there is no such file, or it is truncated, damaged, no HDF5 file, or of a newer schema version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        for attempt in range(ATTEMPTS):
            self._file = open_file(self.path, "r")
            try:
                with damage_named(self.path):
                    self._record = read_record(self._file)
                    self._plan = read_plan(self._file, self._record)
                    statistics = read_statistics(self._file, self._plan, self._record)
                break
            except StoreError:
                self._file.close()
                if attempt == ATTEMPTS - 1:
                    raise
        plan = self._plan
        done = np.zeros(plan.num_samples, bool)
        done[plan.order[: self._record.samples_done]] = True
        self._rows = np.flatnonzero(done[plan.tokens.sample])
        self._renumbered = np.full(len(plan.tokens) + 1, -1, np.int64)  # The last entry serves the row -1: no token.
        self._renumbered[self._rows] = np.arange(len(self._rows))
        self._done = done
        self._checked: set[str] = set()
        self.attributes: RunAttributes = plan.attributes
        self.tokens: TokenTable = plan.tokens.take(self._rows)
        self.token_text: dict[int, str] = dict(plan.token_text)
        arrays = statistics.arrays() | {"topk_token": self._renumbered[statistics.topk_token]}
        self.statistics: Statistics = Statistics(levels=statistics.levels, **arrays)

    def largest(self, layer: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """The largest magnitudes of every token entering `layer`.

        Returns
        -------
        dim : int32 [N, M]
            Dimensions, largest magnitude first.
        value : float32 [N, M]
            Their signed raw values.
        rms : float32 [N]
            RMS of the token's hidden state.
        """
        return (
            self._layer("largest/dim", layer)[self._rows],
            self._layer("largest/value", layer)[self._rows],
            self._layer("largest/rms", layer)[self._rows],
        )

    def sampled(self, layer: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The sampled hidden states entering `layer`.

        Returns
        -------
        token : int64 [S]
            Rows of the token table.
        states : float32 [S, D]
            x / RMS, rounded to float16 when stored; times the token's RMS it is the raw state.
        """
        token = self._renumbered[self._plan.sampled_tokens]
        states = self._layer("sampled/states", layer)
        return token[token >= 0], states[token >= 0].astype(np.float32)

    @property
    def attention(self) -> AttentionTable | None:
        """Attention drawn, or None where it was not measured."""
        if self.attributes.attention != ATTENTION_MEASURED:
            return None
        token = self._renumbered[self._plan.attention_tokens]
        kept = token >= 0
        drawn, later, expected, value_norm = (
            self._dataset(f"attention/{name}")[kept] for name in ("drawn", "later_queries", "expected", "value_norm")
        )
        return AttentionTable(token[kept], drawn, later, expected, value_norm)

    @property
    def progress(self) -> tuple[int, int]:
        """Committed samples, and samples in all."""
        return self._record.samples_done, self._plan.num_samples

    def verify(self) -> None:
        """Check every committed byte against its checksum.

        Raises
        ------
        StoreError
            If anything does not match.
        """
        for name in ROW_DATASETS:
            if name in self._file:
                self._check(name)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _layer(self, name: str, layer: int) -> NDArray[Any]:
        self._check(name)
        with damage_named(self.path):
            array: NDArray[Any] = self._file[name][:, layer]
        return array

    def _dataset(self, name: str) -> NDArray[Any]:
        self._check(name)
        with damage_named(self.path):
            array: NDArray[Any] = self._file[name][()]
        return array

    def _check(self, name: str) -> None:
        if name in self._checked:
            return
        with damage_named(self.path):
            dataset, stored = self._file[name], self._file[f"checksums/{name}"][()]
            spans = self._plan.spans(name)
            for sample in np.flatnonzero(self._done):
                start, stop = spans[sample]
                if start < stop and checksum([dataset[start:stop]]) != stored[sample]:
                    raise ValueError(f"the checksum of /{name} does not match for sample {sample}")
        self._checked.add(name)
