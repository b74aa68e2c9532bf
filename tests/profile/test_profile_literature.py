"""The published profiles that come with sinkscope, against what their sources say."""

import pytest
import torch

from sinkscope.profile import Profile
from sinkscope.profile.score import sink_mask
from sinkscope.registry import list_profiles, load_profile

LITERATURE = {
    "llama-2-7b": {2533, 1415},
    "llama-2-13b": {4743, 2100},
    "llava-1.5-7b": {2533, 1415},
    "llava-1.5-13b": {4743, 2100},
    "mistral-7b": {2070},
    "qwen2-vl-7b": {2570, 458},
}


@pytest.fixture(params=sorted(LITERATURE))
def published(request: pytest.FixtureRequest) -> Profile:
    return load_profile(request.param)


def test_dimensions(published: Profile) -> None:
    assert set(published.dims) == LITERATURE[published.name]
    assert published.verdict == "sinks"
    assert published.provenance.kind == "literature"
    assert "arXiv" in (published.provenance.source or "") or "code " in (published.provenance.source or "")


def test_nothing_measured_is_claimed(published: Profile) -> None:
    assert published.evidence.attention is None
    assert published.provenance.calibration is None
    for entry in published.sink_dimensions:
        assert (entry.phi, entry.energy_share, entry.p_value, entry.stability, entry.contrast) == (None,) * 5
        assert entry.attention_drawn is None
        assert entry.typical_value is None or entry.sign == (1 if entry.typical_value > 0 else -1)
    for band in published.bands:
        assert (band.scale, band.tau_score, band.quality) == (None, None, "unknown")


def test_layers_lie_inside_the_model_and_the_last_is_left_alone(published: Profile) -> None:
    depth = published.backbone.num_layers
    for entry in published.sink_dimensions:
        assert entry.first_layer is None or 1 <= entry.first_layer <= depth
        assert entry.last_layer is None or (entry.first_layer or 0) <= entry.last_layer <= depth
    assert published.var.excluded_layers == [depth - 1]


def test_tau_only_where_the_paper_gives_it() -> None:
    given = {
        entry.name for entry in list_profiles() if entry.profile and entry.profile.tau and entry.name in LITERATURE
    }
    assert given == {"llava-1.5-7b", "llava-1.5-13b", "qwen2-vl-7b"}
    for name in given:
        tau = load_profile(name).tau
        assert tau is not None
        assert (tau.phi, tau.quality) == (20.0, "unknown")


def test_a_sink_token_of_llava(published: Profile) -> None:
    """A token shaped as Sun et al. describe it is a sink by tau 20, an ordinary one is not."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, published.backbone.hidden_size, generator=generator)
    for dim, value in zip(published.dims, (2546.8, -1502.0), strict=False):
        states[0, dim] = value
    band = published.bands[0] if published.bands else None
    layer = 10 if band is None else band.first_layer
    assert sink_mask(states, published, layer).tolist() == [True, False]
    if band is not None:
        assert not sink_mask(states, published, band.first_layer - 1).any()
        assert not sink_mask(states, published, band.last_layer + 1).any()


def test_the_known_decoys_are_named_as_such() -> None:
    assert [entry.dim for entry in load_profile("llava-1.5-7b").all_token_outliers] == [1512]
    assert [entry.dim for entry in load_profile("qwen2-vl-7b").content_dimensions] == [3197]
    assert [entry.dim for entry in load_profile("mistral-7b").companion_dimensions] == [3398]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llava-1.5-7b", "LlavaConfig"),
        ("qwen2-vl-7b", "Qwen2VLConfig"),
        ("llama-2-7b", "LlamaConfig"),
        ("mistral-7b", "MistralConfig"),
    ],
)
def test_model_type_is_the_text_decoders_of_transformers(name: str, config: str) -> None:
    import transformers

    text = getattr(transformers, config)().get_text_config()
    assert load_profile(name).backbone.model_type == text.model_type
