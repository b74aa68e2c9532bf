"""Merging run files: the file of one run over all data, and refusals by name."""

import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_runs import make_plan, make_rows, make_statistics

from sinkscope.capture.synthetic import write_synthetic
from sinkscope.cli.main import run as command
from sinkscope.discovery import discover
from sinkscope.errors import InputError, StoreError
from sinkscope.store.layout import STATISTICS_FIELDS, STATISTICS_MERGE, Statistics
from sinkscope.store.merge import merge, merge_statistics
from sinkscope.store.reader import RunReader
from sinkscope.store.writer import RunWriter

LAYERS, WIDTH, LENGTHS, KEPT = 6, 24, (14, 9, 20, 11, 16, 8, 13), 4
LEVELS = (0.1, 0.5)
CUTS = (0, 2, 5, 7)
"""The samples of the parts: 0 and 1, 2 to 4, 5 and 6."""


def write_run(path: Path, first: int = 0, stop: int = len(LENGTHS), **changes: Any) -> Path:
    """A run over some of the samples, whose states do not depend on which others are there."""
    states, drawn = [], []
    for number in range(first, stop):
        generator = np.random.default_rng(number)
        state = generator.normal(size=(LAYERS + 1, LENGTHS[number], WIDTH)).astype(np.float32)
        state[1:, 0, 6] = 300 + number
        attention = generator.uniform(0, 0.02, (LENGTHS[number], LAYERS))
        attention[0] = 0.6
        states.append(state)
        drawn.append(attention)
    options: dict[str, Any] = {
        "drawn": np.concatenate(drawn),
        "sampled": 30,
        "settings": {"sampled_tokens": 30, "seed": 0},
        "calibration": {"fingerprint": f"{first}-{stop}", "samples": stop - first, "bos": None},
    }
    samples = np.repeat(np.arange(stop - first), LENGTHS[first:stop])
    return write_synthetic(path, np.concatenate(states, axis=1), samples, **{**options, **changes})


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    return [write_run(folder / f"{i}.h5", *CUTS[i : i + 2]) for i in range(3)]


def datasets(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        for group in ("tokens", "samples", "statistics", "largest", "sampled", "attention"):
            found |= {f"{group}/{name}": dataset[()] for name, dataset in file[group].items()}
    return found


def assert_same_run(first: Path, second: Path) -> None:
    """All datasets are the same, sums up to the rounding of batches, which are products in float32."""
    one, other = datasets(first), datasets(second)
    assert one.keys() == other.keys()
    for name, array in one.items():
        if name.startswith("statistics/sum"):
            np.testing.assert_allclose(other[name], array, rtol=1e-6, atol=1e-6 * np.abs(array).max(), err_msg=name)
        else:
            np.testing.assert_array_equal(other[name], array, err_msg=name)


def test_a_merge_is_the_run_over_all_data(parts: list[Path], tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole.h5")
    merged = merge(parts, tmp_path / "merged.h5")
    assert_same_run(whole, merged)
    with RunReader(merged) as reader:
        reader.verify()
        assert reader.attributes.status == "complete"
        assert reader.progress == (7, 7)
        assert reader.attributes.calibration["samples"] == 7
        assert 10 < len(reader.sampled(0)[0]) < 60
    found, expected = (json.loads(discover(path).to_json()) for path in (merged, whole))
    for profile in (found, expected):
        profile["provenance"].pop("calibration")
    assert found == expected
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["merged.h5", "whole.h5"]


def test_merging_merged_files_is_merging_their_parts(parts: list[Path], tmp_path: Path) -> None:
    together = merge(parts, tmp_path / "together.h5")
    first = merge(parts[:2], tmp_path / "first.h5")
    assert_same_run(together, merge([first, parts[2]], tmp_path / "again.h5"))


def accumulated(odds: np.ndarray, values: np.ndarray, rows: np.ndarray) -> Statistics:
    """Statistics by their definition: odds and values [N, L+1, D] of the tokens in `rows`."""
    order = np.lexsort((np.broadcast_to(rows[:, None, None], odds.shape), -odds), axis=0)[:KEPT]
    shape = (KEPT - len(order), *odds.shape[1:])
    top = np.concatenate([np.take_along_axis(odds, order, axis=0), np.zeros(shape, np.float32)])
    token = np.concatenate([rows[order], np.full(shape, -1)])
    return Statistics(
        np.int64(len(rows)),
        np.moveaxis(top, 0, -1),
        np.moveaxis(token, 0, -1),
        np.abs(values).max(axis=0, initial=0),
        np.stack([(odds >= level).sum(axis=0) for level in LEVELS], axis=-1),
        *(function(values).sum(axis=0, dtype=np.float64) for function in (np.asarray, np.abs, np.square)),
        np.abs(values).sum(axis=(0, 2), dtype=np.float64),
        levels=LEVELS,
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.randoms())
def test_statistics_merge_from_any_split_in_any_order(seed: int, sizes: list[int], shuffled: Any) -> None:
    generator = np.random.default_rng(seed)
    count = sum(sizes)
    odds = generator.integers(0, 6, (count, 2, 3)).astype(np.float32)  # Few values, so that many are equal.
    values = generator.normal(size=odds.shape).astype(np.float32)
    rows = generator.permutation(count)
    split = [np.split(array, np.cumsum(sizes)[:-1]) for array in (odds, values, rows)]
    made = [accumulated(*part) for part in zip(*split, strict=True)]
    shuffled.shuffle(made)
    merged, whole = reduce(merge_statistics, made), accumulated(odds, values, rows)
    for name in STATISTICS_MERGE:
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-6, atol=1e-6, err_msg=name)
    assert set(STATISTICS_MERGE) == set(STATISTICS_FIELDS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_id": "other"}, "model_id 'other'"),
        ({"revision": "main"}, "revision 'main'"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16'"),
        ({"seed": 1}, "seed 1"),
        ({"settings": {"sampled_tokens": 31, "seed": 0}}, "settings.sampled_tokens 31"),
        ({"calibration": {"fingerprint": "x", "samples": 3, "bos": "<s>"}}, "calibration.bos '<s>'"),
        ({"drawn": None}, "attention 'not requested'"),
        ({"top_tokens": 3}, "top_tokens 3"),
    ],
)
def test_other_runs_are_refused_by_name(parts: list[Path], tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    other = write_run(tmp_path / "other.h5", 2, 5, **changes)
    refused([parts[0], other], tmp_path / "merged.h5", str(other), named)


def refused(paths: list[Path], out: Path, *named: str) -> None:
    with pytest.raises((StoreError, InputError)) as caught:
        merge(paths, out)
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message, message
    assert not [entry for entry in out.parent.iterdir() if entry.name.startswith((".", out.name + "."))]


def unfinished(path: Path) -> None:
    plan = make_plan()
    with RunWriter.create(path, plan) as writer:
        writer.commit_batch([make_rows(plan, 5)], make_statistics(plan, 1))


def damaged(path: Path) -> None:
    write_run(path, 2, 5)
    with h5py.File(path) as file:
        dataset = file["largest/value"]
        chunk = dataset.id.get_chunk_info(0) if dataset.chunks else None
        offset = dataset.id.get_offset() if chunk is None else chunk.byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 40] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (unfinished, "unfinished (1 of 6 samples)"),
        (damaged, "damaged"),
        (lambda path: path.write_bytes(b"something"), "is no run file"),
        (lambda path: None, "there is no run file"),
        (lambda path: write_run(path, 1, 5), "hold the same data (1 equal samples)"),
    ],
)
def test_bad_files_are_refused_by_name(
    parts: list[Path], tmp_path: Path, make: Callable[[Path], Any], named: str
) -> None:
    bad = tmp_path / "bad.h5"
    make(bad)
    refused([parts[0], bad], tmp_path / "merged.h5", str(bad), named)
    assert not (tmp_path / "merged.h5").exists()


def test_what_is_there_is_not_overwritten(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "merged.h5"
    out.write_bytes(b"precious")
    refused(parts, out, str(out), "exists already")
    assert out.read_bytes() == b"precious"
    refused(parts[:1], tmp_path / "single.h5", "two or more")
    refused([parts[0], parts[0]], tmp_path / "twice.h5", "hold the same data")


def test_the_command(parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged.h5"
    arguments = ["merge", *map(str, parts), "-o", str(out), "--json"]
    assert command(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["path"], shown["status"], shown["samples"]) == (str(out), "complete", {"done": 7, "total": 7})
    assert command(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"sinkscope: error: {out} exists already; delete it, or choose another file to merge into"
    ]
