"""The attention tap: nothing changes under it, everything is restored, and its weights are the eager kernel's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)
from var_models import llava_inputs, tiny_llava

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.attention import AttentionCall, attention_tap
from sinkscope.backbone.attention_weights import attention_weights, grouped_matmul
from sinkscope.errors import UnsupportedModelError

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GEMMA = SHAPE | {"head_dim": 8, "num_key_value_heads": 1, "sliding_window": 5, "query_pre_attn_scalar": 8}
MOE = SHAPE | {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 5, "num_local_experts": 2}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE, num_key_value_heads=4),
    "grouped": lambda: LlamaConfig(**SHAPE, num_key_value_heads=2),
    "biased": lambda: Qwen2Config(**SHAPE, num_key_value_heads=2),
    "sliding window": lambda: MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=5),
    "soft-capped": lambda: Gemma2Config(**GEMMA, attn_logit_softcapping=2.0),
    "learned sinks": lambda: GptOssConfig(**MOE, num_experts_per_tok=1),
}
KERNELS = {name: ["eager"] if name in ("soft-capped", "learned sinks") else ["eager", "sdpa"] for name in CONFIGS}
CASES = [(name, kernel) for name, kernels in KERNELS.items() for kernel in kernels]


def build(config: PreTrainedConfig, kernel: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=kernel).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Spread the weights, so that attention is uneven and learned sinks count.
            if weight.ndim < 2 and name.endswith("sinks"):
                weight.normal_()
            elif "q_proj" in name or "k_proj" in name:
                weight.mul_(8)
    return model


def prompts(pad: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    ids, mask = torch.randint(1, 40, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    hidden = {"none": slice(0, 0), "left": slice(0, 4), "right": slice(8, 12)}[pad]
    ids[1, hidden], mask[1, hidden] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("pad", ["none", "left", "right"])
@pytest.mark.parametrize(("name", "kernel"), CASES)
@torch.no_grad()
def test_nothing_changes_and_weights_are_the_kernels(name: str, kernel: str, pad: str) -> None:
    model = build(CONFIGS[name](), kernel)
    inputs = prompts(pad)
    plain = model(**inputs)
    valid = inputs["attention_mask"].bool()
    seen: list[int] = []

    def handler(call: AttentionCall) -> Tensor:
        output = call.base()
        weights = attention_weights(call)
        assert weights.dtype == torch.float32
        mine = grouped_matmul(weights, call.value).transpose(1, 2)
        torch.testing.assert_close(mine[valid], output[valid], rtol=1e-4, atol=1e-5)
        if call.weights is not None:
            rows = valid[:, None, :].expand(weights.shape[:3])
            torch.testing.assert_close(weights[rows], call.weights[rows], rtol=1e-4, atol=1e-6)
        chosen = attention_weights(call, heads=slice(1, 3), queries=torch.tensor([2, 9]))
        torch.testing.assert_close(chosen, weights[:, 1:3, [2, 9]], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(attention_weights(call, queries=slice(3, 6)), weights[:, :, 3:6])
        seen.append(call.layer)
        return output

    with attention_tap(model, find_anatomy(model), handler):
        tapped = model(**inputs)
    assert seen == [0, 1, 2]
    assert torch.equal(tapped.logits, plain.logits)


@pytest.mark.parametrize(("name", "kernel"), CASES)
@torch.no_grad()
def test_generation_is_unchanged_and_weights_hold_along_the_cache(name: str, kernel: str) -> None:
    model = build(CONFIGS[name](), kernel)
    inputs, options = prompts("left"), {"max_new_tokens": 8, "do_sample": False}
    plain = model.generate(**inputs, **options)

    def handler(call: AttentionCall) -> Tensor:
        output = call.base()
        if call.query.shape[2] == 1:
            mine = grouped_matmul(attention_weights(call), call.value).transpose(1, 2)
            torch.testing.assert_close(mine, output, rtol=1e-4, atol=1e-5)
        return output

    for cache in ("dynamic", "static"):
        with attention_tap(model, find_anatomy(model), handler):
            tapped = model.generate(**inputs, **options, cache_implementation=cache)
        assert torch.equal(tapped, plain)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@torch.no_grad()
def test_no_future_token_leaks(kernel: str) -> None:
    model = build(CONFIGS["grouped"](), kernel)
    ids = prompts("none")["input_ids"]
    other = ids.clone()
    other[:, 8:] = (other[:, 8:] + 7) % 40
    with attention_tap(model, find_anatomy(model), lambda call: call.base()):
        first, second = model(ids).logits, model(other).logits
    torch.testing.assert_close(first[:, :8], second[:, :8])
    assert not torch.allclose(first[:, 8:], second[:, 8:])


def state_of(model: nn.Module) -> list[Any]:
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    names = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    return [hooks, names, [type(name) for name in names]]


@torch.no_grad()
def test_everything_is_restored_after_an_exception() -> None:
    model = tiny_llava()
    inputs = llava_inputs([3], [1])
    plain = model(**inputs).logits
    before = state_of(model)

    def fails(call: AttentionCall) -> Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), attention_tap(model, find_anatomy(model), fails):
        model(**inputs)
    assert state_of(model) == before
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_the_vision_tower_is_never_touched() -> None:
    model = tiny_llava()
    text, vision = model.config.text_config, model.config.vision_config
    inputs, calls = llava_inputs([3], [1]), []

    def handler(call: AttentionCall) -> Tensor:
        calls.append(call.query.shape[1])
        return torch.zeros_like(call.base())

    features = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    with attention_tap(model, find_anatomy(model), handler):
        assert vision._attn_implementation == "sdpa"
        assert str(vision._attn_implementation) == "sdpa"
        assert str.__eq__(text._attn_implementation, "sdpa") is False
        again = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        assert not calls
        model(**inputs)
    torch.testing.assert_close(torch.stack(list(again)), torch.stack(list(features)))
    assert calls == [4] * 4


@torch.no_grad()
def test_taps_nest_on_one_model_in_any_order_of_leaving() -> None:
    model = build(CONFIGS["llama"](), "sdpa")
    anatomy, inputs, order = find_anatomy(model), prompts("none"), []
    plain = model(**inputs).logits
    before = state_of(model)

    def named(name: str) -> Any:
        def handler(call: AttentionCall) -> Tensor:
            order.append(name)
            return call.base() * 2

        return handler

    first, second = attention_tap(model, anatomy, named("first"), [1]), attention_tap(model, anatomy, named("second"))
    first.__enter__()
    second.__enter__()
    both = model(**inputs).logits
    assert order == ["second", "second", "first", "second"]
    first.__exit__(None, None, None)
    order.clear()
    model(**inputs)
    assert order == ["second"] * 3
    second.__exit__(None, None, None)
    assert state_of(model) == before
    assert torch.equal(model(**inputs).logits, plain)
    assert not torch.allclose(both, plain)


@torch.no_grad()
def test_two_models_that_share_a_config_keep_apart() -> None:
    config = CONFIGS["llama"]()
    one, two = build(config, "sdpa"), build(config, "sdpa")
    two.load_state_dict(one.state_dict())
    two.config = one.config
    for module in two.modules():
        if hasattr(module, "config"):
            module.config = one.config
    inputs = prompts("none")
    plain = two(**inputs).logits
    with attention_tap(one, find_anatomy(one), lambda call: call.base() * 0):
        assert torch.equal(two(**inputs).logits, plain)
        with attention_tap(two, find_anatomy(two), lambda call: call.base()):
            assert not torch.allclose(one(**inputs).logits, plain)
        assert torch.equal(two(**inputs).logits, plain)
        assert not torch.allclose(one(**inputs).logits, plain)
    assert torch.equal(one(**inputs).logits, plain)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_the_masks_of_flash_attention(window: int | None, rows: int, padded: bool) -> None:
    """Flash kernels get a padding mask or none, and align the last row with the last key."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, rows, 8), torch.randn(2, 2, 7, 8)
    padding = torch.ones(2, 7, dtype=torch.long)
    padding[1, :2] = 0
    call = AttentionCall(
        layer=0,
        module=nn.Identity(),
        query=query,
        key=key,
        value=key,
        attention_mask=padding if padded else None,
        scaling=0.5,
        kernel="flash_attention_2",
        kwargs={"sliding_window": window},
        _run=lambda *_: (query, None),
    )
    position, column = torch.arange(7 - rows, 7)[:, None], torch.arange(7)[None, :]
    visible = (column <= position) & (column > position - (window or 99))
    visible = visible[None, None] & (padding.bool()[:, None, None] if padded else torch.tensor(True))
    logits = 0.5 * query @ key.repeat_interleave(2, 1).mT
    expected = logits.masked_fill(~visible, -torch.inf).softmax(-1)
    torch.testing.assert_close(attention_weights(call), expected)


@pytest.mark.slow
@torch.no_grad()
def test_block_masks_of_flex_attention() -> None:
    model, inputs = build(CONFIGS["sliding window"](), "flex_attention"), prompts("left")
    valid = inputs["attention_mask"].bool()
    plain = model(**inputs).logits

    def handler(call: AttentionCall) -> Tensor:
        output = call.base()
        mine = grouped_matmul(attention_weights(call), call.value).transpose(1, 2)
        torch.testing.assert_close(mine[valid], output[valid], rtol=1e-4, atol=1e-5)
        return output

    with attention_tap(model, find_anatomy(model), handler):
        assert torch.equal(model(**inputs).logits, plain)


def test_models_outside_the_interface_are_refused() -> None:
    model = build(CONFIGS["llama"](), "sdpa")
    anatomy = find_anatomy(model)
    for layer in model.model.layers:
        layer.self_attn = nn.Linear(4, 4)
    with pytest.raises(UnsupportedModelError, match="attention interface"), attention_tap(model, anatomy, print):
        pass
