"""A tiny model with a planted sink as a folder, and texts for it."""

import random
import string
from pathlib import Path

import torch
from cli_models import byte_tokenizer
from planted_sink import plant_sink
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, DEPTH, HEADS, GROUPS, SINK = 64, 4, 4, 2, 5
LETTERS = string.ascii_lowercase + " "


def save_sink_llama(folder: Path, *, seed: int = 0) -> Path:
    """All heads attend to "." and BOS, which are large in dimension `SINK` from the embedding on."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        attention_bias=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # So slow that the last pair of components keeps its direction at every position.
        rope_parameters={"rope_type": "default", "rope_theta": 1e9},
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.0 if "embed_tokens" in name else 0.02)
    plant_sink(model, tokenizer.convert_tokens_to_ids([".", "<s>"]), SINK)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_texts(path: Path, first: int, stop: int) -> Path:
    """Texts number `first` to `stop` of an endless row of different ones, one paragraph each."""
    paragraphs = []
    for number in range(first, stop):
        chooser = random.Random(number)
        letters = chooser.choices(LETTERS, k=600 + number)
        for place in (0, *chooser.sample(range(20, 500), 3)):
            letters[place] = "."
        paragraphs.append("".join(letters))
    path.write_text("\n\n".join(paragraphs))
    return path
