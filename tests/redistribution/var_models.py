"""Tiny random models with planted sinks, and an eager VAR written independently of the package's fast one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.masking_utils import eager_mask

from sinkscope.profile import Profile
from sinkscope.profile.score import sink_mask
from sinkscope.redistribution import redistribute

WIDTH, DEPTH, VOCABULARY, IMAGE_ID, PAD_ID, BOS_ID = 32, 4, 60, 50, 0, 1
SINK_DIM = 5
SINK_IDS = (BOS_ID, 7, 14, 21, 28, 35, 42)
"""Token ids whose embedding is massive in the sink dimension: text sinks, generated ones among them."""


def profile_of(depth: int = DEPTH, width: int = WIDTH, **changes: Any) -> Profile:
    """A hand-made profile of the planted sinks, in effect from layer 1 on."""
    data: dict[str, Any] = {
        "name": "planted",
        "verdict": "sinks",
        "reason": "planted",
        "backbone": {"model_type": "llama", "hidden_size": width, "num_layers": depth},
        "sink_dimensions": [{"dim": SINK_DIM}],
        "tau": {"phi": 4.5},
        "bands": [
            {"first_layer": 1, "last_layer": depth, "dims": [SINK_DIM], "scale": 2.0, "tau_score": 10.0, "tau_phi": 4.5}
        ],
        "var": {"p": 0.6, "rho": 0.7, "attention_floor": 0.2, "excluded_layers": [depth - 1]},
        "provenance": {"kind": "measured"},
    }
    return Profile.model_validate(data | changes)


def plant(model: nn.Module, projector: nn.Module) -> None:
    """Make the embeddings of SINK_IDS, and every third visual token, massive in the sink dimension."""
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[list(SINK_IDS), SINK_DIM] = 40.0

    def spike(module: nn.Module, args: Any, output: Any) -> Any:
        state = output.pooler_output if hasattr(output, "pooler_output") else output
        state = state.clone()
        state[..., 1::3, SINK_DIM] = 40.0
        if hasattr(output, "pooler_output"):
            output.pooler_output = state
            return output
        return state

    projector.register_forward_hook(spike)


def sharpen(layers: nn.ModuleList) -> None:
    """Make attention uneven: with the usual initialisation of random models it is all but uniform."""
    with torch.no_grad():
        for layer in layers:
            layer.self_attn.q_proj.weight.mul_(12)
            layer.self_attn.k_proj.weight.mul_(12)
            layer.self_attn.v_proj.weight.mul_(12)
            layer.self_attn.o_proj.weight.mul_(12)


def tiny_llava(seed: int = 0) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=24,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=DEPTH,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=256,
            pad_token_id=PAD_ID,
            bos_token_id=BOS_ID,
            eos_token_id=None,
        ),
        image_token_index=IMAGE_ID,
        image_token_id=IMAGE_ID,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config).eval()
    sharpen(model.model.language_model.layers)
    plant(model, model.model.multi_modal_projector)
    return model


def llava_inputs(texts: list[int], images: list[int], seed: int = 1, pad: str = "left") -> dict[str, Tensor]:
    """A batch of prompts: BOS, then images of 9 tokens with two text tokens between them, then text.

    texts: number of text tokens after the last image, per sample; images: number of images, per sample.
    """
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(2, 48, (count,), generator=generator).tolist()

    rows = []
    for text, image in zip(texts, images, strict=True):
        row = [BOS_ID, *words(2)]
        for _ in range(image):
            row += [IMAGE_ID] * 9 + words(2)
        rows.append(row + words(text))
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), PAD_ID)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if pad == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = torch.tensor(row), 1
    pixels = torch.randn(sum(images), 3, 24, 24, generator=generator)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs | {"pixel_values": pixels} if len(pixels) else inputs


def sample(inputs: dict[str, Tensor], index: int, images: list[int]) -> dict[str, Tensor]:
    """One sample of a `llava_inputs` batch, without its padding."""
    kept = inputs["attention_mask"][index].bool()
    start = sum(images[:index])
    alone = {"input_ids": inputs["input_ids"][index : index + 1, kept]}
    alone["attention_mask"] = torch.ones_like(alone["input_ids"])
    if images[index]:
        alone["pixel_values"] = inputs["pixel_values"][start : start + images[index]]
    return alone


def tiny_qwen2_vl(seed: int = 0) -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(seed)
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "bos_token_id": BOS_ID,
            "eos_token_id": None,
            "pad_token_id": PAD_ID,
        },
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": WIDTH,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=IMAGE_ID,
        video_token_id=51,
        vision_start_token_id=52,
        vision_end_token_id=53,
    )
    model = Qwen2VLForConditionalGeneration(config).eval()
    sharpen(model.model.language_model.layers)
    plant(model, model.model.visual)
    return model


def qwen2_vl_inputs(seed: int = 1) -> dict[str, Tensor]:
    """Two samples with an image of 12 visual tokens each, the second one longer."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.tensor([[1, 6, 8], [1, 6, 8]])
    rows = []
    for text in (4, 7):
        words = torch.randint(2, 48, (text,), generator=generator).tolist()
        rows.append([BOS_ID, 3, 52, *[IMAGE_ID] * 12, 53, *words])
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD_ID] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 4 * 4, generator=generator)
    kinds = (ids == IMAGE_ID).int()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": pixels,
        "image_grid_thw": grid,
        "mm_token_type_ids": kinds,
    }


@contextmanager
def eager_var(
    model: nn.Module,
    profile: Profile,
    inputs: dict[str, Tensor],
    layers: list[int],
    image_id: int = IMAGE_ID,
    first_query: int = 0,
    **settings: Any,
) -> Iterator[None]:
    """VAR as the equations say it, on full attention maps, for passes without a cache over `inputs`.

    Rows before `first_query` are left alone.
    """
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    visual = (ids == image_id) & valid
    queries = (visual.cumsum(1) > 0) & ~visual & valid
    queries &= torch.arange(ids.shape[1]) >= first_query
    score = settings.pop("score", "auto")
    sinks: dict[int, Tensor] = {}
    decoder = getattr(model.model, "language_model", None) or model.model.text_model

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        weights = (query @ key.transpose(2, 3) * kwargs["scaling"] + mask[..., : key.shape[2]]).softmax(-1)
        if module.layer_idx in layers:
            weights = redistribute(weights, sinks[module.layer_idx] & valid, visual, queries, **settings)
        return (weights @ value).transpose(1, 2), weights

    def see(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            state = args[0] if args else kwargs["hidden_states"]
            sinks[layer] = sink_mask(state, profile, layer, score=score)

        return hook

    AttentionInterface.register("test_eager_var", attend)
    AttentionMaskInterface.register("test_eager_var", eager_mask)
    before = decoder.config._attn_implementation
    handles = [
        layer.register_forward_pre_hook(see(index), with_kwargs=True) for index, layer in enumerate(decoder.layers)
    ]
    decoder.config._attn_implementation = "test_eager_var"
    try:
        yield
    finally:
        decoder.config._attn_implementation = before
        for handle in handles:
            handle.remove()
