"""Models of other families, tiny and random: no code of theirs is in the package, so they are what it is tested on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from var_models import BOS_ID, DEPTH, IMAGE_ID, PAD_ID, SINK_DIM, SINK_IDS, VOCABULARY, WIDTH, eager_var, profile_of

from sinkscope.redistribution import var

TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": None,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
PATCHES: dict[str, Any] = {
    "hidden_size": 16,
    "out_hidden_size": WIDTH,
    "num_heads": 2,
    "intermediate_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN_IDS = {"image_token_id": IMAGE_ID, "video_token_id": 51, "vision_start_token_id": 52, "vision_end_token_id": 53}
IDS = torch.tensor([[1, 3, *[IMAGE_ID] * 4, 5, 6, 7, 9, 11, 12], [PAD_ID, PAD_ID, 1, *[IMAGE_ID] * 4, 5, 14, 6, 9, 13]])
VISUAL = (IDS == IMAGE_ID).int()


def rotary(*section: int) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": list(section), "rope_theta": 10000.0}


def grid_images() -> dict[str, Tensor]:
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    return {"pixel_values": torch.randn(32, 96), "image_grid_thw": grid, "mm_token_type_ids": VISUAL}


def gemma3() -> tuple[nn.Module, dict[str, Tensor]]:
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=6, layer_types=kinds),
        vision_config=transformers.SiglipVisionConfig(**VISION | {"image_size": 32, "patch_size": 8}),
        image_token_id=IMAGE_ID,
        image_token_index=IMAGE_ID,
        mm_tokens_per_image=4,
    )
    images = {"pixel_values": torch.randn(2, 3, 32, 32), "token_type_ids": VISUAL.long()}
    return transformers.Gemma3ForConditionalGeneration(config), images


def internvl() -> tuple[nn.Module, dict[str, Tensor]]:
    vision = VISION | {"image_size": [16, 16], "patch_size": [4, 4]}
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**TEXT),
        vision_config=transformers.InternVLVisionConfig(**vision),
        image_token_id=IMAGE_ID,
        downsample_ratio=0.5,
    )
    return transformers.InternVLForConditionalGeneration(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


def qwen2_5_vl() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": rotary(1, 1, 2)},
        vision_config=PATCHES | {"depth": 1, "window_size": 16, "fullatt_block_indexes": [0]},
        **QWEN_IDS,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), grid_images()


def qwen3_vl() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.Qwen3VLConfig(
        text_config=TEXT | {"head_dim": 8, "rope_parameters": rotary(2, 1, 1)},
        vision_config=PATCHES | {"depth": 2, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        **QWEN_IDS,
    )
    return transformers.Qwen3VLForConditionalGeneration(config), grid_images()


def smolvlm() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=VISION, image_token_id=IMAGE_ID, scale_factor=2
    )
    images = {
        "pixel_values": torch.randn(2, 1, 3, 16, 16),
        "pixel_attention_mask": torch.ones(2, 1, 16, 16, dtype=torch.bool),
    }
    return transformers.SmolVLMForConditionalGeneration(config), images


@pytest.mark.parametrize("build", [gemma3, internvl, qwen2_5_vl, qwen3_vl, smolvlm])
@torch.no_grad()
def test_the_eager_definition_holds_and_decoding_follows(
    build: Callable[[], tuple[nn.Module, dict[str, Tensor]]],
) -> None:
    torch.manual_seed(0)
    model, images = build()
    model.eval()
    decoder = getattr(model.model, "language_model", None) or model.model.text_model
    for layer in decoder.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(layer.self_attn, name).weight.mul_(8)
    model.get_input_embeddings().weight[list(SINK_IDS), SINK_DIM] = 40.0
    inputs = {"input_ids": IDS, "attention_mask": (IDS != PAD_ID).long()} | images
    profile, settings, valid = profile_of(), {"p": 0.6, "rho": 0.3}, IDS != PAD_ID

    plain = model(**inputs, use_cache=False).logits
    with eager_var(model, profile, inputs, [1, 2], **settings):
        expected = model(**inputs, use_cache=False).logits
    with var(model, profile, **settings) as run:
        result = model(**inputs, use_cache=False).logits
    size = float(expected[valid].abs().max())
    torch.testing.assert_close(result[valid], expected[valid], rtol=0, atol=1e-5 * max(1.0, size))
    assert float((plain - expected)[valid].abs().max()) > 1e-3 * size
    assert torch.equal(model(**inputs, use_cache=False).logits, plain)
    assert all(entry.sink_tokens and entry.image_centric_share > 0 for entry in run.summary())

    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE_ID]}
    with var(model, profile, **settings):
        cached = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
        recomputed = model.generate(
            **inputs, **options, use_cache=False, output_logits=True, return_dict_in_generate=True
        )
    for mine, theirs in zip(cached.logits, recomputed.logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * max(1.0, size))
