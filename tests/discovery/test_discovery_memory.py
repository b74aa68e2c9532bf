"""What discovery holds in memory grows with the tokens of a run, not with its layers; and reading in parts changes
nothing."""

import tracemalloc

import numpy as np
import pytest

from sinkscope.capture.attention import causal_expectation
from sinkscope.capture.synthetic import write_synthetic
from sinkscope.discovery import DiscoverySettings, discover, pooled, tokens
from sinkscope.store.layout import AttentionTable
from sinkscope.store.reader import RunReader

SAMPLES, LENGTH, WIDTH, ATTENDED = 96, 128, 48, 4
COUNT = SAMPLES * LENGTH
FAST = DiscoverySettings(bootstraps=10)


@pytest.fixture(params=["attention", "no attention"])
def run_of(request, tmp_path, monkeypatch):
    """Writes a run of so many layers, whose sinks are the first tokens, with attention of few samples or of none."""

    def written(layers):
        generator = np.random.default_rng(0)
        states = generator.standard_normal((layers + 1, COUNT, WIDTH), np.float32)
        states[1:, ::LENGTH, 7] = 300.0
        states[layers // 2 :, ::LENGTH, 11] = 200.0
        if request.param == "attention":
            judged = np.arange(ATTENDED * LENGTH)
            drawn = np.where(judged % LENGTH == 0, 0.5, 0.005).astype(np.float32)[:, None].repeat(layers, 1)
            later = (LENGTH - 1 - judged % LENGTH).astype(np.int32)
            expected = np.tile(causal_expectation(LENGTH), ATTENDED).astype(np.float32)[:, None].repeat(layers, 1)
            table = AttentionTable(judged, drawn, later, expected, np.ones_like(drawn))
            monkeypatch.setattr(RunReader, "attention", table)
        path, sample = tmp_path / f"{layers}.run.h5", np.arange(COUNT) // LENGTH
        return write_synthetic(path, states, sample, sampled=256, top_tokens=4)

    return written


@pytest.fixture
def small_caches(monkeypatch):
    """As small, beside the tokens, as they are in a large run."""
    monkeypatch.setattr(tokens, "CACHED_BYTES", 0)
    monkeypatch.setattr(pooled, "BLOCK", 2**13)


def test_memory_does_not_grow_with_layers(run_of, small_caches):
    discover(run_of(2), FAST)  # What it imports is not counted.
    few, many = (peak_bytes(run_of(layers)) for layers in (4, 10))
    # A byte for each token and layer would be 6 for each token; peaks and measured attention take about as much here.
    assert many - few < 18 * COUNT, (few / COUNT, many / COUNT)


def test_parts_change_nothing(run_of, monkeypatch, request):
    run = run_of(6)
    whole = discover(run, FAST)
    assert sorted(whole.dims) == [7, 11]
    request.getfixturevalue("small_caches")
    assert discover(run, FAST) == whole


def peak_bytes(run):
    """The most that discovery holds beside the open file."""
    with RunReader(run) as reader:
        tracemalloc.start()
        discover(reader, FAST)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("block", [1, 3, 10, 1000])
def test_scores_come_downwards_whatever_the_block(monkeypatch, block):
    """Equal ones in the order in which they were given."""
    monkeypatch.setattr(pooled, "BLOCK", block)
    generator = np.random.default_rng(block)
    parts = [
        pooled.Scored(
            generator.integers(0, 5, 12) / 4, generator.random(12) < 0.5, np.arange(12 * part, 12 * part + 12)
        )
        for part in range(4)
    ]
    score, label, number = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(-score, kind="stable")
    for reach in (None, 7, 48):
        blocks = list(pooled.downwards(lambda: parts, reach))
        assert all(len(found.score) <= block for found in blocks)
        assert (np.concatenate([found.sample for found in blocks]) == number[order][:reach]).all()
        assert (np.concatenate([found.label for found in blocks]) == label[order][:reach]).all()
