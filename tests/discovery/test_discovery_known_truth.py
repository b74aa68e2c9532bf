"""Discovery on run files whose sinks are known."""

import numpy as np
import pytest
from synthetic_runs import LENGTH, SAMPLES, attention_of, plant, positions, residual_stream, write

from sinkscope.discovery import DiscoverySettings, discover, profile_name
from sinkscope.errors import InputError
from sinkscope.profile.score import sink_mask

WIDTH, LAYERS = 128, 8


@pytest.fixture
def first_tokens():
    return positions() == 0


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("width", [48, 192])
def test_a_model_without_sinks_gives_none(tmp_path, width, heavy):
    verdicts = []
    for seed in range(4):
        states = residual_stream(seed, width, 4, heavy)
        profile = discover(write(tmp_path / f"{seed}.h5", states))
        verdicts.append(profile.verdict)
        assert profile.sink_dimensions == []
        assert profile.tau is None
        assert "no dimension rises" in profile.reason
    assert verdicts == ["none"] * 4


@pytest.mark.parametrize("dims", [[7], [7, 90], [3, 7, 11, 90, 127]])
@pytest.mark.parametrize("value", [40.0, 400.0, 40000.0])
def test_planted_dimensions_are_found_exactly(tmp_path, first_tokens, dims, value):
    states = residual_stream(0, WIDTH, LAYERS)
    plant(states, dims, value, first_tokens, 2, LAYERS)
    profile = discover(write(tmp_path / "run.h5", states))
    assert profile.verdict == "sinks"
    assert sorted(profile.dims) == sorted(dims)
    assert [(band.first_layer, band.last_layer) for band in profile.bands] == [(2, LAYERS - 1)]
    assert all(entry.first_layer == 2 and entry.last_layer == LAYERS - 1 for entry in profile.sink_dimensions)
    assert {entry.dim: entry.sign for entry in profile.sink_dimensions} == {
        dim: (1 if place % 2 == 0 else -1) for place, dim in enumerate(dims)
    }
    assert profile.evidence.attention is None


def test_frequent_triggers_and_the_flagged_tokens(tmp_path):
    states = residual_stream(1, WIDTH, LAYERS)
    tokens = np.random.default_rng(3).random(SAMPLES * LENGTH) < 0.1
    plant(states, [5, 60], 200.0, tokens, 3, LAYERS)
    profile = discover(write(tmp_path / "run.h5", states))
    assert sorted(profile.dims) == [5, 60]
    for layer in range(LAYERS):
        flagged = sink_mask(_tensor(states[layer]), profile, layer).numpy()
        assert (flagged == (tokens & (layer >= 3))).all()
        if layer >= 3:
            by_phi = sink_mask(_tensor(states[layer]), profile, layer, score="phi").numpy()
            assert (by_phi == tokens).all()


def test_two_regimes_are_two_bands(tmp_path, first_tokens):
    layers = 16
    states = residual_stream(2, WIDTH, layers)
    often = first_tokens | (np.random.default_rng(0).random(len(first_tokens)) < 0.03)
    plant(states, [33], 60.0, often, 2, 6)
    plant(states, [33], 2000.0, first_tokens, 9, 15)
    profile = discover(write(tmp_path / "run.h5", states))
    assert profile.dims == (33,)
    assert [(band.first_layer, band.last_layer, band.dims) for band in profile.bands] == [(2, 6, [33]), (9, 15, [33])]
    assert sink_mask(_tensor(states[4]), profile, 4).numpy().sum() == often.sum()
    assert sink_mask(_tensor(states[12]), profile, 12).numpy().sum() == first_tokens.sum()
    assert not sink_mask(_tensor(states[7]), profile, 7).any()


def test_a_sink_dimension_may_be_large_everywhere(tmp_path, first_tokens):
    """Facts from a real model: on ordinary tokens it holds most of the energy already, and phi saturates."""
    states = residual_stream(3, WIDTH, LAYERS)
    wobble = np.exp(np.random.default_rng(5).normal(0, 0.2, len(first_tokens)))
    for layer in range(2, LAYERS + 1):
        states[layer][:, 70] = 100.0 * wobble
    plant(states, [70], 1000.0, first_tokens, 2, LAYERS)
    profile = discover(write(tmp_path / "run.h5", states))
    assert profile.dims == (70,)
    assert any("saturates" in note for note in profile.evidence.notes)
    assert (sink_mask(_tensor(states[5]), profile, 5).numpy() == first_tokens).all()


def test_all_token_outliers_and_single_layer_spikes_are_no_sinks(tmp_path, first_tokens):
    states = residual_stream(4, WIDTH, LAYERS)
    for layer in range(LAYERS + 1):
        states[layer][:, 20] += 60.0
    plant(states, [50], 500.0, first_tokens, 4, 4)
    profile = discover(write(tmp_path / "run.h5", states))
    assert profile.verdict == "none"
    assert [entry.dim for entry in profile.all_token_outliers] == [20]
    assert profile.evidence.model_extra["fleeting_dimensions"] == [50]
    assert "single layers" in profile.reason


def test_rotating_tokens_do_not_persist(tmp_path):
    states = residual_stream(5, WIDTH, LAYERS)
    for layer in range(LAYERS + 1):
        plant(states, [9], 300.0, positions() == layer, layer, layer)
    assert discover(write(tmp_path / "run.h5", states)).verdict == "none"


def test_the_last_output_alone_is_no_layer(tmp_path, first_tokens):
    states = residual_stream(6, WIDTH, LAYERS)
    plant(states, [9], 300.0, first_tokens, LAYERS, LAYERS)
    profile = discover(write(tmp_path / "run.h5", states))
    assert profile.verdict == "none"


def test_content_dimensions_are_rejected_by_attention(tmp_path, first_tokens):
    states = residual_stream(7, WIDTH, LAYERS)
    digits = np.random.default_rng(1).random(len(first_tokens)) < 0.05
    plant(states, [17], 80.0, digits & ~first_tokens, 1, LAYERS)
    plant(states, [99], 300.0, first_tokens, 2, LAYERS)
    drawn = attention_of(first_tokens[:, None] & (np.arange(LAYERS) >= 2), LAYERS)
    with_attention = discover(write(tmp_path / "a.h5", states, drawn=drawn))
    assert with_attention.dims == (99,)
    assert [entry.dim for entry in with_attention.content_dimensions] == [17]
    assert "draw 0.00" in with_attention.content_dimensions[0].reason
    assert with_attention.evidence.attention["mean_f1"] == 1.0
    assert with_attention.sink_dimensions[0].attention_drawn == pytest.approx(0.4, abs=0.01)
    without = discover(write(tmp_path / "b.h5", states))
    assert sorted(without.dims) == [17, 99]


def test_massive_dimensions_without_any_attention_give_none(tmp_path, first_tokens):
    states = residual_stream(8, WIDTH, LAYERS)
    plant(states, [99], 300.0, first_tokens, 2, LAYERS)
    profile = discover(write(tmp_path / "run.h5", states, drawn=attention_of(first_tokens & False, LAYERS)))
    assert profile.verdict == "none"
    assert "99" in profile.reason
    assert "no attention" in profile.reason


def test_a_companion_is_told_from_a_core_dimension(tmp_path, first_tokens):
    states = residual_stream(9, WIDTH, LAYERS)
    plant(states, [40], 1000.0, first_tokens, 2, LAYERS)
    plant(states, [41], 100.0, first_tokens, 2, LAYERS, seed=1)
    drawn = attention_of(first_tokens[:, None] & (np.arange(LAYERS) >= 2), LAYERS)
    profile = discover(write(tmp_path / "run.h5", states, drawn=drawn))
    assert profile.dims == (40,)
    assert 41 in [entry.dim for entry in profile.companion_dimensions]


def test_published_tau_lies_in_the_interval_on_llama_2_like_data(tmp_path, first_tokens):
    """D = 4096, dimensions 1415 and 2533 with the published values, ordinary tokens of RMS around 1."""
    states = residual_stream(10, 4096, 4)
    states *= 0.5
    plant(states, [2533, 1415], 767.6, first_tokens, 1, 4)
    for layer in range(1, 5):
        states[layer][first_tokens, 1415] *= 458.6 / 767.6
    profile = discover(write(tmp_path / "run.h5", states, sampled=256))
    assert sorted(profile.dims) == [1415, 2533]
    low, high = profile.tau.phi_interval
    assert low < 20 <= high
    assert profile.tau.quality == "separated"


def test_same_run_same_profile_and_settings_are_checked(tmp_path, first_tokens):
    states = residual_stream(11, WIDTH, LAYERS)
    plant(states, [3], 100.0, first_tokens, 1, LAYERS)
    run = write(tmp_path / "run.h5", states)
    assert discover(run).to_json() == discover(run).to_json()
    with pytest.raises(InputError, match="false_discovery_rate"):
        DiscoverySettings(false_discovery_rate=2.0)


def test_little_data_is_said(tmp_path):
    from sinkscope.capture.synthetic import write_synthetic

    states = np.random.default_rng(0).normal(size=(4, 40, 32)).astype(np.float32)
    profile = discover(write_synthetic(tmp_path / "run.h5", states, np.repeat([0, 1], 20)))
    assert profile.verdict == "none"
    assert "only 2 samples: give at least 16; only 40 tokens: give at least 1000" in profile.evidence.notes
    enough = discover(tmp_path / "run.h5", DiscoverySettings(minimum_tokens=40))
    assert "only 2 samples: give at least 16" in enough.evidence.notes


@pytest.mark.parametrize(
    ("model_id", "name"),
    [("org/Some-Model", "some-model"), ("demo:llm", "demo-llm"), ("/a/b/Model.Q4.gguf", "model.q4"), ("...", "model")],
)
def test_profile_names(model_id, name):
    assert profile_name(model_id) == name


def _tensor(states):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(states.astype(np.float32))


@pytest.mark.parametrize(("drawn", "bands"), [(0.07, [(2, 7)]), (0.01, [(2, 4), (6, 7)])])
def test_a_layer_whose_tokens_draw_nothing_ends_a_band(tmp_path, first_tokens, drawn, bands):
    """Below the least attention of a sink a layer may still belong to its band; where nothing is drawn it does not."""
    states = residual_stream(12, WIDTH, LAYERS)
    plant(states, [99], 300.0, first_tokens, 2, LAYERS)
    attention = attention_of(first_tokens[:, None] & (np.arange(LAYERS) >= 2), LAYERS)
    attention[first_tokens, 5] = drawn
    profile = discover(write(tmp_path / "run.h5", states, drawn=attention))
    assert [(band.first_layer, band.last_layer) for band in profile.bands] == bands


def test_a_trigger_in_a_quarter_of_the_samples_is_found(tmp_path):
    states = residual_stream(13, WIDTH, LAYERS)
    rare = (positions() == 5) & (np.repeat(np.arange(SAMPLES), LENGTH) % 4 == 0)
    plant(states, [64], 300.0, rare, 2, LAYERS)
    assert discover(write(tmp_path / "a.h5", states)).dims == (64,)
    alone = residual_stream(13, WIDTH, LAYERS)
    plant(alone, [64], 300.0, np.arange(SAMPLES * LENGTH) == 70, 2, LAYERS)
    assert discover(write(tmp_path / "b.h5", alone)).verdict == "none"
