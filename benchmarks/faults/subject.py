"""What the faults are done to: a small model with a sink planted into its weights, texts, and the commands on them."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.coverage.words import BOS_ID, EOS_ID, PAD_ID, tokenizer
from sinkscope.calibration import default_texts

WIDTH, DEPTH, HEADS, GROUPS = 64, 3, 4, 2
SINK, SHARED = 11, 5
"""The planted sink dimension, and one whose entry all tokens share, so that all of them can ask for the sink."""

RUN, PROFILE = "run.h5", "profile.json"
TEXTS = 24


@dataclass(frozen=True)
class Subject:
    """A saved model and its calibration texts."""

    model: Path
    texts: Path

    @classmethod
    def make(cls, folder: Path, model: Any = None) -> "Subject":
        """Save a model, by default one with a planted sink, and texts."""
        folder.mkdir(parents=True, exist_ok=True)
        (planted_model() if model is None else model).save_pretrained(folder / "model")
        tokenizer().save_pretrained(folder / "model")
        (folder / "texts.txt").write_text("\n\n".join(some_texts()), encoding="utf-8")
        return cls(folder / "model", folder / "texts.txt")

    def profiling(self, *options: str) -> list[str]:
        """The command `sinkscope profile`, with both files in the current folder."""
        files = ["--texts", str(self.texts), "--run", RUN, "-o", PROFILE]
        return ["profile", str(self.model), *files, *options]


def planted_model(intermediate_size: int = 96) -> LlamaForCausalLM:
    """A random Llama in float32 whose first token is massive in dimension `SINK` and draws most of the attention."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        intermediate_size=intermediate_size,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    model = LlamaForCausalLM(config)
    head = WIDTH // HEADS
    # The coordinate of a head that its position turns least.
    steady = head // 2 - 1
    with torch.no_grad():
        model.model.embed_tokens.weight[:, SHARED] = 0.02
        model.model.embed_tokens.weight[BOS_ID, SINK] = 6.4
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight[steady::head, SHARED] = 3.0
            layer.self_attn.k_proj.weight[steady::head, SINK] = 2.0
    return model


def some_texts(count: int = TEXTS, seed: int = 0) -> list[str]:
    """Pieces of 5 to 40 words of the embedded calibration texts, so that there are many small samples."""
    words = " ".join(sample.text or "" for sample in default_texts()).split()
    draw = random.Random(seed)
    starts = [draw.randrange(len(words) - 40) for _ in range(count)]
    return [" ".join(words[start : start + draw.randint(5, 40)]) for start in starts]
