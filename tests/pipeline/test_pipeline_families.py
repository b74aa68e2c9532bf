"""The main job on random models with planted massive activations: exactly the planted dimensions come back."""

import functools

import numpy as np
import pytest
import torch
from family_models import LAYERS, WIDTH, make_model, make_processor, make_tokenizer, plant

import sinkscope
from sinkscope.errors import InputError
from sinkscope.store.reader import RunReader


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def first(ids):
    return torch.arange(ids.shape[1])[None] == torch.zeros(ids.shape[0], 1)


@pytest.mark.parametrize(
    ("family", "dims", "value", "start"),
    [
        ("llama", [5], 60.0, 2),
        ("qwen2", [11, 40], 500.0, 1),
        ("gpt2", [7], 3000.0, 2),
        ("gemma2", [3, 17, 33], 900.0, 2),
        ("qwen2_vl", [9, 21], 120.0, 3),
    ],
)
def test_planted_dimensions_come_back(tmp_path, tokenizer, family, dims, value, start):
    model = make_model(family)
    plant(model, dims, value, start, LAYERS, first)
    profile = sinkscope.profile_model(model, tokenizer, samples=24, attention=False, run=tmp_path / "run.h5")
    assert profile.verdict == "sinks"
    assert sorted(profile.dims) == dims
    assert [(band.first_layer, band.last_layer) for band in profile.bands] == [(start, LAYERS - 1)]
    assert profile.backbone.hidden_size == WIDTH
    assert profile.backbone.num_layers == LAYERS
    assert profile.evidence.attention is None
    assert set(profile.sink_dimensions[0].triggers) <= {"bos", "first"}
    assert all(abs(abs(entry.typical_value) - value) < 0.05 * value for entry in profile.sink_dimensions)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "llava"])
def test_random_models_have_no_sinks(tokenizer, family):
    helper = make_processor(tokenizer) if family == "llava" else tokenizer
    profile = sinkscope.profile_model(make_model(family), helper, samples=40)
    assert profile.verdict == "none"
    assert profile.dims == ()
    assert profile.reason


def test_visual_sinks_of_a_multimodal_model(tmp_path, tokenizer):
    model = make_model("llava")
    image = tokenizer.convert_tokens_to_ids("<image>")

    def some(ids):
        visual = ids == image
        return first(ids) | (visual & (visual.cumsum(1) % 8 == 1))

    plant(model, [12], 200.0, 2, LAYERS, some)
    path = tmp_path / "run.h5"
    profile = sinkscope.profile_model(model, make_processor(tokenizer), samples=48, attention=False, run=path)
    assert profile.dims == (12,)
    assert profile.sink_dimensions[0].fires_on_visual
    assert "visual" in profile.sink_dimensions[0].triggers
    with RunReader(path) as run:
        assert (run.tokens.kind == 2).sum() >= 16
        assert run.attributes.calibration["kinds"]["visual"] == (run.tokens.kind == 2).sum()


def test_delimiter_triggers_are_named(tokenizer):
    model = make_model("llama")
    stops = torch.tensor([i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip() in {".", ","}])
    plant(model, [30], 150.0, 2, LAYERS, lambda ids: torch.isin(ids, stops))
    profile = sinkscope.profile_model(model, tokenizer, samples=24, attention=False)
    assert profile.dims == (30,)
    assert profile.sink_dimensions[0].triggers[0] == "delimiter"
    named = {example["text"].strip() for example in profile.sink_dimensions[0].model_extra["trigger_tokens"]}
    assert named <= {".", ","}


def test_decisions_do_not_depend_on_the_batch(tmp_path, tokenizer, monkeypatch):
    """Other batches round differently, but dims, layers and bands stay."""
    import sinkscope.pipeline as pipeline

    model = make_model("qwen2")
    plant(model, [11, 40], 90.0, 2, LAYERS, first)
    original = pipeline.CaptureSettings
    profiles = []
    for batch_tokens in (256, 4096):
        limited = functools.partial(original, batch_tokens=batch_tokens)
        monkeypatch.setattr(pipeline, "CaptureSettings", limited)
        profiles.append(sinkscope.profile_model(model, tokenizer, samples=24, attention=False))
    assert profiles[0].dims == profiles[1].dims
    for one, other in zip(profiles[0].bands, profiles[1].bands, strict=True):
        assert (one.first_layer, one.last_layer, one.dims) == (other.first_layer, other.last_layer, other.dims)
        assert np.isclose(one.tau_score, other.tau_score, rtol=1e-3)


def test_profile_survives_resume_of_a_finished_run(tmp_path, tokenizer):
    model = make_model("llama")
    plant(model, [5], 60.0, 2, LAYERS, first)
    path = tmp_path / "run.h5"
    once = sinkscope.profile_model(model, tokenizer, samples=16, run=path)
    again = sinkscope.profile_model(model, tokenizer, samples=16, run=path, resume=True)
    assert once.to_json() == again.to_json()
    # What the weights say is all that a run file does not hold.
    assert once.evidence.weights["predicted"] == []
    assert {**once.model_dump(), "evidence": None} == {**sinkscope.discover(path).model_dump(), "evidence": None}


def test_own_texts(tokenizer):
    model = make_model("llama")
    plant(model, [5], 60.0, 2, LAYERS, first)
    texts = [f"Text number {i}. " + "Some words, and others; more of them. " * 8 for i in range(20)]
    profile = sinkscope.profile_model(model, tokenizer, texts=texts, attention=False)
    assert profile.dims == (5,)
    assert profile.provenance.calibration["source"] == "given texts"


def test_what_cannot_be_profiled_is_said(tokenizer):
    with pytest.raises(InputError, match="tokenizer"):
        sinkscope.profile_model(make_model("llama"))
    with pytest.raises(InputError, match="no pictures"):
        sinkscope.profile_model(make_model("llama"), tokenizer, images=[])
    with pytest.raises(InputError, match="demo:llm"):
        sinkscope.load("demo:other")
