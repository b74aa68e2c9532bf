"""Merging run files over different data of one model into the file of one run over all of them.

::

    a.h5 (samples 0..n)  ┐                      RUN.rank0.h5 (samples 1, 4, ...)  ┐
                         ├─> merged.h5                                            ├─> RUN.h5
    b.h5 (samples 0..m)  ┘   a's, then b's      RUN.rank1.h5 (samples 0, 2, ...)  ┘   in the order of the whole run

Statistics combine as `STATISTICS_MERGE` declares. Rows are copied. Of the hidden states and the attention that the
files hold, independent runs keep what one run over all their data would have chosen: the choices depend on contents
alone, so that each file holds its part of it.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkscope.errors import InputError, StoreError
from sinkscope.store.choices import choose_samples, choose_tokens, kept_budget
from sinkscope.store.layout import (
    KIND_VISUAL,
    STATISTICS_MERGE,
    STATUS_COMPLETE,
    STATUS_RUNNING,
    RunPlan,
    SampleRows,
    Statistics,
)
from sinkscope.store.lock import WriterLock, real_place, unfinished_place
from sinkscope.store.reader import RunReader
from sinkscope.store.tokens import TokenTable
from sinkscope.store.writer import RunWriter, compared, shown

COUNTED = ("samples", "tokens")
"""Numbers of a run's calibration that add up."""
COMBINED = (*COUNTED, "kinds", "fingerprint", "source", "part")
"""All of a run's calibration that differs from file to file; the rest must match."""


@dataclass(frozen=True)
class _Part:
    """A file to merge: number and turn of its samples in the whole, and how far their rows move; int64 [n]."""

    reader: RunReader
    number: NDArray[np.int64]
    turn: NDArray[np.int64]
    moved: NDArray[np.int64]

    @property
    def tokens(self) -> TokenTable:
        return self.reader.plan.tokens

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows of the file are in the whole; -1, no token, stays."""
        return np.where(rows < 0, rows, rows + self.moved[self.tokens.sample_of(rows)])


def merge(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Merge complete run files of one model and setting over different data into one complete run file.

    Parameters
    ----------
    paths : sequence of path
        At least two run files, or all parts of one run of several processes. The samples of independent runs are
        numbered on in this order.
    out : path
        The file to write; must not exist. It appears when it is complete.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        If there are fewer than two files.
    StoreError
        If a file is missing, damaged or unfinished, differs from the first in model, revision, dtype or settings, or
        holds data of another one, always by name; or if `out` exists or cannot be written.
    """
    out, sources = Path(out), [Path(path) for path in paths]
    with contextlib.ExitStack() as stack:
        stack.enter_context(WriterLock(out))
        if out.exists():
            raise StoreError(f"{out} exists already; delete it, or choose another file to merge into")
        readers = [stack.enter_context(RunReader(path)) for path in sources]
        _check(readers)
        parts = _place(readers)
        plan = _plan(parts)
        partial = unfinished_place(out, "merging")
        partial.unlink(missing_ok=True)
        try:
            with RunWriter.create(partial, plan) as writer:
                for rows in _rows(parts, plan):
                    writer.write_sample(rows)
                writer.complete(_statistics(parts))
            os.replace(partial, real_place(out))
        except StoreError as error:
            if str(partial) not in str(error):
                raise
            reason = str(error).replace(str(partial), str(out)).partition(";")[0]
            raise type(error)(f"{reason}; free space there, or choose another file to merge into") from error
        finally:
            partial.unlink(missing_ok=True)
    return out


def merge_statistics(first: Statistics, second: Statistics) -> Statistics:
    """The accumulators over two disjoint sets of tokens together, see `STATISTICS_MERGE`.

    Parameters
    ----------
    first, second : Statistics
        With rows of the same token table in `topk_token`.
    """
    merged: dict[str, Any] = {}
    for name, rule in STATISTICS_MERGE.items():
        if rule != "top":
            combine = {"sum": np.add, "max": np.maximum}[rule]
            merged[name] = combine(getattr(first, name), getattr(second, name))
    odds = np.concatenate([first.topk_odds, second.topk_odds], axis=-1)
    token = np.concatenate([first.topk_token, second.topk_token], axis=-1)
    # Highest odds first, ties by lower row; the places without a token come last.
    order = np.lexsort((token, -odds, token < 0), axis=-1)[..., : first.topk_odds.shape[-1]]
    merged["topk_odds"] = np.take_along_axis(odds, order, axis=-1)
    merged["topk_token"] = np.take_along_axis(token, order, axis=-1)
    return Statistics(levels=first.levels, **merged)


def _check(readers: Sequence[RunReader]) -> None:
    """Refuse what cannot be merged, by name."""
    first = readers[0]
    parts = [reader for reader in readers if reader.plan.part is not None]
    if len(readers) < 2 and not parts:
        raise InputError("one run file alone cannot be merged; give two or more")
    for reader in readers:
        if parts and reader.plan.part is None:
            raise StoreError(f"{reader.path} is a whole run among parts of one; merge the parts by themselves first")
        done, total = reader.progress
        if reader.attributes.status != STATUS_COMPLETE:
            raise StoreError(f"{reader.path} is unfinished ({done} of {total} samples); finish it with --resume first")
        for name, one, other in compared(_comparable(first.plan), _comparable(reader.plan)):
            if one != other:
                raise StoreError(
                    f"{reader.path} is a run with {name} {shown(other)} and {first.path} with {shown(one)}; only runs "
                    "of the same model and settings merge"
                )
        for name in COMBINED:
            if (name in reader.attributes.calibration) != (name in first.attributes.calibration):
                raise StoreError(f"only one of {reader.path} and {first.path} tells the {name} of its data")
    if parts:
        _check_parts(readers)
    else:
        _check_overlap(readers)


def _check_overlap(readers: Sequence[RunReader]) -> None:
    """Refuse independent runs that share a sample."""
    contents = [np.unique(reader.plan.fingerprints) for reader in readers]
    owners = np.repeat(np.arange(len(readers)), [len(entry) for entry in contents])
    order = np.argsort(joined := np.concatenate(contents), kind="stable")
    twice = np.flatnonzero(np.diff(joined[order].view(np.int64)) == 0)
    if len(twice):
        one, other = (readers[owners[order[place]]] for place in (twice[0], twice[0] + 1))
        raise StoreError(
            f"{other.path} and {one.path} hold the same data ({len(twice)} equal samples); only runs over different "
            "data merge"
        )


def _check_parts(readers: Sequence[RunReader]) -> None:
    """Refuse parts that do not make up one run."""
    found: dict[int, RunReader] = {}
    for reader in readers:
        if reader.attributes.calibration["fingerprint"] != readers[0].attributes.calibration["fingerprint"]:
            raise StoreError(f"{reader.path} is a part of another run than {readers[0].path}; merge parts of one run")
        rank = reader.attributes.calibration["part"]["rank"]
        if rank in found:
            raise StoreError(f"{reader.path} and {found[rank].path} are the same part of a run; give each part once")
        found[rank] = reader
    missing = set(range(readers[0].attributes.calibration["part"]["ranks"])) - set(found)
    if missing:
        raise StoreError(
            f"part {min(missing)} of the run that {readers[0].path} is part of is missing; give the files of all ranks"
        )
    places = np.sort(np.concatenate([reader.plan.part for reader in readers if reader.plan.part is not None], axis=1))
    if not (places == np.arange(places.shape[1])).all():
        raise StoreError(f"the parts of the run that {readers[0].path} is part of do not fit together; make them again")


def _comparable(plan: RunPlan) -> RunPlan:
    """The plan without what differs from file to file."""
    attributes = plan.attributes
    kept = {name: value for name, value in attributes.calibration.items() if name not in COMBINED}
    ranks = attributes.calibration.get("part", {}).get("ranks")
    return replace(
        plan,
        attributes=replace(
            attributes,
            calibration=kept | {"ranks": ranks},
            settings={**attributes.settings, "measured attention": attributes.attention},
        ),
    )


def _place(readers: Sequence[RunReader]) -> list[_Part]:
    """Where the samples and tokens of every file are in the whole."""
    numbers, turns = [], []
    before = 0
    for reader in readers:
        plan = reader.plan
        if plan.part is not None:
            number, turn = plan.part.astype(np.int64)
        else:
            # Complete files have no order of computation any more; read one after another, samples come fastest.
            number = turn = before + np.arange(plan.num_samples)
            before += plan.num_samples
        numbers.append(number)
        turns.append(turn)
    lengths = np.zeros(sum(map(len, numbers)), np.int64)
    for number, reader in zip(numbers, readers, strict=True):
        lengths[number] = reader.plan.tokens.lengths
    starts = np.cumsum(lengths) - lengths
    return [
        _Part(reader, number, turn, starts[number] - reader.plan.tokens.edges[:-1])
        for reader, number, turn in zip(readers, numbers, turns, strict=True)
    ]


def _plan(parts: Sequence[_Part]) -> RunPlan:
    """The plan of the whole."""
    plans = [part.reader.plan for part in parts]
    numbers = np.concatenate([part.number for part in parts])
    tokens = _tokens(parts)
    fingerprints = _scattered(numbers, [plan.fingerprints for plan in plans])
    sampled = np.sort(np.concatenate([part.rows(part.reader.plan.sampled_tokens) for part in parts]))
    attended = np.sort(np.concatenate([part.rows(part.reader.plan.attention_tokens) for part in parts]))
    first = plans[0].attributes
    if plans[0].part is None:
        settings = first.settings
        if "sampled_tokens" in settings and settings.get("keep") != "all":
            chosen = choose_tokens(tokens, fingerprints, kept_budget(settings), first.seed)
            sampled = np.intersect1d(sampled, chosen)
        if "attention_texts" in settings:
            attended = _chosen_attention(tokens, fingerprints, attended, settings, first.seed)
    return RunPlan(
        replace(
            first,
            calibration=_calibration([plan.attributes.calibration for plan in plans]),
            versions=_versions([plan.attributes.versions for plan in plans]),
            status=STATUS_RUNNING,
        ),
        tokens,
        {identifier: text for plan in plans for identifier, text in plan.token_text.items()},
        numbers[np.argsort(np.concatenate([part.turn for part in parts]))].astype(np.int32),
        sampled,
        attended,
        plans[0].top_tokens,
        plans[0].largest,
        plans[0].levels,
        fingerprints=fingerprints,
        peak_states=plans[0].peak_states,
    )


def _tokens(parts: Sequence[_Part]) -> TokenTable:
    """The token table of the whole."""
    numbers = np.concatenate([part.number for part in parts])
    lengths = _scattered(numbers, [part.tokens.lengths for part in parts])
    id, kind = np.empty(int(lengths.sum()), np.int32), np.empty(int(lengths.sum()), np.uint8)
    places = None if all(part.tokens.places is None for part in parts) else np.empty_like(id)
    for part in parts:
        rows = part.rows(np.arange(len(part.tokens)))
        id[rows], kind[rows] = part.tokens.id, part.tokens.kind
        if places is not None:
            places[rows] = part.tokens.position
    return TokenTable(id, kind, lengths, places)


def _chosen_attention(
    tokens: TokenTable,
    fingerprints: NDArray[np.uint64],
    attended: NDArray[np.int64],
    settings: Mapping[str, Any],
    seed: int,
) -> NDArray[np.int64]:
    """Rows of the samples whose attention one run over all data would have measured, int64 [A]."""
    sample = tokens.sample_of(attended)
    measured = np.unique(sample)
    with_visual = np.isin(measured, tokens.sample_of(np.flatnonzero(tokens.kind == KIND_VISUAL)))
    chosen = [
        choose_samples(measured[with_visual == visual], fingerprints, settings[name], seed)
        for visual, name in ((False, "attention_texts"), (True, "attention_images"))
    ]
    return attended[np.isin(sample, np.concatenate(chosen))]


def _scattered(places: NDArray[np.int64], arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The entries of the arrays, one after another, at their places."""
    joined = np.concatenate(arrays)
    out = np.empty_like(joined)
    out[places] = joined
    return out


def _calibration(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The calibration of the whole: as it is in every part of a run; else counts added up, and what names the data."""
    merged = {name: value for name, value in entries[0].items() if name != "part"}
    if "part" in entries[0]:
        return merged
    merged |= {name: sum(entry[name] for entry in entries) for name in COUNTED if name in merged}
    if "kinds" in merged:
        merged["kinds"] = {name: sum(entry["kinds"].get(name, 0) for entry in entries) for name in merged["kinds"]}
    if "fingerprint" in merged:
        together = "".join(entry["fingerprint"] for entry in entries)
        merged["fingerprint"] = hashlib.sha256(together.encode("ascii")).hexdigest()
    if "source" in merged:
        merged["source"] = " and ".join(dict.fromkeys(entry["source"] for entry in entries))
    return merged


def _versions(entries: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The version of every library, or all of them where the files were made with different ones."""
    names = sorted({name for entry in entries for name in entry})
    return {name: " and ".join(sorted({entry[name] for entry in entries if name in entry})) for name in names}


def _rows(parts: Sequence[_Part], plan: RunPlan) -> Iterator[SampleRows]:
    """The rows of all samples, in the order of the plan."""
    owner = np.concatenate([np.full(len(part.number), index) for index, part in enumerate(parts)])
    numbers = np.concatenate([part.number for part in parts])
    owner, local = _scattered(numbers, [owner]), _scattered(numbers, [np.arange(len(part.number)) for part in parts])
    sampled, attended = (np.zeros(len(plan.tokens), bool) for _ in range(2))
    sampled[plan.sampled_tokens] = True
    attended[plan.attention_tokens] = True
    states = [part.reader.plan.spans("sampled/states") for part in parts]
    tokens = plan.spans("tokens")
    for number in plan.order.tolist():
        part, sample = parts[owner[number]], int(local[number])
        rows = part.reader.rows(sample)
        stored = part.rows(part.reader.plan.sampled_tokens[slice(*states[owner[number]][sample])])
        rows = replace(rows, sample=number, states=rows.states[sampled[stored]])
        if not attended[tokens[number, 0]]:
            rows = replace(rows, drawn=None, later_queries=None, expected=None, value_norm=None)
        yield rows


def _statistics(parts: Sequence[_Part]) -> Statistics:
    """The accumulators of the whole."""

    def placed(part: _Part) -> Statistics:
        statistics = part.reader.statistics
        return replace(statistics, topk_token=part.rows(statistics.topk_token))

    return reduce(merge_statistics, map(placed, parts))
