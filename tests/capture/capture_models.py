"""Tiny random models with a character tokenizer, made from configs: nothing is downloaded."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
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

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?'\"()-\n"
IMAGE_TOKEN = "<image>"
PATCHES = 16


def make_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """One token per character; a BOS token exists but is not added by default."""
    names = ["<unk>", "<s>", "</s>", IMAGE_TOKEN, *CHARACTERS]
    inner = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    options: dict[str, Any] = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=[IMAGE_TOKEN],
        **options,
    )


def llama_config(layers: int = 3, **changes: Any) -> LlamaConfig:
    options = {
        "vocab_size": 4 + len(CHARACTERS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**{**options, **changes})


def make_llama(**changes: Any) -> LoadedModel:
    """A random Llama with grouped key-value heads and one massive dimension (5) on the token "."."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(**changes)).eval()
    tokenizer = make_tokenizer()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("."), 5] = 60.0
    return LoadedModel(model, tokenizer, None, find_anatomy(model), "tiny-llama")


class TinyProcessor:
    """Stands for a processor: 32x32 pictures become 16 visual tokens of patch size 8."""

    image_token = IMAGE_TOKEN

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def __call__(self, images: list[Any], text: str, return_tensors: str) -> dict[str, torch.Tensor]:
        import numpy as np

        ids = self.tokenizer(text.replace(IMAGE_TOKEN, IMAGE_TOKEN * PATCHES))["input_ids"]
        pixels = [np.asarray(image.resize((32, 32)), np.float32).transpose(2, 0, 1) / 255 for image in images]
        return {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
            "pixel_values": torch.from_numpy(np.stack(pixels)),
        }


def make_llava() -> LoadedModel:
    """A random LLaVA with 16 visual tokens a picture."""
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
    config = LlavaConfig(vision_config=vision, text_config=llama_config(), image_token_id=3, image_seq_length=PATCHES)
    model = LlavaForConditionalGeneration(config).eval()
    tokenizer = make_tokenizer()
    return LoadedModel(model, tokenizer, TinyProcessor(tokenizer), find_anatomy(model), "tiny-llava")
