"""Tiny random multimodal models, and prompts for them, for the tests of the generation modes.

A prompt is a word of letters: b BOS, t a text token, s a text sink, i an image, I a larger image, v a video.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from var_models import (
    BOS_ID,
    DEPTH,
    IMAGE_ID,
    PAD_ID,
    SINK_IDS,
    VOCABULARY,
    WIDTH,
    plant,
    sharpen,
    tiny_llava,
    tiny_qwen2_vl,
)

VIDEO_ID = 51
PLACEHOLDERS = [IMAGE_ID, VIDEO_ID, 52, 53]

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
CLIP: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}


def windowed_llava() -> nn.Module:
    """LLaVA on Mistral: every layer sees 12 tokens."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        text_config=transformers.MistralConfig(**TEXT, sliding_window=12),
        image_token_index=IMAGE_ID,
        image_token_id=IMAGE_ID,
        vision_feature_layer=-1,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    sharpen(model.model.language_model.layers)
    plant(model, model.model.multi_modal_projector)
    return model


def gemma3() -> nn.Module:
    """Sliding layers of 6 tokens beside full ones, and images that see themselves in both directions."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=6, layer_types=kinds),
        vision_config=transformers.SiglipVisionConfig(**CLIP | {"image_size": 32}),
        image_token_id=IMAGE_ID,
        image_token_index=IMAGE_ID,
        mm_tokens_per_image=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(layer.self_attn, name).weight.mul_(8)
    plant(model, model.model.multi_modal_projector)
    return model


def qwen2_5_vl() -> nn.Module:
    torch.manual_seed(0)
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "out_hidden_size": WIDTH,
        "num_heads": 2,
        "intermediate_size": 32,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 16,
        "fullatt_block_indexes": [0],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXT
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}},
        vision_config=vision,
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        vision_start_token_id=52,
        vision_end_token_id=53,
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    sharpen(model.model.language_model.layers)
    plant(model, model.model.visual)
    return model


def onevision() -> nn.Module:
    """LLaVA-OneVision, for its videos: two frames of 2 x 2 tokens and a newline."""
    torch.manual_seed(0)
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**CLIP | {"image_size": 32}),
        text_config=transformers.Qwen2Config(**TEXT),
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
        vision_feature_layer=-1,
    )
    model = transformers.LlavaOnevisionForConditionalGeneration(config).eval()
    sharpen(model.model.language_model.layers)
    plant(model, model.model.multi_modal_projector)
    return model


@dataclass(frozen=True)
class Prompt:
    """One sample: its letters, and the seed of its words and pixels."""

    letters: str
    seed: int = 0


def prompts(*letters: str, seed: int = 0) -> list[Prompt]:
    return [Prompt(word, seed + index) for index, word in enumerate(letters)]


@dataclass(frozen=True)
class Family:
    """How prompts become the inputs of one kind of model.

    tokens: placeholders of each picture letter; pixels: arguments for a list of (letter, generator) in order.
    """

    name: str
    build: Callable[[], nn.Module]
    tokens: dict[str, int]
    pixels: Callable[[list[tuple[str, torch.Generator]]], dict[str, Tensor]]
    kinds: str | None = None
    counts_positions: bool = True

    def row(self, prompt: Prompt) -> list[int]:
        generator = torch.Generator().manual_seed(100 + prompt.seed)
        ids: list[int] = []
        for letter in prompt.letters:
            if letter in "iI":
                ids += [IMAGE_ID] * self.tokens[letter]
            elif letter == "v":
                ids += [VIDEO_ID] * self.tokens[letter]
            else:
                word = int(torch.randint(2, 48, (1,), generator=generator))
                ids.append({"b": BOS_ID, "s": SINK_IDS[1 + word % 6]}.get(letter, word))
        return ids

    def batch(self, samples: Sequence[Prompt], pad: str = "left", extra: Tensor | None = None) -> dict[str, Any]:
        """Padded inputs, with `extra` tokens [B, n] after the padding where right-padded."""
        rows = [self.row(prompt) for prompt in samples]
        longest = max(map(len, rows))
        ids, mask = torch.full((len(rows), longest), PAD_ID), torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            place = slice(longest - len(row), longest) if pad == "left" else slice(0, len(row))
            ids[index, place], mask[index, place] = torch.tensor(row), 1
        if extra is not None:
            ids, mask = torch.cat([ids, extra], 1), torch.cat([mask, torch.ones_like(extra)], 1)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.kinds:
            kinds = (ids == IMAGE_ID).int() + 2 * (ids == VIDEO_ID).int()
            kinds[:, longest:] = 0
            inputs[self.kinds] = kinds
        pictures = [
            (letter, torch.Generator().manual_seed(7 + prompt.seed + 1000 * place))
            for prompt in samples
            for place, letter in enumerate(prompt.letters)
            if letter in "iIv"
        ]
        return inputs | (self.pixels(pictures) if pictures else {})

    def positions(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with the position ids that `generate` makes, where the model does not make its own."""
        if not self.counts_positions:
            return inputs
        return inputs | {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)}


def _one_size(*shape: int, name: str = "pixel_values") -> Callable[..., dict[str, Tensor]]:
    def pixels(pictures: list[tuple[str, torch.Generator]]) -> dict[str, Tensor]:
        return {name: torch.stack([torch.randn(*shape, generator=generator) for _, generator in pictures])}

    return pixels


GRIDS = {"i": (1, 4, 6), "I": (1, 6, 8), "v": (2, 4, 4)}


def _grids(pictures: list[tuple[str, torch.Generator]]) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    for letters, pixels, grid in (
        ("iI", "pixel_values", "image_grid_thw"),
        ("v", "pixel_values_videos", "video_grid_thw"),
    ):
        chosen = [(letter, generator) for letter, generator in pictures if letter in letters]
        if chosen:
            inputs[grid] = torch.tensor([GRIDS[letter] for letter, _ in chosen])
            patches = inputs[grid].prod(1).tolist()
            inputs[pixels] = torch.cat(
                [torch.randn(n, 96, generator=each) for n, (_, each) in zip(patches, chosen, strict=True)]
            )
    return inputs


PATCHES = {"i": 6, "I": 12, "v": 8}
LLAVA = Family("llava", tiny_llava, {"i": 9}, _one_size(3, 24, 24))
WINDOWED = Family("windowed llava", windowed_llava, {"i": 9}, _one_size(3, 24, 24))
GEMMA3 = Family("gemma3", gemma3, {"i": 4}, _one_size(3, 32, 32), kinds="token_type_ids")
QWEN2 = Family("qwen2-vl", tiny_qwen2_vl, PATCHES, _grids, kinds="mm_token_type_ids", counts_positions=False)
QWEN25 = Family("qwen2.5-vl", qwen2_5_vl, PATCHES, _grids, kinds="mm_token_type_ids", counts_positions=False)
ONEVISION = Family("onevision", onevision, {"v": 9}, _one_size(2, 3, 32, 32, name="pixel_values_videos"))
FAMILIES = [LLAVA, WINDOWED, GEMMA3, QWEN2, QWEN25, ONEVISION]

_BUILT: dict[str, nn.Module] = {}


def built(family: Family) -> nn.Module:
    """One model per family and process: tests leave models as they found them, which `test_modes_clean` checks."""
    if family.name not in _BUILT:
        _BUILT[family.name] = family.build()
    return _BUILT[family.name]
