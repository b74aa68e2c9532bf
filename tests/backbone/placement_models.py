"""Tiny random models in folders, for tests of where weights rest."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

SINK_DIM = 5
IMAGE_ID = 3
ON_DISK = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers": "disk"}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable character."""
    names = ["<unk>", "<s>", "</s>", "<image>", *map(chr, range(32, 127)), "\n"]
    inner = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def text_options(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> dict[str, Any]:
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return options | changes


def save_llama(folder: Path, **changes: Any) -> Path:
    """A Llama whose token "." is massive in `SINK_DIM`; `changes` go to its config."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = LlamaForCausalLM(LlamaConfig(**text_options(tokenizer, **changes)))
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("."), SINK_DIM] = 60.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_mixtral(folder: Path) -> Path:
    """A mixture of experts, whose experts transformers merges while it loads them."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = MixtralConfig(**text_options(tokenizer, num_local_experts=4, num_hidden_layers=2))
    MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_llava(folder: Path) -> Path:
    """A LLaVA with 9 visual tokens a picture; its BOS token is massive in `SINK_DIM`."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8
    )
    text = LlamaConfig(**text_options(tokenizer, eos_token_id=None))
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_ID, vision_feature_layer=-1)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[1, SINK_DIM] = 60.0
        for layer in model.model.language_model.layers:
            for matrix in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                matrix.weight.mul_(12)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
