"""The scale benchmark: its lines and counts are what they say, and its arithmetic follows the code."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.scale import document
from benchmarks.scale.__main__ import RESULTS
from benchmarks.scale.extrapolate import (
    DEVICE_FLOPS,
    DEVICE_ROOM,
    MODELS,
    Model,
    accumulator_bytes,
    file_bytes,
    pass_seconds,
    placed,
    run,
    token_bytes,
)
from benchmarks.scale.fits import line, traced
from benchmarks.scale.passes import BATCH, MovedBytes

SMALL = Model("small", 1e9, 1e9, 10, 100)


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text())


def test_a_line_has_slope_and_error():
    exact = line([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)])
    assert (exact["slope"], exact["intercept"], exact["r2"]) == pytest.approx((2.0, 1.0, 1.0))
    assert exact["error"] == pytest.approx(0.0, abs=1e-12)
    bent = line([(0.0, 0.0), (1.0, 1.0), (2.0, 4.0)])
    assert bent["slope"] == pytest.approx(2.0)
    assert bent["error"] == pytest.approx(np.sqrt((2 / 3) / 2))  # Residuals 1/3, -2/3, 1/3; one degree of freedom.


def test_memory_is_held_and_at_most():
    held, most = traced(lambda: np.concatenate(2 * [np.zeros(10**6, np.uint8)]))
    assert 2e6 <= held < 2.1e6
    assert 2.9e6 < most < 3.1e6


def test_moved_bytes_are_read_and_written_and_views_are_free():
    first, second = torch.zeros(10, 10), torch.zeros(10, 10)
    with MovedBytes() as moved:
        first + second
    assert moved.bytes == 3 * 400
    with MovedBytes() as moved:
        first.reshape(-1)[3:].unsqueeze(0).expand(5, -1)
    assert moved.bytes == 0
    with MovedBytes() as moved:
        first.add_(second)
    assert moved.bytes == 3 * 400
    with MovedBytes() as moved:
        first.half()
    assert moved.bytes == 600


def test_bytes_follow_the_layout():
    assert token_bytes(SMALL) == 11 * (8 * 8 + 4)
    assert accumulator_bytes(SMALL) == 11 * 100 * (16 * 12 + 4 + 7 * 8 + 3 * 8) + 11 * 8 + 8
    more = file_bytes(SMALL, 2_000_000) - file_bytes(SMALL, 1_000_000)
    assert more == 1_000_000 * token_bytes(SMALL)
    everything = file_bytes(SMALL, 256_000, "all") - file_bytes(SMALL, 256_000, "none")
    assert everything == 256_000 * 11 * 100 * 2
    peaks = file_bytes(SMALL, 256_000, "topk") - file_bytes(SMALL, 256_000, "sample")
    assert peaks == 1000 * 11 * 4 * (4 + 2 * 100)
    assert file_bytes(MODELS[0], 10**9) > 2 * 10**12


def test_models_are_placed_where_they_fit():
    assert placed(SMALL, 8) == {"team": 1, "teams": 8, "outside": 0.0, "speed": placed(SMALL, 1)["speed"]}
    large = replace(SMALL, parameters=2.5 * DEVICE_ROOM / 2)
    assert (placed(large, 8)["team"], placed(large, 8)["teams"]) == (4, 2)
    assert placed(large, 2)["outside"] == pytest.approx(0.5 * DEVICE_ROOM)


def test_passes_and_runs_scale_as_they_should(results):
    forward, statistics = pass_seconds(results, SMALL, 1)
    assert forward == pytest.approx(2 * 1e9 * BATCH / DEVICE_FLOPS)
    assert pass_seconds(results, replace(SMALL, width=200), 1)[1] == pytest.approx(2 * statistics)
    one, eight = (run(results, SMALL, 10**7, devices) for devices in (1, 8))
    assert one["pass seconds"] == pytest.approx(8 * eight["pass seconds"])
    assert (one["merge seconds"], one["merge bytes"]) == (0, 0)
    assert eight["merge bytes"] > 10**7 * results["plans"]["bytes of an open file"]["slope"]
    ten = run(results, SMALL, 10**8, 1)
    assert ten["plan seconds"] == pytest.approx(10 * one["plan seconds"])
    more = ten["discovery bytes"] - one["discovery bytes"]
    assert more == pytest.approx(9e7 * results["discovery"]["bytes beyond the caches"]["slope"])  # The caches are full.


def test_what_was_measured_makes_sense(results):
    for name in ("bytes of the plan", "bytes while it is made", "bytes of the file beside rows and accumulators"):
        assert results["plans"][name]["r2"] > 0.99
    assert results["plans"]["bytes of the file beside rows and accumulators"]["slope"] == pytest.approx(13.2, abs=0.5)
    assert results["statistics"]["tokens"]["slope"] > 0
    assert abs(results["discovery"]["bytes for each token, by layers"]["slope"]) < 4
    assert all(0 < run(results, model, 10**5, 8)["statistics share"] < 1 for model in MODELS)


def test_the_page_holds_the_tables_of_the_results(results, tmp_path: Path):
    page = tmp_path / "scale.md"
    text = document.PAGE.read_text()
    page.write_text(text)
    document.write(results, page)
    assert page.read_text() == text, "run `python -m benchmarks.scale` again"
    page.write_text(text.replace("<!-- end of runs -->", ""))
    with pytest.raises(ValueError, match="no place for the table of runs"):
        document.write(results, page)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0123, "12.3 ms"), (30, "30 s"), (300, "5 min"), (9000, "2.5 h"), (864000, "10 d")]
)
def test_durations(seconds, shown):
    assert document.duration(seconds) == shown
