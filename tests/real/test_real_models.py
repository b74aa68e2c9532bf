"""Discovery on real pretrained models: the dimensions that exchange experiments name, and nothing else."""

import pytest
import torch

import sinkscope
from sinkscope.profile import Profile
from sinkscope.profile.score import sink_mask

pytestmark = pytest.mark.real_model

UNSEEN = (
    "The committee met on Tuesday, the 4th of June, to discuss the budget. It was late; nobody wanted to begin. The "
    'chairman said: "We have the figures, the forecasts and the letters." Then the clerk read them aloud, one by one, '
    "while the rain beat on the windows of the old hall.\n\nThe first letter came from the harbour. It asked for a new "
    "crane, for the second one had fallen into the sea in March. The second came from the school: the roof leaks, the "
    "stove smokes, and the books are forty years old. The third was unsigned, but all knew the hand of the miller. "
    "He wrote of the river, of the dam, and of the trout that no longer came up to the mill in the spring."
)


@pytest.fixture(scope="module")
def smollm2_profile(smollm2: str) -> tuple[sinkscope.Profile, object]:
    loaded = sinkscope.load(smollm2)
    return sinkscope.profile_model(loaded, samples=32), loaded


def test_smollm2_has_one_sink_dimension_in_two_regimes(smollm2_profile: tuple[Profile, object]) -> None:
    profile, _ = smollm2_profile
    assert profile.verdict == "sinks"
    assert profile.dims == (507,)
    early, late = profile.bands
    assert early.first_layer in (2, 3)
    assert early.last_layer in (9, 10, 11)
    assert (late.first_layer, late.last_layer) == (12, 29)
    entry = profile.sink_dimensions[0]
    assert entry.sign == 1
    assert entry.typical_value == pytest.approx(24900, rel=0.1)
    assert entry.phi == pytest.approx(23.8, abs=0.1)
    assert entry.p_value < 1e-6
    assert entry.stability == 1.0
    assert entry.attention_drawn > 0.2
    assert {"first", "text"} <= set(entry.triggers)
    assert 157 in [rejected.dim for rejected in profile.content_dimensions]
    assert 247 in [rejected.dim for rejected in profile.companion_dimensions]
    assert profile.evidence.attention["mean_average_precision"] > 0.95


def test_smollm2_flags_the_tokens_that_draw_attention(smollm2_profile: tuple[Profile, object]) -> None:
    """On a text that calibration did not see, against attention maps of the eager kernel."""
    profile, loaded = smollm2_profile
    ids = loaded.tokenizer(UNSEEN, return_tensors="pt", add_special_tokens=False).input_ids
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        output = loaded.model(ids, output_hidden_states=True, output_attentions=True)
    length = ids.shape[1]
    later = torch.tril(torch.ones(length, length), -1)
    counted = torch.arange(length) < length - 40
    agreements = []
    for band in profile.bands:
        for layer in range(band.first_layer, band.last_layer + 1):
            drawn = (output.attentions[layer][0].mean(0) * later).sum(0) / later.sum(0).clamp(min=1)
            sinks = (drawn > 0.10) & counted
            flagged = sink_mask(output.hidden_states[layer][0], profile, layer) & counted
            if sinks.any():
                agreements.append(2 * float((sinks & flagged).sum()) / float(sinks.sum() + flagged.sum()))
    assert len(agreements) >= 24
    assert sum(agreements) / len(agreements) > 0.9


def test_gemma_is_found_although_phi_saturates(gemma) -> None:
    profile = sinkscope.profile_model(str(gemma), samples=32)
    assert profile.verdict == "sinks"
    assert profile.dims in [(163,), (163, 400)]
    assert any("phi saturates" in note for note in profile.evidence.notes)
    assert 163 in profile.band_at(10).dims
    assert profile.backbone.hidden_size == 640
    assert profile.models == [gemma.name]


@pytest.mark.parametrize("name", ["gpt2basic-gold-v4", "stories260K"])
def test_small_checkpoints_without_massive_activations(checkpoint, name: str) -> None:
    """One has no outlier dimension; the other is borderline: nothing in it is massive on tokens that are sinks."""
    profile = sinkscope.profile_model(str(checkpoint(name)))
    assert profile.verdict == "none"
    assert profile.dims == ()
    assert profile.bands == []
    assert profile.reason
    assert profile.evidence.attention is not None
    assert profile.models == [name]
