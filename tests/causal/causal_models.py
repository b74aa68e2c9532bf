"""Tiny models whose sinks are planted in the weights, so that what causes attention is known. Nothing is downloaded."""

import random
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample
from sinkscope.profile import Band, Profile, Provenance, RejectedDimension, SinkDimension
from sinkscope.profile.schema import Backbone

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ."
IMAGE = "<image>"
WIDTH, LAYERS, HEADS, GROUPS, PATCHES = 64, 6, 4, 2, 16
SINK, DECOY = 5, 9
"""The dimension that keys read, and one that is large on the same tokens and read by nothing."""
VALUE, DECOY_VALUE, STRENGTH, QUERY = 60.0, 30.0, 0.7, 6.0


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    names = ["<unk>", "<s>", "</s>", IMAGE, *CHARACTERS]
    inner = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[IMAGE],
    )


def _config(**changes: Any) -> LlamaConfig:
    options = {
        "vocab_size": 4 + len(CHARACTERS),
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "max_position_embeddings": 256,
        "attention_bias": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # So slow that the last pair of components keeps its direction at every position.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e9},
    }
    return LlamaConfig(**{**options, **changes})


def plant(model: nn.Module, decoder: nn.Module, tokenizer: PreTrainedTokenizerFast, dims: tuple[int, ...]) -> None:
    """Make all heads attend to where `dims` are large together, and "." and BOS large in the sink and the decoy."""
    size, component = WIDTH // HEADS, WIDTH // HEADS // 2 - 1
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.0 if "embed_tokens" in name else 0.02)
        for token in (".", "<s>"):
            row = decoder.embed_tokens.weight[tokenizer.convert_tokens_to_ids(token)]
            row[SINK], row[DECOY] = VALUE, DECOY_VALUE
        for layer in decoder.layers:
            attention = layer.self_attn
            attention.q_proj.bias.view(HEADS, size)[:, component] = QUERY
            attention.k_proj.weight.view(GROUPS, size, WIDTH)[:, component, list(dims)] = STRENGTH / len(dims)


def make_llama(*dims: int, **changes: Any) -> LoadedModel:
    """A Llama in which exactly `dims` (by default the sink dimension) draw attention to "." and BOS."""
    torch.manual_seed(0)
    model, tokenizer = LlamaForCausalLM(_config(**changes)).eval(), make_tokenizer()
    plant(model, model.model, tokenizer, dims or (SINK,))
    return LoadedModel(model, tokenizer, None, find_anatomy(model), "planted-llama")


class TinyProcessor:
    """Stands for a processor: 32x32 pictures become 16 visual tokens of patch size 8."""

    image_token = IMAGE

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def __call__(self, images: list[Any], text: str, return_tensors: str) -> dict[str, torch.Tensor]:
        ids = self.tokenizer(text.replace(IMAGE, IMAGE * PATCHES))["input_ids"]
        pixels = [np.asarray(image.resize((32, 32)), np.float32).transpose(2, 0, 1) / 255 for image in images]
        return {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
            "pixel_values": torch.from_numpy(np.stack(pixels)),
        }


def make_llava() -> LoadedModel:
    """A LLaVA with the same text decoder, whose projector makes every visual token a sink."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    )
    config = LlavaConfig(vision_config=vision, text_config=_config(), image_token_id=3, image_seq_length=PATCHES)
    model, tokenizer = LlavaForConditionalGeneration(config).eval(), make_tokenizer()
    plant(model, model.model.language_model, tokenizer, (SINK,))
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias[SINK] = VALUE
    return LoadedModel(model, tokenizer, TinyProcessor(tokenizer), find_anatomy(model), "planted-llava")


def make_profile(loaded: LoadedModel, *dims: int, first: int = 1, last: int = LAYERS, tau: float = 20.0) -> Profile:
    """A profile of one band with the given dimensions."""
    return Profile(
        name="planted",
        verdict="sinks",
        reason="planted",
        backbone=Backbone(**loaded.anatomy.fingerprint()),
        sink_dimensions=[SinkDimension(dim=dim) for dim in dims],
        companion_dimensions=[RejectedDimension(dim=dim) for dim in (DECOY,) if dim not in dims],
        bands=[Band(first_layer=first, last_layer=last, dims=list(dims), scale=1.0, tau_score=tau)],
        provenance=Provenance(kind="measured"),
    )


def make_texts(count: int = 6, length: int = 54) -> list[Sample]:
    """Letters that begin with a sink token; every other text has a second one further on."""
    chooser = random.Random(0)
    texts = []
    for number in range(count):
        letters = chooser.choices(CHARACTERS[:-1], k=length)
        letters[0] = "."
        if number % 2:
            letters[6] = "."
        texts.append(Sample(text="".join(letters)))
    return texts
