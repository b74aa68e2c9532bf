"""Run files with all their checksums in order whose contents cannot be true."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.faults.malformed.base import run_file
from benchmarks.faults.malformed.forging import seal_again
from sinkscope.store.integrity import CommitRecord, checksum, header_checksum, statistics_checksum
from sinkscope.store.layout import STATUS_COMPLETE, RunPlan, Statistics, row_layout
from sinkscope.store.reader import RunReader
from sinkscope.store.structure import create_file, normalised, write_statistics
from sinkscope.store.tokens import TOKEN_DTYPES, TokenTable

ODD_JSON: tuple[Any, ...] = (
    None,
    [],
    "odd",
    -1,
    2**70,
    1.5,
    float("inf"),
    {},
    {"keep": "all"},
    {"keep": ["all"], "sampled_tokens": "many"},
    {"keep": "all", "sampled_tokens": 2**80},
    {"part": 3},
    {"part": {"rank": "x", "ranks": 2**40}},
    {"part": {"rank": 0, "ranks": 2**40}, "fingerprint": "a"},
    {"source": ["a"], "fingerprint": 3},
    {"attention": 0, "max_samples": [1], "chat_template": "x", "keep": None, "attention_layers": "odd"},
    {"attention_layers": [999999, -5, None]},
    {"num_layers": "x", "hidden_size": -3, "model_type": 7, "num_heads": 0},
    {"torch": None, "\x1b[2J": [1]},
    {"a\nb": "c" * 10_000},
    {"kinds": [], "tokens": "x", "samples": None},
)
ODD_TEXT = (
    "",
    "\x1b]0;owned\x07",
    "a\nsinkscope: error: forged",
    "../../x",
    "x" * 20_000,
    "--help",
    "\u202eevil",
    "$(touch executed)",
)
ODD_INTEGERS = (-(2**31), -1, 0, 1, 7, 41, 2**31 - 1)
ODD_NUMBERS = (float("nan"), float("inf"), -1.0, 0.0, 1e308)


@dataclass(frozen=True)
class _LyingTable(TokenTable):
    """A table whose columns do not fit together."""

    columns: dict[str, Any] = field(default_factory=dict)

    def blocks(self, name: str) -> Iterator[tuple[slice, Any]]:
        yield slice(None), self.columns[name]


@dataclass(frozen=True)
class Lie:
    """A forged run file: `count` changes of the plan, the statistics, the rows or the record, drawn from the seed."""

    seed: int
    count: int

    def write(self, path: Path) -> None:
        path.write_bytes(run_file())
        with RunReader(path) as reader:
            plan, statistics = reader.plan, reader.statistics
            rows = {name: reader._file[name][()] for name in row_layout(plan)}
        record = {"samples_done": plan.num_samples, "status": STATUS_COMPLETE, "attention": plan.attributes.attention}
        generator = random.Random(self.seed)
        for _ in range(self.count):
            what = generator.choice(["plan", "plan", "plan", "statistics", "rows", "record"])
            if what == "plan":
                plan = generator.choice(PLANS)(plan, generator)
            elif what == "statistics":
                statistics = _statistics(statistics, generator)
            elif what == "rows":
                _poke(rows[generator.choice(list(rows))], generator)
            else:
                record |= _record(generator)
        path.unlink()
        _write(path, plan, statistics, rows, record)


def _write(path: Path, plan: RunPlan, statistics: Statistics, rows: dict[str, Any], changes: dict[str, Any]) -> None:
    plan = normalised(plan)
    create_file(path, plan)
    with h5py.File(path, "r+", locking=False) as file:
        for name, (shape, _) in row_layout(plan).items():
            data = rows[name] if name in rows and rows[name].shape == shape else file[name][()]
            file[name][...] = data
            for sample, (start, stop) in enumerate(plan.spans(name)[: plan.num_samples]):
                if 0 <= start < stop:
                    file[f"checksums/{name}"][sample] = checksum([data[start:stop]])
        stored = {name: file[f"statistics/{name}"][()] for name in statistics.arrays()}
        if all(stored[name].shape == np.shape(array) for name, array in statistics.arrays().items()):
            write_statistics(file, 0, statistics)
        else:
            statistics = Statistics(**stored)
        fields = {
            "sequence": 1,
            "slot": 0,
            "header_checksum": header_checksum(plan),
            "statistics_checksum": statistics_checksum(statistics),
        }
        record = CommitRecord(**(fields | changes))
        file["progress/record"][1] = record.encode()
    seal_again(path)


def _attribute(plan: RunPlan, generator: random.Random) -> RunPlan:
    names = ["backbone", "settings", "settings", "calibration", "versions", "model_id", "revision", "dtype", "seed"]
    name = generator.choice(names)
    if name in ("model_id", "revision", "dtype"):
        value: Any = generator.choice(ODD_TEXT)
    elif name == "seed":
        value = generator.choice([-1, 2**62, -(2**63)])
    else:
        before, value = getattr(plan.attributes, name), generator.choice(ODD_JSON)
        if isinstance(before, dict) and isinstance(value, dict) and generator.random() < 0.7:
            value = before | value
        elif isinstance(before, dict) and before and generator.random() < 0.5:
            value = before | {generator.choice(list(before)): value}
    return replace(plan, attributes=replace(plan.attributes, **{name: value}))


def _size(plan: RunPlan, generator: random.Random) -> RunPlan:
    changes: dict[str, Any] = generator.choice(
        [{"num_layers": 0}, {"num_layers": 1}, {"hidden_size": 1}, {"hidden_size": 3000}, {"num_layers": 700}]
    )
    return replace(plan, attributes=replace(plan.attributes, **changes))


def _tokens(plan: RunPlan, generator: random.Random) -> RunPlan:
    name = generator.choice(["id", "position", "sample", "kind"])
    columns = {name: getattr(plan.tokens, name).copy() for name in TOKEN_DTYPES}
    _poke(columns[name], generator)
    if generator.random() < 0.2:
        kept = generator.randrange(len(plan.tokens) + 1)
        columns = {name: column[:kept] for name, column in columns.items()}
    lengths = np.diff(np.searchsorted(columns["sample"], np.arange(plan.num_samples + 1)))
    return replace(plan, tokens=_LyingTable(columns["id"], columns["kind"], lengths, columns["position"], columns))


def _rows_of(name: str) -> Callable[[RunPlan, random.Random], RunPlan]:
    def change(plan: RunPlan, generator: random.Random) -> RunPlan:
        array = getattr(plan, name).copy()
        kind = generator.choice(["poke", "reverse", "cut", "twice", "none"])
        if kind == "poke":
            _poke(array, generator)
        elif kind == "reverse":
            array = array[::-1]
        elif kind == "cut":
            array = array[: len(array) // 2]
        else:
            array = np.concatenate([array, array]) if kind == "twice" else array[:0]
        return replace(plan, **{name: array})

    return change


def _texts(plan: RunPlan, generator: random.Random) -> RunPlan:
    odd = {key: generator.choice(ODD_TEXT) for key in plan.token_text}
    return replace(plan, token_text=generator.choice([{}, odd, {-5: "x", 2**31 - 1: "y"}]))


def _levels(plan: RunPlan, generator: random.Random) -> RunPlan:
    length = len(plan.levels)
    return replace(
        plan, levels=generator.choice([plan.levels[::-1], (float("nan"),) * length, (-1.0,) * length, (0.5,)])
    )


def _part(plan: RunPlan, generator: random.Random) -> RunPlan:
    number = np.arange(plan.num_samples)
    odd: Iterable[Any] = ([number, number], [number - 1, number * 0], [number + 2**30, number], [number])
    return replace(plan, part=np.array(generator.choice(list(odd)), np.int32))


def _counts(plan: RunPlan, generator: random.Random) -> RunPlan:
    return replace(plan, **generator.choice([{"top_tokens": 1}, {"largest": 1}, {"peak_states": 3}, {"largest": 17}]))


PLANS = (
    _attribute,
    _attribute,
    _attribute,
    _size,
    _tokens,
    *map(_rows_of, ("order", "sampled_tokens", "attention_tokens", "fingerprints")),
    _texts,
    _levels,
    _part,
    _counts,
)


def _statistics(statistics: Statistics, generator: random.Random) -> Statistics:
    name = generator.choice(list(statistics.arrays()))
    array = np.array(getattr(statistics, name))
    _poke(array, generator)
    return replace(statistics, **{name: array})


def _record(generator: random.Random) -> dict[str, Any]:
    return generator.choice(
        [
            {"samples_done": generator.choice([-1, 0, 1, 10**9, "x", None, 1.5])},
            {"slot": generator.choice([-1, 1, 2, "x", None])},
            {"sequence": generator.choice([-1, 2**70, "x", None])},
            {"status": generator.choice(["running", "odd", 3, None])},
            {"attention": generator.choice(["not requested", "unavailable: \x1b[2J", 3, None, "x\ny"])},
        ]
    )


def _poke(array: Any, generator: random.Random) -> None:
    """Put an odd value into one place of an array, or into all."""
    if not array.size:
        return
    odd = generator.choice(ODD_NUMBERS if array.dtype.kind == "f" else ODD_INTEGERS)
    with np.errstate(over="ignore"):
        value = np.array(odd).astype(array.dtype)
    if generator.random() < 0.3:
        array[...] = value
    else:
        array.reshape(-1)[generator.randrange(array.size)] = value
