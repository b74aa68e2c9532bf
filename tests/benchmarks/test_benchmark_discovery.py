"""A short run of the benchmark: its rows, figures and command."""

import json
import sys

import numpy as np
import pytest
from rich.progress import Progress

from benchmarks.discovery import __main__ as command
from benchmarks.discovery.null_calibration import LEVELS, calibrate, calibration_cases, group
from benchmarks.discovery.scoring import TokenScore, clopper_pearson
from benchmarks.discovery.speed import DIMS, write_large
from benchmarks.discovery.stores import run_cases
from benchmarks.discovery.summary import METHODS, OWN, bars, summary
from benchmarks.known_truth import Case
from sinkscope.discovery import discover

TINY = {"width": 64, "layers": 6, "samples": 12, "length": 72, "tail": 0, "spread": 0.4}
STORES = [
    Case(seed=1, stratum="plain", dims=1, magnitude=300.0, **TINY),
    Case(seed=2, stratum="plain", dims=2, magnitude=500.0, **TINY),
    Case(seed=3, stratum="without attention", dims=1, magnitude=800.0, attention=False, **TINY),
    Case(seed=4, stratum="free: clean", **TINY),
    Case(seed=5, stratum="free: clean", attention=False, **TINY),
    Case(seed=6, stratum="free: content", decoys=("content", "attended"), **TINY),
]


@pytest.fixture(scope="module")
def rows():
    with Progress(disable=True) as progress:
        return run_cases(STORES, 1, progress)


def test_every_store_is_scored(rows):
    assert [row["case"].seed for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert row["separable"]
        assert row["found"] == row["truth"], row["case"]
    assert rows[0]["tokens"].sinks > 0
    assert rows[0]["tokens"].missed == rows[0]["tokens"].false == 0


def test_the_summary_is_json_and_adds_up(rows):
    result = summary(rows)
    result["bars"] = bars(result)
    text = json.dumps(result, allow_nan=False)
    assert json.loads(text)["stores"][0][0] == 1
    whole = result["accuracy"]["separable"][""]
    assert set(whole) == set(METHODS)
    assert whole[OWN]["of"] == 6
    assert whole[OWN]["rate"] == 1.0
    assert whole["attention-first"]["of"] == 4
    assert result["accuracy"]["separable"]["free"][OWN]["of"] == 3
    assert result["false_discovery"][OWN]["hits"] == 0
    assert result["bars"]["exact set on separable stores"]["met"]
    assert result["failures"] == []


def test_a_miss_and_a_crash_are_failures(rows):
    wrong = [rows[0] | {"found": (5, 6)}, rows[3] | {"found": (-1,), "verdict": "error", "reason": "ValueError: no"}]
    result = summary(wrong)
    assert [entry["factors"]["seed"] for entry in result["failures"]] == [1, 4]
    assert result["accuracy"]["separable"][""][OWN]["rate"] == 0.0
    assert Case(**{**result["failures"][0]["factors"], "triggers": ("first",), "decoys": ()}) == STORES[0]


def test_token_score_counts_inside_and_outside():
    score = TokenScore()
    score.add(np.array([True, True, False, False]), np.array([True, False, True, False]))
    score.add(np.array([False, False]), np.array([True, False]))
    assert score.row == [2, 4, 1, 1, 2, 1]


def test_clopper_pearson_against_tables():
    assert clopper_pearson(0, 100) == pytest.approx((0.0, 0.0362), abs=1e-4)
    assert clopper_pearson(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_calibration_groups():
    listed = [case for case in calibration_cases() if case.width == 64 and case.tail == 5][:2]
    with Progress(disable=True) as progress:
        result = calibrate(progress, listed)
    assert result["levels"] == list(LEVELS)
    assert result["groups"][0]["p_values"] == 2 * 9 * 64
    uniform = group([np.linspace(1e-6, 1, 100_000).reshape(10, -1)])
    assert uniform["ratio"][:3] == pytest.approx([1.0, 1.0, 1.0], abs=0.02)


def test_the_large_run_file_in_small(tmp_path):
    path = write_large(tmp_path / "large.h5", layers=6, width=2560, samples=10, length=60)
    profile = discover(path)
    assert set(profile.dims) == {dim % 2560 for dim in DIMS}


def test_the_command(tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.json"
    arguments = ["discovery", "--only", "free: attention", "--stores", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    assert json.loads(output.read_text())["stores"][0][1] == "free: attention alone"
    assert "exact set" in capsys.readouterr().err
