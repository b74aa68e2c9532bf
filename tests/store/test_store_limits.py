"""Where numbers end: more tokens or samples than a run file can number, many files, memory that grows with tokens."""

import os
import resource
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from store_runs import make_plan, make_rows, make_statistics

from sinkscope.capture.reading_on_device import keys_of
from sinkscope.capture.statistics import numbers_of, top_keys
from sinkscope.errors import StoreError
from sinkscope.store import tokens as store_tokens
from sinkscope.store.choices import choose_tokens
from sinkscope.store.layout import SAMPLE_LIMIT, TOKEN_LIMIT, RunPlan, stored_bytes
from sinkscope.store.merge import merge
from sinkscope.store.reader import RunReader
from sinkscope.store.tokens import TokenTable
from sinkscope.store.writer import RunWriter


def shown(count: int, dtype: Any) -> np.ndarray:
    """So many zeros that take no memory."""
    return np.broadcast_to(np.zeros((), dtype), (count,))


def plan_of(tokens: int, samples: int) -> RunPlan:
    table = TokenTable(shown(tokens, np.int32), shown(tokens, np.uint8), shown(samples, np.int32))
    nothing = np.zeros(0, np.int64)
    return replace(
        make_plan(),
        tokens=table,
        order=shown(samples, np.int32),
        fingerprints=shown(samples, np.uint64),
        sampled_tokens=nothing,
        attention_tokens=nothing,
    )


@pytest.mark.parametrize(
    ("tokens", "samples", "message"),
    [
        (TOKEN_LIMIT + 1, 10, r"would hold 4,294,967,297 tokens, and a run file holds 4,294,967,296 at most"),
        (100, SAMPLE_LIMIT + 1, r"would hold 2,147,483,649 samples, and a run file holds 2,147,483,648 at most"),
    ],
)
def test_more_than_can_be_numbered_is_refused(tmp_path: Path, tokens: int, samples: int, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        RunWriter.create(tmp_path / "run.h5", plan_of(tokens, samples))
    assert "\n" not in str(caught.value)
    assert "spread the data over several runs" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"seed": 2**63}, {"settings": {"max_tokens": 2**70}}, {"settings": {"max_samples": 2**63}}]
)
def test_a_number_that_the_file_cannot_hold_is_refused_before_there_is_one(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(StoreError, match=r"cannot hold the settings of this run \((seed 9223|settings\.max_)"):
        RunWriter.create(tmp_path / "run.h5", make_plan(**changes))
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_of_a_file_of_terabytes_are_exact() -> None:
    plan = replace(plan_of(10**9, 10**6), attributes=replace(make_plan().attributes, num_layers=60, hidden_size=4096))
    rows = 10**9 * 61 * (3 * 8 + 4) + 10**6 * 61 * 2 * (4 + 2 * 4096)
    accumulators = 61 * 4096 * (4 * 12 + 4 + 2 * 8 + 3 * 8) + 61 * 8 + 8
    assert stored_bytes(plan) == rows + 2 * accumulators


@pytest.mark.parametrize("row", [0, 2**31 - 1, 2**31, 2**31 + 1, TOKEN_LIMIT - 1])
def test_keys_hold_any_row_on_any_device(row: int) -> None:
    rows, odds = np.array([row, max(0, row - 1)]), np.array([1e-30, 3e38], np.float32)
    keys = top_keys(odds, rows)
    np.testing.assert_array_equal(numbers_of(keys), rows)
    assert keys[1] > keys[0] >= 0, "higher odds come first, whatever the rows"
    np.testing.assert_array_equal(keys_of(torch.from_numpy(odds), torch.from_numpy(rows)).numpy(), keys)
    if row:
        low, high = top_keys(np.float32([0.5, 0.5]), np.array([row - 1, row]))
        assert low > high, "of equal odds the lower row comes first"


def many_tokens(samples: int, length: int) -> tuple[TokenTable, np.ndarray]:
    count = samples * length
    table = TokenTable(np.zeros(count, np.int32), np.zeros(count, np.uint8), np.full(samples, length, np.int32))
    return table, np.arange(samples, dtype=np.uint64) * np.uint64(2**40 + 1)


def test_tokens_are_chosen_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    table, fingerprints = many_tokens(40, 25)
    whole = choose_tokens(table, fingerprints, 300, seed=3)
    assert 200 < len(whole) < 400
    monkeypatch.setattr(store_tokens, "BLOCK", 7)
    np.testing.assert_array_equal(choose_tokens(table, fingerprints, 300, seed=3), whole)


def most_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_choices_and_spans_make_no_copies_of_a_column() -> None:
    table, fingerprints = many_tokens(2**13, 2**9)
    column = table.sample.nbytes
    plan = replace(plan_of(1, 2**13), tokens=table)
    assert most_bytes(lambda: plan.spans("tokens")) < column / 8
    assert most_bytes(lambda: choose_tokens(table, fingerprints, 1024, seed=0)) < 80 * store_tokens.BLOCK < 6 * column


def complete(path: Path, number: int) -> Path:
    plan = make_plan()
    plan = replace(plan, fingerprints=plan.fingerprints + np.uint64(1000 * number))
    with RunWriter.create(path, plan) as writer:
        for sample in plan.order:
            writer.write_sample(make_rows(plan, int(sample)))
        writer.complete(make_statistics(plan, 6))
    return path


def test_more_files_than_may_be_open_are_no_damage(tmp_path: Path) -> None:
    paths = [complete(tmp_path / f"{number}.h5", number) for number in range(6)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest numbers that are free, among which others may be in use.
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    for descriptor in free:
        os.close(descriptor)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1] + 1, hard))
        with pytest.raises(StoreError, match=r"cannot open .*h5: too many files are open; allow more with `ulimit -n`"):
            merge(paths, tmp_path / "merged.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(tmp_path.iterdir()) == paths
    with RunReader(merge(paths, tmp_path / "merged.h5")) as reader:
        assert reader.progress == (36, 36)
