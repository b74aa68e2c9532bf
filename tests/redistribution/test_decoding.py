"""Cached decoding in every mode equals recomputation without a cache, which equals the eager definition."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, MistralConfig, StaticCache
from var_models import (
    IMAGE_ID,
    SINK_IDS,
    eager_var,
    llava_inputs,
    profile_of,
    qwen2_vl_inputs,
    sample,
    tiny_llava,
    tiny_qwen2_vl,
)

from sinkscope.errors import InputError
from sinkscope.redistribution import applicator, var

EDITED = [1, 2]
DEFAULTS = {"p": 0.6, "rho": 0.7, "attention_floor": 0.2}
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def llava() -> nn.Module:
    return tiny_llava()


def extended(inputs: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """The prompt with `tokens` [B, n] after it."""
    ids = torch.cat([inputs["input_ids"], tokens], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], 1)
    longer = dict(inputs, input_ids=ids, attention_mask=mask)
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = (ids == IMAGE_ID).int()
    return longer


def text_only(tokens: Tensor, inputs: dict[str, Tensor], so_far: int) -> dict[str, Any]:
    """The arguments of one cached step."""
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(tokens), so_far, dtype=torch.long)], 1)
    return {"input_ids": tokens, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1)[:, -tokens.shape[1] :]}


GENERATED = torch.tensor([[9, 14, 33, 7, 20, 11, 28, 3], [21, 4, 4, 17, 42, 35, 2, 6]])
"""Tokens to feed as if generated: among them several of SINK_IDS."""


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@torch.no_grad()
def test_every_step_equals_the_eager_definition(kernel: str) -> None:
    model, profile = tiny_llava(), profile_of()
    model.config.text_config._attn_implementation = kernel
    inputs = llava_inputs([5, 2], [1, 2])
    assert set(GENERATED.flatten().tolist()) & set(SINK_IDS)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with var(model, profile) as run:
        out = model(**inputs, position_ids=positions, use_cache=True)
        steps = [out.logits[:, -1]]
        for index in range(GENERATED.shape[1]):
            step = text_only(GENERATED[:, index : index + 1], inputs, index + 1)
            out = model(**step, past_key_values=out.past_key_values)
            steps.append(out.logits[:, -1])
    length = inputs["input_ids"].shape[1]
    longer = extended(inputs, GENERATED)
    positions = (longer["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with eager_var(model, profile, longer, EDITED, **DEFAULTS):
        expected = model(**longer, position_ids=positions, use_cache=False).logits[:, length - 1 :]
    torch.testing.assert_close(torch.stack(steps, 1), expected, **TOLERANCE)
    plain = model(**longer, position_ids=positions, use_cache=False).logits[:, length - 1 :]
    assert float((plain - expected).abs().amax(-1).min()) > 1e-4
    counted = int(torch.isin(longer["input_ids"], torch.tensor(SINK_IDS)).sum())
    assert [entry.sink_tokens - entry.visual_sink_tokens for entry in run.summary()] == [counted] * 2


# A generated image token would be read as one more image without a cache.
def generated(model: nn.Module, inputs: dict[str, Tensor], **options: Any) -> Any:
    with torch.no_grad(), var(model, profile_of()):
        return model.generate(
            **inputs,
            max_new_tokens=8,
            output_logits=True,
            return_dict_in_generate=True,
            **{"do_sample": False, "suppress_tokens": [IMAGE_ID]} | options,
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"prompt_lookup_num_tokens": 2},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0},
        {"num_beams": 4, "cache_implementation": "static"},
        {"do_sample": True, "num_return_sequences": 3, "seed": 0},
    ],
    ids=str,
)
def test_generation_equals_generation_without_a_cache(llava: nn.Module, options: dict[str, Any]) -> None:
    batch = 1 if "prompt_lookup_num_tokens" in options else 2
    inputs = llava_inputs([5, 2][:batch], [1, 2][:batch])
    options = dict(options)
    seed = options.pop("seed", None)
    torch.manual_seed(seed or 0)
    cached = generated(llava, inputs, **options)
    for name in ("cache_implementation", "prompt_lookup_num_tokens"):
        options.pop(name, None)
    torch.manual_seed(seed or 0)
    recomputed = generated(llava, inputs, **options, use_cache=False)
    assert torch.equal(cached.sequences, recomputed.sequences)
    for mine, theirs in zip(cached.logits, recomputed.logits, strict=False):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)
    with torch.no_grad():
        plain = llava.generate(
            **inputs,
            max_new_tokens=8,
            output_logits=True,
            return_dict_in_generate=True,
            **{"do_sample": False, "suppress_tokens": [IMAGE_ID]} | options,
        )
    assert not torch.allclose(plain.logits[0], cached.logits[0], atol=1e-4)


def test_generation_equals_the_eager_definition_step_by_step(llava: nn.Module) -> None:
    inputs = llava_inputs([5, 2], [1, 2])
    result = generated(llava, inputs)
    length = inputs["input_ids"].shape[1]
    longer = extended(inputs, result.sequences[:, length:-1])
    positions = (longer["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), eager_var(llava, profile_of(), longer, EDITED, **DEFAULTS):
        expected = llava(**longer, position_ids=positions, use_cache=False).logits[:, length - 1 :]
    torch.testing.assert_close(torch.stack(result.logits, 1), expected, **TOLERANCE)
    assert torch.equal(expected.argmax(-1), result.sequences[:, length:])


@pytest.mark.parametrize("receivers", ["visual", "all"])
def test_nothing_depends_on_reading_numbers_back(llava: nn.Module, monkeypatch: Any, receivers: Any) -> None:
    """On a device, generated sinks are never read back; the CPU can take that path too."""
    inputs = llava_inputs([5, 2], [1, 2])
    options = {"max_new_tokens": 10, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), var(llava, profile_of(), receivers=receivers) as near:
        expected = llava.generate(**inputs, **options)
    monkeypatch.setattr(applicator, "reading_waits", lambda device: True)
    with torch.no_grad(), var(llava, profile_of(), receivers=receivers) as far:
        result = llava.generate(**inputs, **options)
    torch.testing.assert_close(torch.stack(result.logits), torch.stack(expected.logits), **TOLERANCE)
    assert near.summary() == far.summary()
    new = result.sequences[:, inputs["input_ids"].shape[1] :]
    assert bool(torch.isin(new, torch.tensor(SINK_IDS)).any())


def test_a_batch_generates_what_its_samples_do(llava: nn.Module) -> None:
    images = [1, 0, 2]
    inputs = llava_inputs([5, 6, 2], images)
    together = generated(llava, inputs)
    for index in range(3):
        alone = generated(llava, sample(inputs, index, images))
        for mine, theirs in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(mine[index], theirs[0], **TOLERANCE)


def test_qwen2_vl_generates_the_eager_definition() -> None:
    model, inputs = tiny_qwen2_vl(), qwen2_vl_inputs()
    result = generated(model, inputs)
    length = inputs["input_ids"].shape[1]
    longer = extended(inputs, result.sequences[:, length:-1])
    with torch.no_grad(), eager_var(model, profile_of(), longer, EDITED, **DEFAULTS):
        expected = model(**longer, use_cache=False).logits[:, length - 1 :]
    torch.testing.assert_close(torch.stack(result.logits, 1), expected, **TOLERANCE)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@torch.no_grad()
def test_a_sliding_window_keeps_the_roles_in_place(cache: str) -> None:
    model = tiny_llava()
    small = model.config.text_config.to_dict()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = MistralConfig(**{name: small[name] for name in (*names, "vocab_size")}, sliding_window=12, pad_token_id=0)
    torch.manual_seed(0)
    model.config.text_config = config
    windowed = type(model)(model.config).eval()
    windowed.load_state_dict(model.state_dict(), strict=False)
    # The projector's planted hook is not in the state.
    hooks = model.model.multi_modal_projector._forward_hooks
    windowed.model.multi_modal_projector._forward_hooks = hooks
    inputs = llava_inputs([5, 2], [1, 1])
    cached = generated(windowed, inputs, cache_implementation=cache)
    recomputed = generated(windowed, inputs, use_cache=False)
    for mine, theirs in zip(cached.logits, recomputed.logits, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)
    length = inputs["input_ids"].shape[1]
    longer = extended(inputs, cached.sequences[:, length:-1])
    positions = (longer["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with eager_var(windowed, profile_of(), longer, EDITED, **DEFAULTS):
        expected = windowed(**longer, position_ids=positions, use_cache=False).logits[:, length - 1 :]
    torch.testing.assert_close(torch.stack(cached.logits, 1), expected, **TOLERANCE)


def test_one_run_serves_many_prompts_without_a_trace(llava: nn.Module) -> None:
    first, second = llava_inputs([5, 2], [1, 2]), llava_inputs([3], [1], seed=8)
    alone = generated(llava, second).sequences
    with torch.no_grad(), var(llava, profile_of()):
        llava.generate(**first, max_new_tokens=4, do_sample=False)
        assert torch.equal(llava.generate(**second, max_new_tokens=8, do_sample=False), alone)


@torch.no_grad()
def test_two_caches_may_be_decoded_in_turns(llava: nn.Module) -> None:
    prompts = [llava_inputs([5], [1]), llava_inputs([3], [2], seed=4)]

    def follow(order: list[int]) -> dict[int, list[Tensor]]:
        caches: dict[int, Any] = {}
        found: dict[int, list[Tensor]] = {0: [], 1: []}
        with var(llava, profile_of()):
            for which in order:
                done = len(found[which])
                if done == 0:
                    out = llava(**prompts[which], use_cache=True)
                    caches[which] = out.past_key_values
                else:
                    step = text_only(GENERATED[:1, done : done + 1], prompts[which], done)
                    out = llava(**step, past_key_values=caches[which])
                found[which].append(out.logits[:, -1])
        return found

    in_turns, one_by_one = follow([0, 1, 0, 1, 1, 0]), follow([0, 0, 0, 1, 1, 1])
    for which in (0, 1):
        assert torch.equal(torch.stack(in_turns[which]), torch.stack(one_by_one[which]))


@torch.no_grad()
def test_a_later_turn_brings_its_own_image(llava: nn.Module) -> None:
    inputs, later = llava_inputs([4], [0]), llava_inputs([5], [2], seed=6)
    with var(llava, profile_of()):
        cache = llava(**inputs, use_cache=True).past_key_values
        mask = torch.cat([inputs["attention_mask"], later["attention_mask"]], 1)
        result = llava(**dict(later, attention_mask=mask), past_key_values=cache).logits
    ids = torch.cat([inputs["input_ids"], later["input_ids"]], 1)
    whole = {"input_ids": ids, "attention_mask": mask, "pixel_values": later["pixel_values"]}
    with eager_var(llava, profile_of(), whole, EDITED, **DEFAULTS):
        expected = llava(**whole, use_cache=False).logits
    torch.testing.assert_close(result, expected[:, inputs["input_ids"].shape[1] :], **TOLERANCE)


@torch.no_grad()
def test_a_copied_cache_carries_its_state(llava: nn.Module) -> None:
    inputs = llava_inputs([5, 2], [1, 2])
    with var(llava, profile_of()):
        cache = llava(**inputs, use_cache=True).past_key_values
        duplicate = copy.deepcopy(cache)
        step = text_only(GENERATED[:, :1], inputs, 1)
        expected = llava(**step, past_key_values=cache).logits
        torch.testing.assert_close(llava(**step, past_key_values=duplicate).logits, expected, rtol=0, atol=0)
        # Reordering the copy reorders the copy alone.
        order = torch.tensor([1, 0])
        duplicate.reorder_cache(order)
        after = {
            name: value[order] if name != "input_ids" else value
            for name, value in text_only(GENERATED[:, 1:2], inputs, 2).items()
        }
        swapped = dict(after, input_ids=GENERATED[order, 1:2])
        result = llava(**swapped, past_key_values=duplicate).logits
        expected = llava(**text_only(GENERATED[:, 1:2], inputs, 2), past_key_values=cache).logits
    torch.testing.assert_close(result, expected[order], **TOLERANCE)


@torch.no_grad()
def test_a_cropped_cache_forgets(llava: nn.Module) -> None:
    inputs = llava_inputs([5], [1])
    with var(llava, profile_of()):
        cache = llava(**inputs, use_cache=True).past_key_values
        expected = llava(**text_only(GENERATED[:1, :1], inputs, 1), past_key_values=cache).logits
        cache.crop(-1)
        llava(**text_only(torch.tensor([[SINK_IDS[3], SINK_IDS[4]]]), inputs, 2), past_key_values=cache)
        cache.crop(-2)
        again = llava(**text_only(GENERATED[:1, :1], inputs, 1), past_key_values=cache).logits
    torch.testing.assert_close(again, expected, **TOLERANCE)


@torch.no_grad()
def test_a_static_cache_may_be_reset_and_used_again(llava: nn.Module) -> None:
    cache = StaticCache(config=llava.config.text_config, max_cache_len=64)
    with var(llava, profile_of()):
        first = llava(**llava_inputs([5], [1]), past_key_values=cache).logits
        cache.reset()
        llava(**llava_inputs([3], [2], seed=9), past_key_values=cache)
        cache.reset()
        torch.testing.assert_close(llava(**llava_inputs([5], [1]), past_key_values=cache).logits, first, **TOLERANCE)


@torch.no_grad()
def test_a_cache_filled_elsewhere_is_refused(llava: nn.Module) -> None:
    inputs = llava_inputs([5], [1])
    cache = llava(**inputs, use_cache=True).past_key_values
    with var(llava, profile_of()), pytest.raises(InputError, match="inside var"):
        llava(**text_only(GENERATED[:1, :1], inputs, 1), past_key_values=cache)
    with var(llava, profile_of()):
        cache = llava(**inputs, use_cache=True).past_key_values
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.repeat(2, 1, 1, 1), layer.values.repeat(2, 1, 1, 1)
        step = text_only(GENERATED[:, :1], {"attention_mask": inputs["attention_mask"].repeat(2, 1)}, 1)
        with pytest.raises(InputError, match="samples"):
            llava(**step, past_key_values=cache)


@torch.no_grad()
def test_caches_are_left_clean_and_are_not_kept_alive(llava: nn.Module) -> None:
    inputs = llava_inputs([5], [1])
    with var(llava, profile_of()):
        kept = llava(**inputs, past_key_values=DynamicCache()).past_key_values
        assert "reorder_cache" in vars(kept)
        dropped = llava(**inputs, use_cache=True).past_key_values
        watch = weakref.ref(dropped)
        gc.disable()
        try:
            del dropped
            assert watch() is None
        finally:
            gc.enable()
    assert not {"reorder_cache", "batch_select_indices", "batch_repeat_interleave"} & set(vars(kept))
