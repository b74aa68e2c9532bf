"""Prediction of sink dimensions, on weights whose spikes are known."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import sinkscope
from sinkscope.errors import InputError
from sinkscope.profile import Backbone, Profile, Provenance, SinkDimension
from sinkscope.significance import NO_PRIOR, scale_prior
from sinkscope.weights import PredictionSettings, compare, predict, predict_loaded, with_weights
from sinkscope.weights.decision import fisher
from sinkscope.weights.layer_scores import LayerScores, p_values
from sinkscope.weights.statistic import score_rows

LAYERS, WIDTH = 8, 128
SIZES = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}


def llama(seed=0, layers=LAYERS):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, intermediate_size=256, **SIZES))


def mixtral(seed=0, intermediate=256):
    torch.manual_seed(seed)
    config = MixtralConfig(num_hidden_layers=LAYERS, intermediate_size=intermediate, num_local_experts=4, **SIZES)
    return MixtralForCausalLM(config)


def spike(weight, dims, times, seed=0):
    """One neuron writes `times` the median row maximum into `dims`; `weight` is [D, I]."""
    neuron = int(np.random.default_rng(seed).integers(weight.shape[1]))
    with torch.no_grad():
        weight[list(dims), neuron] = times * weight.abs().amax(1).median()


def test_scores_are_their_definition():
    generator = torch.Generator().manual_seed(0)
    matrix, scale = torch.randn(48, 300, generator=generator), torch.rand(48, generator=generator) + 0.5
    matrix[7, 11] = 40.0
    scores = score_rows(matrix, scale)
    scaled = (matrix * scale[:, None]).double().abs()
    largest, norm = scaled.amax(1).numpy(), scaled.norm(dim=1).numpy()
    assert np.allclose(scores.ratio, largest / np.median(largest))
    assert np.allclose(scores.norm_ratio, norm / np.median(norm))
    column = scaled[:, 11].square()
    assert scores.odds[7] == pytest.approx(float(column[7] / (column.sum() - column[7])))
    p_value = p_values([LayerScores(scores)])[0]
    assert p_value.argmin() == 7
    assert p_value[7] < 0.01


def test_fellow_dimensions_do_not_hide_each_other_and_blocks_do_not_matter(monkeypatch):
    matrix = torch.randn(64, 500, generator=torch.Generator().manual_seed(1)) * 0.02
    matrix[[3, 9, 40], 77] = torch.tensor([5.0, -4.0, 3.0])
    whole = score_rows(matrix)
    assert set(np.argsort(-whole.score)[:3]) == {3, 9, 40}
    assert (whole.odds[[3, 9, 40]] > 100).all()
    monkeypatch.setattr("sinkscope.weights.statistic.BLOCK", 64 * 37)
    again = score_rows(matrix.bfloat16().float())
    assert np.allclose(again.score, score_rows(matrix.bfloat16()).score)
    assert set(np.argsort(-again.score)[:3]) == {3, 9, 40}


def test_random_initialisations_have_none():
    for seed in range(6):
        prediction = predict_loaded(llama(seed))
        assert prediction.verdict == "none"
        assert prediction.dims == ()
        assert "stands out" in prediction.reason


@pytest.mark.parametrize("dims", [[5], [5, 77], [5, 20, 77, 100, 127]])
@pytest.mark.parametrize("times", [6.0, 30.0])
def test_planted_spikes_are_found(dims, times):
    model = llama()
    spike(model.model.layers[2].mlp.down_proj.weight, dims, times)
    prediction = predict_loaded(model)
    assert sorted(prediction.dims) == dims
    leading = prediction.sink_dimensions[0]
    assert leading.created_layers == (2,)
    assert leading.bands == ((3, LAYERS - 1),)
    assert leading.ratio == pytest.approx(times, rel=0.05)
    assert prediction.matrices == 2 * LAYERS


def test_regimes_and_removal():
    model = llama(layers=12)
    for layer, times in ((1, 20.0), (5, 30.0), (11, 25.0)):
        spike(model.model.layers[layer].mlp.down_proj.weight, [40], times, layer)
    (entry,) = predict_loaded(model).sink_dimensions
    assert (entry.dim, entry.created_layers, entry.removed_layers) == (40, (1, 5), (11,))
    assert entry.bands == ((2, 5), (6, 11))


def test_what_is_written_too_late_is_no_sink():
    model = llama()
    spike(model.model.layers[LAYERS - 1].mlp.down_proj.weight, [40], 30.0)
    assert predict_loaded(model).verdict == "none"


def test_input_norms_are_evidence_beside_the_decision():
    model = llama()
    spike(model.model.layers[2].mlp.down_proj.weight, [5], 30.0)
    with torch.no_grad():
        for layer in model.model.layers[3:]:
            layer.input_layernorm.weight[5] = -0.25
            layer.post_attention_layernorm.weight[5] = 0.25
    (entry,) = predict_loaded(model).sink_dimensions
    assert entry.bands == ((3, LAYERS - 1),)
    assert entry.input_norm == pytest.approx(0.25)
    assert entry.to_dict()["input_norm"] == 0.25


def test_transposed_and_expert_layouts(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=4, vocab_size=64, n_positions=32))
    spike(model.transformer.h[3].mlp.c_proj.weight.T, [9], 20.0)
    model.save_pretrained(tmp_path / "gpt2")
    assert predict(tmp_path / "gpt2").dims == (9,)
    assert predict_loaded(model).dims == (9,)
    experts = mixtral(intermediate=96)
    weight = dict(experts.named_parameters())["model.layers.2.mlp.experts.down_proj"]
    spike(weight[3], [70], 20.0)
    experts.save_pretrained(tmp_path / "mixtral")
    stored, loaded = predict(tmp_path / "mixtral"), predict_loaded(experts)
    assert stored.dims == loaded.dims == (70,)
    assert stored.sink_dimensions == loaded.sink_dimensions


def test_layers_that_write_a_tenth_create_and_the_rest_reinforce():
    model = llama(layers=12)
    for layer, times in ((1, 200.0), (2, 120.0), (3, 60.0), (4, 18.0), (7, 80.0), (8, 140.0)):
        spike(model.model.layers[layer].mlp.down_proj.weight, [40], times, seed=layer)
    (entry,) = predict_loaded(model).sink_dimensions
    assert entry.created_layers == (1, 2, 3, 7, 8)
    assert entry.reinforced_layers == (4,)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dims", [[5], [5, 20, 77]])
def test_weak_spikes_in_one_expert_are_found(dims, layers):
    model = mixtral(len(dims) + layers)
    weights = dict(model.named_parameters())
    for layer in range(layers):
        spike(weights[f"model.layers.{layer}.mlp.experts.down_proj"][2], dims, 5.0, seed=layer)
    assert sorted(predict_loaded(model).dims) == dims


@pytest.mark.parametrize("degrees", [None, 4])
@pytest.mark.parametrize("matrices", [1, 4])
def test_p_values_of_ordinary_rows_are_not_too_small(degrees, matrices):
    # Entries of differing spread from layer to layer, normal or heavy-tailed; every row of them is ordinary.
    random = np.random.default_rng(0)
    smallest = []
    for _ in range(12):
        layers = []
        for _ in range(6):
            spread = float(random.uniform(0.5, 2.0))
            parts = []
            for _ in range(matrices):
                entries = (
                    random.standard_normal((128, 96)) if degrees is None else random.standard_t(degrees, (128, 96))
                )
                parts.append(score_rows(torch.from_numpy(entries * spread).float()))
            layer = LayerScores(parts[0])
            for part in parts[1:]:
                layer.add(part)
            layers.append(layer)
        smallest.append(p_values(layers))
    observed = np.stack(smallest)
    for level in (0.1, 0.01, 0.001):
        assert (observed <= level).mean() <= 1.3 * level


def test_tails_alike_make_a_sharp_prior_and_others_a_weak_one():
    random = np.random.default_rng(0)
    alike = scale_prior(random.gamma(20, 1 / 20, 64), 20)
    spread = scale_prior(random.gamma(20, 1 / 20, 64) * random.choice([0.2, 1.0, 5.0], 64), 20)
    assert alike.shape > 40
    assert alike.rate / (alike.shape - 1) == pytest.approx(1.0, rel=0.1)
    assert spread.shape < 5
    assert scale_prior(np.array([1.0]), 20) == NO_PRIOR


def test_two_witnesses():
    model = llama()
    spike(model.model.layers[2].mlp.down_proj.weight, [5], 30.0)
    prediction = predict_loaded(model)

    def profile(*dims, width=WIDTH):
        return Profile(
            name="p",
            verdict="sinks" if dims else "none",
            reason="",
            backbone=Backbone(model_type="llama", hidden_size=width, num_layers=LAYERS),
            sink_dimensions=[SinkDimension(dim=dim) for dim in dims],
            provenance=Provenance(kind="measured"),
        )

    agreeing = with_weights(profile(5), prediction)
    assert agreeing.evidence.weights["agrees"]
    assert agreeing.evidence.weights["dimensions"][0]["layers"] == [2]
    assert agreeing.evidence.notes == []
    other = with_weights(profile(5, 9), prediction)
    assert not other.evidence.weights["agrees"]
    assert other.evidence.weights["only_activations"] == [9]
    assert any("9 is not named by the weights" in note for note in other.evidence.notes)
    assert compare(profile(), prediction)["only_weights"] == [5]
    with pytest.raises(InputError, match="width 64"):
        compare(profile(5, width=64), prediction)


def test_fisher_is_uniform_under_independence():
    p_values = np.random.default_rng(0).random((20, 4000))
    combined = fisher(p_values)
    assert np.quantile(combined, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.03)


def test_settings_are_checked_and_public_name():
    assert sinkscope.predict is predict
    with pytest.raises(InputError, match="companion_ratio"):
        PredictionSettings(companion_ratio=2.0)
