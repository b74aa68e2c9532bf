"""Sinks of more than one kind, and models whose layers differ: what is found where, on runs whose sinks are known."""

import numpy as np
import pytest
from synthetic_runs import LENGTH, SAMPLES, attention_of, plant, positions, residual_stream, write

from sinkscope.discovery import discover
from sinkscope.profile.score import sink_mask
from sinkscope.store.layout import KIND_VISUAL

WIDTH, LAYERS = 128, 8
LATER = np.arange(LAYERS) >= 2


@pytest.fixture
def first_tokens():
    return positions() == 0


@pytest.fixture
def delimiters():
    return (positions() % 12 == 7) & (positions() < 24)


def test_dimensions_with_sinks_of_their_own_are_all_found(tmp_path, first_tokens, delimiters):
    """Each draws the attention on its own tokens only: a minority of all attention sinks in one of the two."""
    states = residual_stream(20, WIDTH, LAYERS)
    plant(states, [11], 300.0, first_tokens, 2, LAYERS)
    plant(states, [77], 200.0, delimiters, 2, LAYERS)
    sinks = first_tokens | delimiters
    profile = discover(write(tmp_path / "run.h5", states, drawn=attention_of(sinks[:, None] & LATER, LAYERS, 0.2)))
    assert sorted(profile.dims) == [11, 77]
    assert (sink_mask(_tensor(states[5]), profile, 5).numpy() == sinks).all()


def test_attention_beyond_massive_activations_hides_nothing(tmp_path, first_tokens, delimiters):
    """Other tokens may draw attention without any massive activation."""
    states = residual_stream(21, WIDTH, LAYERS)
    plant(states, [11], 300.0, first_tokens, 2, LAYERS)
    drawn = attention_of((first_tokens | delimiters)[:, None] & LATER, LAYERS, 0.2)
    profile = discover(write(tmp_path / "run.h5", states, drawn=drawn))
    assert profile.dims == (11,)
    assert (sink_mask(_tensor(states[5]), profile, 5).numpy() == first_tokens).all()


@pytest.mark.parametrize("between", ["quiet", "massive"])
def test_hybrids_may_spike_before_softmax_attention_only(tmp_path, first_tokens, between):
    layers, softmax = 16, np.arange(16) % 4 == 3
    states = residual_stream(22, WIDTH, layers)
    for layer in range(2, layers):
        if softmax[layer] or between == "massive":
            plant(states, [50], 300.0, first_tokens, layer, layer)
    drawn = attention_of(first_tokens[:, None] & softmax, layers)
    drawn[:, ~softmax] = np.nan
    profile = discover(write(tmp_path / "run.h5", states, drawn=drawn))
    assert profile.dims == (50,)
    spans = [(band.first_layer, band.last_layer) for band in profile.bands]
    assert spans == ([(3, 3), (7, 7), (11, 11), (15, 15)] if between == "quiet" else [(3, 15)])


@pytest.mark.parametrize(
    ("softmax", "reason", "drawn"),
    [
        ((1, 4), "but these draw no attention; no", "these draw 0.00"),
        ((0, 7), "but the attention that these draw was not measured; no", "none of them was measured"),
    ],
)
def test_reason_and_dimension_say_the_same_of_a_hybrid(tmp_path, delimiters, softmax, reason, drawn):
    states = residual_stream(26, WIDTH, LAYERS)
    for layer in range(2, 6):
        plant(states, [50], 300.0 / layer, delimiters, layer, layer)
    attention = attention_of(np.zeros(SAMPLES * LENGTH, bool), LAYERS)
    attention[:, ~np.isin(np.arange(LAYERS), softmax)] = np.nan
    profile = discover(write(tmp_path / "run.h5", states, drawn=attention))
    assert profile.reason.startswith(f"dimension 50 is massive on few tokens, {reason} dimension")
    assert [(entry.dim, drawn in entry.reason) for entry in profile.content_dimensions] == [(50, True)]


def test_text_visual_and_propagated_sinks_are_told_apart(tmp_path, first_tokens):
    """Sinks from the vision encoder hold their dimension when they enter layer 0 already."""
    states = residual_stream(23, WIDTH, LAYERS)
    visual = (positions() >= 5) & (positions() < 20) & (np.repeat(np.arange(SAMPLES), LENGTH) % 2 == 0)
    from_encoder, inside = visual & (positions() == 9), visual & (positions() == 15)
    plant(states, [30], 300.0, first_tokens | inside, 2, LAYERS)
    plant(states, [90], 300.0, from_encoder, 0, LAYERS)
    kinds = np.where(visual, KIND_VISUAL, 0)
    sinks = first_tokens | inside | from_encoder
    drawn = attention_of(sinks[:, None] & LATER, LAYERS, 0.2)
    drawn[from_encoder, :2] = 0.2
    profile = discover(write(tmp_path / "run.h5", states, drawn=drawn, kinds=kinds))
    assert sorted(profile.dims) == [30, 90]
    found = {}
    for entry in profile.evidence.model_extra["sinks_by_kind"]:
        if entry["last_layer"] == LAYERS - 1:
            found[entry["kind"]] = entry["tokens"]
            assert entry["attention_drawn"] == pytest.approx(0.2, abs=1e-6)
    assert found == {"text": SAMPLES, "visual": SAMPLES // 2, "propagated": SAMPLES // 2}
    assert {entry.dim: entry.fires_on_visual for entry in profile.sink_dimensions} == {30: True, 90: True}


def test_an_all_token_outlier_that_is_raised_on_sinks_is_a_companion(tmp_path, first_tokens):
    """As in a real model: the largest dimension of ordinary tokens, thrice as large on sinks, far below the spike."""
    states = residual_stream(24, WIDTH, LAYERS)
    for layer in range(LAYERS + 1):
        states[layer][:, 40] += 60.0
    plant(states, [70], 1000.0, first_tokens, 2, LAYERS)
    plant(states, [40], 180.0, first_tokens, 2, LAYERS)
    profile = discover(write(tmp_path / "run.h5", states, drawn=attention_of(first_tokens[:, None] & LATER, LAYERS)))
    assert profile.dims == (70,)
    assert 40 in [entry.dim for entry in profile.companion_dimensions]
    assert 40 in [entry.dim for entry in profile.all_token_outliers]


def test_short_samples_are_judged_by_their_attention_too(tmp_path):
    """Samples of 30 tokens have none with 40 later queries."""
    from sinkscope.capture.synthetic import write_synthetic

    length, samples = 30, 24
    generator = np.random.default_rng(25)
    scale = np.exp(generator.normal(0, 0.3, WIDTH))
    states = [generator.normal(size=(samples * length, WIDTH)) * scale]
    for _ in range(LAYERS):
        states.append(states[-1] + 0.4 * generator.normal(size=states[0].shape) * scale)
    states = np.array(states)
    position = np.tile(np.arange(length), samples)
    plant(states, [99], 300.0, position == 0, 2, LAYERS)
    plant(states, [17], 200.0, position % 10 == 5, 2, LAYERS)
    drawn = attention_of((position == 0)[:, None] & LATER, LAYERS)
    run = write_synthetic(
        tmp_path / "run.h5", states.astype(np.float32), np.repeat(np.arange(samples), length), drawn=drawn
    )
    profile = discover(run)
    assert profile.dims == (99,)
    assert 17 in [entry.dim for entry in profile.content_dimensions]
    assert profile.evidence.attention["tokens"] == samples * length // 2


def _tensor(states):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(states.astype(np.float32))
