"""A model of LLaVA-1.5's shape with random weights, its inputs, and a profile under which some tokens are sinks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from sinkscope.profile import Profile

IMAGE_TOKENS = 576
IMAGE_ID, VOCABULARY, SINK_DIM = 5, 32000, 77
TAU = 2.2
"""Of an ordinary dimension about one token in 30 reaches it: text and visual sinks in every layer."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the text decoder."""

    hidden: int = 1024
    heads: int = 16
    layers: int = 8
    intermediate: int = 2752


SMALL = Shape(256, 4, 4, 688)
SEVEN_B = Shape(4096, 32, 32, 11008)


def build(shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """LLaVA with a vision tower that costs next to nothing, so that it does not hide what VAR costs."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            vocab_size=VOCABULARY,
            max_position_embeddings=32768,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=None,
        ),
        image_token_index=IMAGE_ID,
        image_token_id=IMAGE_ID,
        vision_feature_layer=-1,
    )
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = LlavaForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(default)
    return model


def inputs(model: Any, *, images: int = 1, text: int = 21, batch: int = 1) -> dict[str, Tensor]:
    """BOS and a system prompt of 35 tokens in all, then the images, then `text` tokens."""
    generator = torch.Generator().manual_seed(1)
    before = torch.randint(6, VOCABULARY, (batch, 35), generator=generator)
    after = torch.randint(6, VOCABULARY, (batch, text), generator=generator)
    pictures = torch.full((batch, images * IMAGE_TOKENS), IMAGE_ID)
    pixels = torch.randn(batch * images, 3, 336, 336, generator=generator)
    device, dtype = model.device, model.dtype
    ids = torch.cat([before, pictures, after], dim=1).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels.to(device, dtype)}


def profile(shape: Shape) -> Profile:
    """One sink dimension in all layers, by the paper's rule."""
    return Profile.model_validate(
        {
            "name": "benchmark",
            "verdict": "sinks",
            "reason": "made for a benchmark",
            "backbone": {"model_type": "llama", "hidden_size": shape.hidden, "num_layers": shape.layers},
            "sink_dimensions": [{"dim": SINK_DIM}],
            "tau": {"phi": TAU},
            "bands": [
                {"first_layer": 0, "last_layer": shape.layers - 1, "dims": [SINK_DIM], "tau_phi": TAU},
            ],
            "var": {"p": 0.6, "rho": 0.8, "attention_floor": 0.2, "excluded_layers": [shape.layers - 1]},
            "provenance": {"kind": "measured"},
        }
    )
