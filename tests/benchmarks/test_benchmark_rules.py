"""The published rules on arrays small enough to work out by hand."""

import numpy as np
import pytest

from benchmarks.rules import RULES, Activations
from benchmarks.rules.activations import phi_tokens
from benchmarks.rules.by_population import attention_first_dims, gu_tokens, ltpo_dims, omni_dims
from benchmarks.rules.by_size import (
    heretic_detections,
    heretic_dims,
    heretic_tokens,
    kang_dims,
    prefix_tokens,
    sun_dims,
    sun_tokens,
)


def flat(layers, tokens, width, value=0.1):
    """All magnitudes alike, so that every median is `value`."""
    return np.full((layers + 1, tokens, width), value, np.float32)


def activations(states, sample=None, visual=None, drawn=None):
    count = states.shape[1]
    sample = np.zeros(count, np.int64) if sample is None else np.asarray(sample, np.int64)
    position = np.concatenate([np.arange(size) for size in np.unique(sample, return_counts=True)[1]])
    visual = np.zeros(count, bool) if visual is None else np.asarray(visual, bool)
    return Activations(states, sample, position, visual, drawn)


def test_sun_needs_both_the_magnitude_and_the_ratio():
    states = flat(3, 4, 8)
    states[2, 0, 5] = -200.0  # 2000 medians
    states[2, 1, 6] = 99.0  # 990 medians, and not above 100
    states[3, 1, 6] = 100.5  # 1005 medians
    states[0, 0, 7] = 500.0  # the embeddings are no output of a layer
    data = activations(states)
    assert sun_dims(data) == [5, 6]
    assert sun_tokens(data, 2, []).tolist() == [True, False, False, False]
    assert sun_tokens(data, 3, []).tolist() == [False, True, False, False]
    states[3] *= 10  # 1005, but the median is 1 now: still above 1000 medians
    assert sun_dims(data) == [5, 6]
    states[3, :, :6] = 2.0  # and now it is not
    assert sun_dims(data) == [5]


def test_sun_takes_the_median_of_the_sample():
    states = flat(1, 4, 8)
    states[1, 2:] = 1.0
    states[1, 0, 3] = states[1, 2, 4] = 400.0
    assert sun_dims(activations(states, [0, 0, 1, 1])) == [3]


def test_kang_phi():
    # With one value v among D - 1 ones, phi = v / sqrt((v^2 + D - 1) / D); for D = 500 and v = 100, phi = 21.8.
    states = flat(2, 3, 500, 1.0)
    states[1, 2, 9] = 100.0
    states[2, 0, 9] = states[2, 0, 10] = 1000.0  # the state after the last layer enters none
    data = activations(states)
    assert kang_dims(data) == [9]
    assert phi_tokens(data, 1, [9]).tolist() == [False, False, True]
    assert not phi_tokens(data, 1, [10]).any()
    assert not phi_tokens(data, 1, []).any()
    # Two equal dimensions share the energy: phi = 1000 / sqrt(2e6 / 500) = 15.8.
    assert not phi_tokens(data, 2, [9, 10]).any()


def test_heretic_criteria_one_by_one():
    token = np.array([[150.0, 0.05, 0.1, 0.15, 0.05, 0.1, 0.15, 0.1, 0.1]], np.float32)
    assert [found.tolist() for found in heretic_detections(token)] == [[0], [0]]
    assert not len(heretic_detections(token * 0.6)[0])  # 90
    wide = token.copy()
    wide[0, 1:] *= 2  # 750 medians
    assert not len(heretic_detections(wide)[0])
    # Median and median deviation are both 0.1: 1000.5 medians, but only 999.5 deviations.
    spread = np.array([[100.05, 0.0, 0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.2]], np.float32)
    assert not len(heretic_detections(spread)[0])
    spread[0, 1:4] = 0.1
    assert len(heretic_detections(spread)[0])


def test_heretic_cluster_of_at_most_three():
    def token(*top):
        return np.array([[*top, *np.linspace(0.09, 0.11, 20)]], np.float32)

    assert heretic_detections(token(300.0, 290.0, 280.0))[1].tolist() == [0, 1, 2]
    assert not len(heretic_detections(token(300.0, 290.0, 280.0, 270.0))[1])
    # The cluster ends at the largest step, so a fourth value far below the rest is not part of it.
    assert heretic_detections(token(300000.0, 290000.0, 280000.0, 150.0))[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("layers", "found"), [(1, []), (2, [3])])
def test_heretic_needs_a_quarter_of_the_layers(layers, found):
    states = flat(8, 2, 16) + np.linspace(0, 0.01, 16, dtype=np.float32)
    states[3 : 3 + layers, 1, 3] = 400.0
    data = activations(states)
    assert heretic_dims(data) == found
    assert heretic_tokens(data, 3, [3]).tolist() == [False, True]
    assert not heretic_tokens(data, 3, []).any()


def test_attention_first_looks_at_the_tokens_with_the_most_attention():
    states = flat(5, 20, 128, 1.0)
    drawn = np.full((20, 5), 0.01, np.float32)
    drawn[4] = 0.5
    drawn[11] = 0.3
    states[2:5, 4, 60] = 30.0
    states[2:5, 11, 61] = 20.0
    states[:, 7, 99] = 500.0  # draws nothing
    data = activations(states, drawn=drawn)
    assert attention_first_dims(data) == [60, 61]
    assert attention_first_dims(activations(states)) == []
    # Visual tokens only, where there are any: a tenth of 10 tokens is one.
    visual = np.arange(20) >= 10
    assert attention_first_dims(activations(states, visual=visual, drawn=drawn))[0] == 61


def test_attention_first_always_returns_two():
    states = np.random.default_rng(0).normal(size=(9, 40, 64)).astype(np.float32)
    drawn = np.full((40, 8), 0.01, np.float32)
    assert len(attention_first_dims(activations(states, drawn=drawn))) == 2


def test_ltpo_takes_the_median_of_the_middle_layer():
    states = flat(4, 5, 8, 1.0)
    states[2, :, 6] = 50.0  # an all-token outlier
    states[2, :, 2] = -20.0
    states[2, 0, 4] = 1000.0  # a sink
    states[1, :, 0] = states[3, :, 0] = 1000.0
    assert ltpo_dims(activations(states)) == [6, 2]


def test_omni_needs_most_layers_and_a_contrast():
    states = flat(5, 10, 2000, 1.0)
    for layer in range(1, 6):
        states[layer, :, 7] = 24.0  # alike on all tokens: no contrast
        states[layer, :, 8] = 25.0
        states[layer, :3, 8] = 400.0
    states[1, :, 9] = 200.0  # one layer of six
    data = activations(states)
    assert omni_dims(data) == [8]
    states[4:, :, 8] = 1.0  # three of six hidden states are not more than half
    assert omni_dims(data) == []


def test_omni_without_sinks_finds_none():
    states = np.random.default_rng(0).normal(size=(5, 30, 64)).astype(np.float32)
    assert omni_dims(activations(states)) == []


def test_prefix_tokens_are_relative_to_their_sample():
    states = flat(1, 6, 4, 1.0)
    states[1, 1, 2] = 65.0
    states[1, 2, 2] = 64.0
    states[1, 3:] = 2.0
    states[1, 4, 0] = 127.0
    states[1, 5, 0] = -129.0
    data = activations(states, [0, 0, 0, 1, 1, 1])
    assert prefix_tokens(data, 1, []).tolist() == [False, False, False, False, False, False]
    states[1, 2, 2] = 1.0  # medians are now 1 and, with two large tokens of three, 127
    states[1, 4, 0] = 2.0
    assert prefix_tokens(data, 1, []).tolist() == [False, True, False, False, False, True]


def test_gu_tokens():
    drawn = np.array([[0.31, np.nan], [0.3, np.nan], [0.0, np.nan]], np.float32)
    data = activations(flat(2, 3, 4), drawn=drawn)
    assert gu_tokens(data, 0, []).tolist() == [True, False, False]
    assert not gu_tokens(data, 1, []).any()
    assert not gu_tokens(data, 2, []).any()
    assert not gu_tokens(activations(flat(2, 3, 4)), 0, []).any()


def test_every_rule_runs_on_ordinary_activations():
    generator = np.random.default_rng(1)
    states = generator.normal(size=(5, 48, 64)).astype(np.float32)
    sample = np.repeat(np.arange(4), 12)
    drawn = generator.uniform(0.001, 0.02, (48, 4)).astype(np.float32)
    data = activations(states, sample, drawn=drawn)
    for rule in RULES:
        dims = rule.dims(data) if rule.dims else []
        assert all(isinstance(dim, int) for dim in dims)
        if rule.tokens:
            mask = rule.tokens(data, 2, dims)
            assert mask.shape == (48,)
            assert mask.dtype == bool
        if rule.name in {"Sun 100 / 1000x", "Kang phi >= 20", "heretic", "Omni 20x median"}:
            assert dims == []
    assert len({rule.name for rule in RULES}) == len(RULES) == 8
