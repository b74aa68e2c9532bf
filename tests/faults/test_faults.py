"""Runs that are killed, starved and interrupted, a few of each kind; `python -m benchmarks.faults` does many."""

import importlib
import sys
from pathlib import Path

import pytest

from benchmarks.faults.__main__ import PARTS
from benchmarks.faults.outcome import Outcome

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the faults are those of Linux")

FEW = {
    "kills": 4,
    "disk": 4,
    "folder": 2,
    "activations": 1,
    "memory": 1,
    "interrupt": 4,
    "clock": 1,
    "writers": 1,
}


def check(part: str, folder: Path, count: int, seed: int) -> Outcome:
    outcome: Outcome = importlib.import_module(f"benchmarks.faults.{part}").check(folder, count, seed)
    assert not outcome.problems, "\n".join(outcome.problems)
    assert outcome.passed
    skipped = [why for why in outcome.figures.values() if str(why).startswith("not tried: ")]
    if skipped:
        pytest.skip(skipped[0])  # What could be tried has passed.
    return outcome


@pytest.mark.parametrize("part", FEW)
def test_nothing_is_lost_and_one_line_says_what_happened(part: str, tmp_path: Path) -> None:
    # With this seed, the runs that are killed are so at a time, in a write, in a commit and at a change of a file.
    assert check(part, tmp_path, FEW[part], seed=295).tried >= FEW[part]


@pytest.mark.slow
@pytest.mark.parametrize("part", FEW)
def test_more_of_them(part: str, tmp_path: Path) -> None:
    check(part, tmp_path, PARTS[part] or 100, seed=1)
