"""From hidden states to a run file, without a model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sinkscope.capture.attention import causal_expectation
from sinkscope.capture.collector import Collector
from sinkscope.capture.synthetic import write_synthetic
from sinkscope.errors import InputError, NonFiniteActivationError, SinkscopeError, UnsupportedModelError
from sinkscope.store.choices import choose_tokens
from sinkscope.store.layout import STATISTICS_FIELDS, RunAttributes, RunPlan
from sinkscope.store.reader import RunReader
from sinkscope.store.tokens import TokenTable

LENGTHS = (7, 4, 9)
DEPTH, WIDTH = 4, 16
SAMPLES = np.repeat(np.arange(3), LENGTHS)


def make_states() -> np.ndarray:
    states = np.random.default_rng(0).normal(size=(DEPTH, len(SAMPLES), WIDTH)).astype(np.float32)
    states[1:, 0, 6] = 300
    return states


def make_plan() -> RunPlan:
    tokens = TokenTable(np.zeros(20, np.int32), np.zeros(20, np.uint8), np.array(LENGTHS, np.int32))
    attributes = RunAttributes("m", None, {}, "float32", {}, {}, 0, {}, DEPTH - 1, WIDTH)
    return RunPlan(
        attributes,
        tokens,
        {0: "x"},
        np.arange(3, dtype=np.int32),
        np.arange(0, 20, 2),
        np.zeros(0, np.int64),
        fingerprints=np.arange(3, dtype=np.uint64),
    )


def test_synthetic_round_trip(tmp_path: Path) -> None:
    states, drawn = make_states(), np.random.default_rng(1).random((20, DEPTH - 1)).astype(np.float32)
    write_synthetic(tmp_path / "run.h5", states, SAMPLES, drawn=drawn, sampled=None, ids=np.arange(20), model_id="made")
    with RunReader(tmp_path / "run.h5") as reader:
        assert reader.attributes.model_id == "made"
        assert reader.attributes.num_layers == DEPTH - 1
        assert reader.tokens.position.tolist() == [*range(7), *range(4), *range(9)]
        assert reader.statistics.topk_token[2, 6, 0] == 0
        dim, value, rms = reader.largest(2)
        assert (dim[0, 0], value[0, 0]) == (6, 300)
        np.testing.assert_allclose(rms, np.sqrt((states[2] ** 2).mean(1)), rtol=1e-6)
        order = np.argsort(-np.abs(states[2]), axis=1)[:, :8]
        np.testing.assert_array_equal(dim, order)
        np.testing.assert_array_equal(value, np.take_along_axis(states[2], order, 1))
        token, sampled = reader.sampled(1)
        np.testing.assert_array_equal(token, np.arange(20))
        np.testing.assert_allclose(sampled * reader.largest(1)[2][:, None], states[1], rtol=2e-3, atol=2e-3)
        attention = reader.attention
        assert attention is not None
        np.testing.assert_array_equal(attention.drawn, drawn)
        np.testing.assert_allclose(attention.expected[7:11, 0], causal_expectation(4))
        assert attention.later_queries[:7].tolist() == [6, 5, 4, 3, 2, 1, 0]


def test_synthetic_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hidden_states must be"):
        write_synthetic(tmp_path / "a.h5", make_states(), SAMPLES[:-1])
    with pytest.raises(InputError, match="numbered 0, 1, 2"):
        write_synthetic(tmp_path / "a.h5", make_states(), SAMPLES[::-1])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_never_counts(side: str) -> None:
    states, collector, plain = torch.from_numpy(make_states()), Collector(make_plan()), Collector(make_plan())
    valid = np.zeros((3, 9), bool)
    for row, length in enumerate(LENGTHS):
        valid[row, :length] = True
    if side == "left":
        valid = valid[:, ::-1].copy()
    padded = torch.full((DEPTH, 3, 9, WIDTH), 1e6)  # Padding that would win every statistic.
    padded[:, torch.from_numpy(valid)] = states
    collector.begin([0, 1, 2], valid)
    plain.begin([0, 1, 2])
    for layer in range(DEPTH):
        collector(layer, padded[layer])
        plain(layer, states[layer][None])
    for first, second in zip(collector.finish(), plain.finish(), strict=True):
        np.testing.assert_array_equal(first.largest_value, second.largest_value)
        np.testing.assert_array_equal(first.states, second.states)
    for name in STATISTICS_FIELDS:
        np.testing.assert_array_equal(getattr(collector.statistics(), name), getattr(plain.statistics(), name))


def test_batches_and_their_order_do_not_matter() -> None:
    states, found = torch.from_numpy(make_states()), []
    for batches in ([[0, 1, 2]], [[2], [0, 1]], [[1], [0], [2]]):
        collector = Collector(make_plan())
        for batch in batches:
            collector.begin(batch)
            rows = torch.from_numpy(np.concatenate([np.flatnonzero(sample == SAMPLES) for sample in batch]))
            for layer in range(DEPTH):
                collector(layer, states[layer][rows][None])
            collector.finish()
        found.append(collector.statistics())
    for other in found[1:]:
        for name in STATISTICS_FIELDS:
            np.testing.assert_allclose(getattr(other, name), getattr(found[0], name), rtol=1e-6, atol=1e-5)
        np.testing.assert_array_equal(other.topk_token, found[0].topk_token)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states(dtype: torch.dtype) -> None:
    collector = Collector(make_plan())
    collector.begin([0, 1, 2])
    states = torch.from_numpy(make_states()).to(dtype)
    states[:, 0, 6] = 30000  # Its square is beyond float16.
    for layer in range(DEPTH):
        collector(layer, states[layer][None])
    rows = collector.finish()
    assert np.isfinite(rows[0].rms).all()
    assert rows[0].largest_value[0, 0, 0] == float(torch.tensor(30000.0, dtype=dtype))


@pytest.mark.parametrize(("value", "dtype", "advice"), [
    (float("nan"), torch.float32, "check the model's weights"),
    (float("inf"), torch.float16, "--dtype bfloat16 or float32"),
    (float("-inf"), torch.bfloat16, "--dtype float32"),
])  # fmt: skip
def test_planted_non_finite_values_are_named(value: float, dtype: torch.dtype, advice: str) -> None:
    collector, states = Collector(make_plan()), torch.from_numpy(make_states()).to(dtype)
    states[2:, 9, 3] = value
    collector.begin([0, 1, 2])
    for layer in range(DEPTH):
        collector(layer, states[layer][None])
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        NonFiniteActivationError, match=rf"layer 2 .* sample 1 at position 2 \(dtype {name}\).*{advice}"
    ):
        collector.finish()


def test_layers_that_are_zero_missing_or_of_another_shape_are_named() -> None:
    collector, states = Collector(make_plan()), torch.from_numpy(make_states())
    collector.begin([0, 1, 2])
    for layer in range(DEPTH):
        collector(layer, states[layer][None] * (layer != 3))
    with pytest.raises(SinkscopeError, match="entering layer 3 is zero"):
        collector.finish()
    collector.begin([0, 1, 2])
    collector(0, states[0][None])
    with pytest.raises(UnsupportedModelError, match="layer 0 runs twice"):
        collector(0, states[0][None])
    with pytest.raises(UnsupportedModelError, match="adds or drops positions"):
        collector(1, states[1][None, :-1])
    with pytest.raises(SinkscopeError, match="entering layer 1 was seen"):
        collector.finish()


def test_the_choice_of_tokens_is_seeded_and_close_to_its_budget() -> None:
    table = TokenTable(np.zeros(10000, np.int32), np.zeros(10000, np.uint8), np.full(200, 50, np.int32))
    contents = np.arange(200, dtype=np.uint64)
    chosen = choose_tokens(table, contents, 1024, seed=3)
    assert 900 < len(chosen) < 1150
    np.testing.assert_array_equal(chosen, choose_tokens(table, contents, 1024, seed=3))
    assert len(np.intersect1d(chosen, choose_tokens(table, contents, 1024, seed=4))) < 200
    assert len(choose_tokens(table, contents, 10**6, seed=0)) == 10000
