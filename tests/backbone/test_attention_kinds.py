"""What is said of each layer's attention, on the meta device."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sinkscope.backbone.anatomy import Anatomy, find_anatomy
from sinkscope.backbone.attention_kinds import AttentionKind

NONE, CHUNKED = AttentionKind("none"), AttentionKind("chunked", 8192, ("grouped",))
SINKS = ("grouped", "learned sinks")


def anatomy_of(model_type: str, layers: int, **options: Any) -> Anatomy:
    config = AutoConfig.for_model(model_type, num_hidden_layers=layers, **options)
    with torch.device("meta"):
        return find_anatomy(AutoModelForCausalLM.from_config(config))


def full(*features: str) -> AttentionKind:
    return AttentionKind("full", None, features)


def sliding(window: int, *features: str) -> AttentionKind:
    return AttentionKind("sliding", window, features)


@pytest.mark.parametrize(
    ("model_type", "options", "expected"),
    [
        ("llama", {}, [full()] * 3),
        ("gpt2", {}, [full()] * 3),
        ("mistral", {"sliding_window": 64}, [sliding(64, "grouped")] * 3),
        ("mistral", {"sliding_window": None}, [full("grouped")] * 3),
        ("gemma2", {"sliding_window": 32}, [sliding(32, "grouped", "softcap"), full("grouped", "softcap")]),
        (
            "gpt_oss",
            {"num_local_experts": 2},
            [sliding(128, *SINKS), full(*SINKS)],
        ),
        ("deepseek_v3", {"n_routed_experts": 8, "first_k_dense_replace": 2}, [full("latent")] * 2),
        (
            "llama4_text",
            {"num_local_experts": 1},
            [CHUNKED, CHUNKED, CHUNKED, full("grouped")],
        ),
        ("qwen3_next", {"num_experts": 2}, [NONE, NONE, NONE, full("grouped", "gated")]),
        ("falcon_h1", {}, [full("grouped")] * 2),
        ("mamba", {}, [NONE] * 2),
    ],
)
def test_kinds(model_type: str, options: dict[str, Any], expected: list[AttentionKind]) -> None:
    anatomy = anatomy_of(model_type, len(expected), **options)
    assert list(anatomy.attention_kinds) == expected
    assert list(anatomy.attention_layers) == [kind.span != "none" for kind in expected]
