"""Measured attention against transformers' own `output_attentions`, and what a token could expect, by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from structure_models import CONFIGS, DEPTH, OUTSIDE, layer_kinds, text_model, texts
from structure_oracle import visible
from torch import Tensor, nn

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.attention import attention_tap
from sinkscope.backbone.attention_weights import attention_weights
from sinkscope.capture.attention import AttentionMeter, DrawnAttention

LENGTHS = (20, 13)
"""Three windows and more, two and more."""
BATCH = texts(*LENGTHS)
VALID = BATCH["attention_mask"].bool()


def measured(model: nn.Module) -> DrawnAttention:
    meter = AttentionMeter(DEPTH)
    meter.begin(VALID.numpy())
    with torch.inference_mode(), attention_tap(model, find_anatomy(model), meter):
        model(**BATCH, use_cache=False)
    return meter.finish()


def mean_over_later(weights: Tensor) -> NDArray[Any]:
    """What each token draws from strictly later tokens of its sample, [B, K]; weights [B, Q, K]."""
    place = torch.arange(weights.shape[1])
    counted = VALID[:, :, None] & (place[:, None] > place[None, :])
    return ((weights * counted).sum(1) / counted.sum(1)).numpy()


def maps_of(name: str) -> dict[int, Tensor]:
    """transformers' own attention maps [B, H, Q, K] of the layers that hold softmax attention."""
    with torch.no_grad():
        given = text_model(name, "eager")(**BATCH, use_cache=False, output_attentions=True).attentions
    kinds = layer_kinds(name)
    given = [given[layer] for layer in kinds] if len(given) == DEPTH else given
    return dict(zip(kinds, given, strict=True))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in OUTSIDE])
def test_drawn_and_expected_attention(name: str) -> None:
    found, maps = measured(text_model(name)), maps_of(name)
    for layer in range(DEPTH):
        if layer not in maps:
            for array in (found.drawn, found.expected, found.value_norm):
                assert np.isnan(array[..., layer]).all()
            continue
        seen = maps[layer][:, 0] > 0 if name == "deepseek_v32" else visible(*layer_kinds(name)[layer], VALID)
        evenly = seen / seen.sum(-1, keepdim=True).clamp_min(1)
        for array, weights in ((found.drawn, maps[layer].mean(1)), (found.expected, evenly)):
            expected = mean_over_later(weights)
            for sample, length in enumerate(LENGTHS):
                mine = array[sample, :, layer]
                np.testing.assert_allclose(mine[: length - 1], expected[sample, : length - 1], rtol=1e-4, atol=1e-6)
                assert np.isnan(mine[length - 1 :]).all()


@pytest.mark.parametrize("name", ["gemma3", "mistral", "llama4"])
def test_a_token_that_nobody_sees_expects_and_draws_nothing_from_afar(name: str) -> None:
    """Of the first token's 19 later queries, five still see it in a layer that sees six tokens."""
    found = measured(text_model(name))
    assert found.expected[0, 0, 0] == pytest.approx(sum(1 / seen for seen in range(2, 7)) / 19, rel=1e-5)
    assert found.drawn[0, 0, 0] < 5 / 19
    # The last token of the first sample that has a later query is in sight of it, wherever chunks begin.
    assert found.expected[0, 18, 0] > 0


@pytest.mark.parametrize("name", ["gpt_oss", "mimo"])
@torch.no_grad()
def test_a_learned_sink_takes_its_part_of_the_row(name: str) -> None:
    model, sums = text_model(name), {}

    def read(call: Any) -> Tensor:
        sums[call.layer] = (attention_weights(call).sum(-1), getattr(call.module, "sinks", None), call)
        return call.base()

    with attention_tap(model, find_anatomy(model), read):
        model(**BATCH, use_cache=False)
    rows = VALID[:, None, :].expand(2, 4, -1)
    for layer, (total, sinks, call) in sums.items():
        if sinks is None:
            torch.testing.assert_close(total[rows], torch.ones_like(total[rows]), rtol=0, atol=1e-5)
            continue
        key = call.key.repeat_interleave(4 // call.key.shape[1], 1)
        logits = (call.query @ key.mT * call.scaling).exp() * visible(*layer_kinds(name)[layer], VALID)[:, None]
        expected = logits.sum(-1) / (logits.sum(-1) + sinks.exp()[None, :, None])
        torch.testing.assert_close(total[rows], expected[rows], rtol=1e-4, atol=1e-6)
        assert float(total[rows].max()) < 1
        assert float(total[rows].min()) < 0.8
    assert any(sinks is not None for _, sinks, _ in sums.values())


def latent_values(output: Tensor) -> Tensor:
    """Each head's keys without position, 8 wide, and then its values, 6 wide; made as of one head [B, 1, T, D]."""
    return output[:, 0].unflatten(-1, (4, 14))[..., 8:]


VALUES: dict[str, tuple[str, Any]] = {
    "deepseek_v2": ("model.layers.{}.self_attn.kv_b_proj", latent_values),
    "deepseek_v3": ("model.layers.{}.self_attn.kv_b_proj", latent_values),
    "gpt_bigcode": ("transformer.h.{}.attn.c_attn", lambda output: output[..., None, 40:]),
    "phi3": ("model.layers.{}.self_attn.qkv_proj", lambda output: output[..., 48:].unflatten(-1, (2, 8))),
    "gpt_neox": (
        "gpt_neox.layers.{}.attention.query_key_value",
        lambda output: output.unflatten(-1, (4, 24))[..., 16:],
    ),
    "gpt2": ("transformer.h.{}.attn.c_attn", lambda output: output[..., 64:].unflatten(-1, (4, 8))),
    "mimo": ("model.layers.{}.self_attn.v_proj", lambda output: 0.707 * output.unflatten(-1, (-1, 6))),
}
"""Where the values of layer l come from, and which part of that they are: [B, T, Hkv, Dv]. MiMo's are scaled."""


@pytest.mark.parametrize("name", VALUES)
def test_value_norms_of_fused_shared_and_latent_values(name: str) -> None:
    model = text_model(name)
    path, take = VALUES[name]
    made: dict[int, Tensor] = {}
    for layer in range(DEPTH):
        model.get_submodule(path.format(layer)).register_forward_hook(
            lambda module, args, output, layer=layer: made.update({layer: take(output)})
        )
    found = measured(model).value_norm
    for layer, values in made.items():
        expected = values.square().sum(-1).sqrt().mean(-1)
        np.testing.assert_allclose(found[VALID.numpy(), layer], expected[VALID].numpy(), rtol=1e-4)


def test_masks_that_each_layer_makes_for_itself_are_told_apart() -> None:
    """A mask that is gone may leave its address to the next layer's."""
    name = "llama4"
    model, before, made = text_model(name), -1, []

    def renew(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        nonlocal before
        made.clear()
        # As many tries as it takes to get the address of the last layer's mask, if that is free.
        for _ in range(200):
            mask = kwargs["attention_mask"].clone()
            if id(mask) == before:
                break
            made.append(mask)
        before = id(mask)
        return args, kwargs | {"attention_mask": mask}

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(renew, with_kwargs=True)
    found = measured(model).expected
    for layer, kind in layer_kinds(name).items():
        seen = visible(*kind, VALID)
        expected = mean_over_later(seen / seen.sum(-1, keepdim=True).clamp_min(1))
        np.testing.assert_allclose(found[0, :19, layer], expected[0, :19], rtol=1e-4)
