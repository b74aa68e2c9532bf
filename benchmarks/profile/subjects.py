"""The models that are profiled, and what of a run is made before its time is taken."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import sinkscope
from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.loading import LoadedModel, locate
from sinkscope.backbone.trial import TextEntry
from sinkscope.calibration import Sample, default_texts
from sinkscope.capture.encode import model_inputs
from sinkscope.capture.planning import CapturePlan
from sinkscope.capture.runner import prepare
from sinkscope.capture.settings import CaptureSettings
from sinkscope.pipeline import resolve

SHAPES = {
    "mid": {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 8, "num_attention_heads": 16},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
}
SUBJECTS = ("demo", *SHAPES)


@dataclass(frozen=True)
class Subject:
    """A model with a plan over the embedded texts."""

    loaded: LoadedModel
    entry: TextEntry
    plan: CapturePlan
    settings: CaptureSettings

    @cached_property
    def inputs(self) -> list[dict[str, Any]]:
        """The model's inputs of all batches, which only the forms without sinkscope take as they are."""
        samples = self.plan.samples
        return [model_inputs(self.loaded, [samples[sample] for sample in batch])[0] for batch in self.plan.batches]

    @property
    def device(self) -> str:
        return str(self.loaded.model.device.type)


def load(name: str, device: str = "cpu") -> LoadedModel:
    """``demo:llm``, or a Llama of a given shape with random weights and its tokenizer; bfloat16 off the CPU."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if name == "demo":
        return sinkscope.load("demo:llm", device_map=device, dtype=str(dtype).removeprefix("torch."))
    source, options = locate(resolve("demo:llm"))
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), **SHAPES[name])
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)
    return LoadedModel(model, tokenizer, None, find_anatomy(model), name)


def texts(tokens: int | None = None) -> list[Sample]:
    """The embedded texts, or so many of them, again and again, that they hold about so many tokens."""
    own = default_texts()
    if tokens is None:
        return own
    count = max(1, round(tokens / TOKENS_OF_A_TEXT))
    return [own[place % len(own)] for place in range(count)]


TOKENS_OF_A_TEXT = 160
"""Tokens of an embedded text, about."""


def prepared(loaded: LoadedModel, samples: list[Sample], **settings: Any) -> Subject:
    """Everything up to the first pass."""
    chosen = CaptureSettings(**settings)
    entry, plan = prepare(loaded, samples, chosen, "benchmark")
    return Subject(loaded, entry, plan, chosen)
