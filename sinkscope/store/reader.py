"""Reading a run file, finished or still being written."""

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from sinkscope.errors import StoreError
from sinkscope.store.choices import choose_tokens
from sinkscope.store.integrity import CommitRecord, checksum
from sinkscope.store.layout import (
    ATTENTION_MEASURED,
    ROW_DATASETS,
    AttentionTable,
    RunAttributes,
    RunPlan,
    SampleRows,
    Statistics,
    row_layout,
)
from sinkscope.store.soundness import check_datasets, check_rows
from sinkscope.store.structure import cached_rows, damage_named, open_file, read_plan, read_record, read_statistics
from sinkscope.store.tokens import TokenTable

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
    committed : bool [samples]
        Which samples of the plan are committed.

    Raises
    ------
    StoreError
        If there is no such file, or it is truncated, damaged, no HDF5 file, or of another schema version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        before: CommitRecord | None = None
        for attempt in range(ATTEMPTS):
            self._file = open_file(self.path)
            record: CommitRecord | None = None
            try:
                with damage_named(self.path):
                    check_datasets(self._file)
                    record = self._record = read_record(self._file)
                    self._plan = read_plan(self._file, self._record)
                    statistics = read_statistics(self._file, self._plan, self._record)
                break
            except StoreError:
                self._file.close()
                if record == before or attempt == ATTEMPTS - 1:
                    raise  # Nobody writes meanwhile, or for ever.
                before = record
        plan = self._plan
        done = np.zeros(plan.num_samples, bool)
        done[plan.order[: self._record.samples_done]] = True
        self.committed: NDArray[np.bool_] = done
        self._done_tokens = None if done.all() else np.repeat(done, plan.tokens.lengths)
        self._chosen = np.isin(plan.sampled_tokens, _seeded_choice(plan))
        self._checked: set[str] = set()
        self._by_sample: dict[str, tuple[h5py.Dataset, NDArray[np.uint32]]] = {}
        self._spans = {name: plan.spans(name) for name in row_layout(plan)}
        self.attributes: RunAttributes = plan.attributes
        self.tokens: TokenTable = plan.tokens.take(done)
        self.token_text: dict[int, str] = dict(plan.token_text)
        arrays = statistics.arrays() | {"topk_token": self._taken(statistics.topk_token)}
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
            self._of_tokens("largest/dim", layer),
            self._of_tokens("largest/value", layer),
            self._of_tokens("largest/rms", layer),
        )

    def sampled(self, layer: int, every: bool = False) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The sampled hidden states entering `layer`.

        Parameters
        ----------
        layer : int
        every : bool
            Of a run that keeps those of all tokens, give all, which may be many, instead of the seeded choice.

        Returns
        -------
        token : int64 [S]
            Rows of the token table.
        states : float32 [S, D]
            x / RMS, rounded to float16 when stored; times the token's RMS it is the raw state.
        """
        token = self._taken(self._plan.sampled_tokens)
        wanted = token >= 0
        if not every:
            wanted &= self._chosen
        self._check("sampled/states")
        with damage_named(self.path):
            dataset, place = self._file["sampled/states"], np.flatnonzero(wanted)
            # Of all states of a large run, only those that are wanted are read.
            states = dataset[place, layer] if not self._chosen.all() else dataset[:, layer][place]
        return token[wanted], states.astype(np.float32)

    def peak_states(self, layer: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The hidden states of the tokens with the highest peaks of every sample, entering `layer`.

        Returns
        -------
        token : int64 [n]
            Rows of the token table: of every sample the tokens with the highest odds in any dimension, highest first.
            None where the run does not keep them.
        states : float32 [n, D]
            As of `sampled`.
        """
        if not self._plan.peak_states:
            return np.zeros(0, np.int64), np.zeros((0, self.attributes.hidden_size), np.float32)
        place = self._layer("peaks/place", layer)
        token = np.where(place < 0, -1, self._plan.spans("tokens")[:, :1] + place)
        kept = (token >= 0) & self.committed[:, None]
        return self._taken(token[kept]), self._layer("peaks/states", layer)[kept].astype(np.float32)

    @property
    def attention(self) -> AttentionTable | None:
        """Attention drawn, or None where it was not measured."""
        if self.attributes.attention != ATTENTION_MEASURED:
            return None
        token = self._taken(self._plan.attention_tokens)
        if not len(token):  # Where no sample has a second token, which could attend to the first.
            nothing = np.zeros((0, self.attributes.num_layers), np.float32)
            return AttentionTable(token, nothing, np.zeros(0, np.int32), nothing, nothing)
        kept = token >= 0
        drawn, later, expected, value_norm = (
            self._dataset(f"attention/{name}")[kept] for name in ("drawn", "later_queries", "expected", "value_norm")
        )
        return AttentionTable(token[kept], drawn, later, expected, value_norm)

    @property
    def progress(self) -> tuple[int, int]:
        """Committed samples, and samples in all."""
        return self._record.samples_done, self._plan.num_samples

    @property
    def plan(self) -> RunPlan:
        """What the file was made from: all samples, committed or not."""
        return self._plan

    def rows(self, sample: int) -> SampleRows:
        """The stored rows of one sample of the plan, checked against their checksums.

        Raises
        ------
        StoreError
            If they do not match.
        """
        arrays: dict[str, NDArray[Any]] = {}
        with damage_named(self.path):
            for name, (start, stop) in ((name, spans[sample]) for name, spans in self._spans.items()):
                if name not in self._by_sample:
                    self._by_sample[name] = (cached_rows(self._file, name), self._file[f"checksums/{name}"][()])
                dataset, checksums = self._by_sample[name]
                arrays[name] = self._sound(name, sample, dataset[start:stop], checksums)
        return SampleRows.of(sample, arrays)

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

    def _taken(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the plan's tokens among those committed, or -1."""
        return self._plan.tokens.taken(self.committed, rows)

    def _of_tokens(self, name: str, layer: int) -> NDArray[Any]:
        rows = self._layer(name, layer)
        return rows if self._done_tokens is None else rows[self._done_tokens]

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
            for sample in np.flatnonzero(self.committed).tolist():
                start, stop = self._spans[name][sample]
                if start < stop:
                    self._sound(name, sample, dataset[start:stop], stored)
        self._checked.add(name)

    def _sound(self, name: str, sample: int, rows: NDArray[Any], checksums: NDArray[np.uint32]) -> NDArray[Any]:
        """The rows of a sample in a dataset, if they are what its checksum says; samples without any have none."""
        if len(rows):
            if checksum([rows]) != checksums[sample]:
                raise ValueError(f"the checksum of /{name} does not match for sample {sample}")
            start, stop = self._spans["largest/dim"][sample]
            check_rows(name, rows, self._plan, int(stop - start))
        return rows


def _seeded_choice(plan: RunPlan) -> NDArray[np.int64]:
    """Rows of the stored states that stand for all tokens: of a run that keeps all, those that others keep."""
    settings, attributes = plan.attributes.settings, plan.attributes
    if settings.get("keep") != "all":
        return plan.sampled_tokens
    return choose_tokens(plan.tokens, plan.fingerprints, settings["sampled_tokens"], attributes.seed)
