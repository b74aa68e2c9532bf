"""What kind of attention each decoder layer holds, by its structure: how far it sees, and what changes its weights."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedConfig

from sinkscope.backbone.config_values import count_of, value_of

Span = Literal["full", "sliding", "chunked", "none"]
_WINDOWS = {"sliding": "sliding_window", "chunked": "attention_chunk_size"}


@dataclass(frozen=True)
class AttentionKind:
    """The attention of one layer.

    Attributes
    ----------
    span : "full", "sliding", "chunked" or "none"
        Which earlier tokens a query may see. "none": the layer holds no softmax attention (linear, recurrent, or none).
    window : int or None
        Tokens of a sliding window or a chunk, as the config states it.
    features : tuple of str
        Of "grouped" (several query heads share keys and values), "latent" (keys and values from a low-rank state, MLA),
        "learned sinks" (a logit per head, fixed or made from the token, that takes a part of the row), "gated" (the
        output is gated), "softcap".
    """

    span: Span
    window: int | None = None
    features: tuple[str, ...] = ()


def interface_caller(kind: type) -> Any:
    """The method of a module class that calls transformers' attention interface, or None."""
    for owner in kind.__mro__:
        for method in vars(owner).values():
            function = inspect.unwrap(method) if callable(method) else None
            if "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(function, "__code__", None), "co_names", ()):
                return function
    return None


def holds_attention(module: nn.Module) -> bool:
    """Whether attention of any kind is somewhere in a module."""
    return any(hasattr(part, "is_causal") or "Attention" in type(part).__name__ for part in module.modules())


def holds_softmax_attention(layer: nn.Module, config: PreTrainedConfig, index: int) -> bool:
    """Whether a decoder layer holds softmax attention, perhaps beside a recurrence."""
    stated = _stated(config, index)
    if any(word in stated for word in ("linear", "mamba", "conv", "recurrent")):
        return False
    return "attention" in stated or bool(_attention_modules(layer))


def kind_of(layer: nn.Module, config: PreTrainedConfig, index: int) -> AttentionKind:
    """The attention of decoder layer `index`."""
    if not holds_softmax_attention(layer, config, index):
        return AttentionKind("none")
    modules = _attention_modules(layer)
    span = _span(modules, config, _stated(config, index))
    window = None
    if span in _WINDOWS:
        held = (count_of(place, _WINDOWS[span]) for place in (*modules, config))
        window = next((count for count in held if count), None)
    return AttentionKind(span, window, tuple(name for name, there in _features(modules, config).items() if there))


def key_value_heads(modules: Iterable[nn.Module], config: PreTrainedConfig) -> int | None:
    """Heads of keys and values, as the config or else the attention modules state them; else as many as of queries."""
    stated = count_of(config, "num_key_value_heads")
    held = (count for module in modules if (count := count_of(module, "num_kv_heads")))
    return stated or next(held, None) or count_of(config, "num_attention_heads")


def _stated(config: PreTrainedConfig, index: int) -> str:
    """The config's own word for the layer, such as "sliding_attention"; empty where it has none."""
    kinds = value_of(config, "layer_types")
    return str(kinds[index]) if isinstance(kinds, (list, tuple)) and index < len(kinds) else ""


def _attention_modules(layer: nn.Module) -> list[nn.Module]:
    found = [module for module in layer.modules() if hasattr(module, "is_causal")]
    # Older modeling files say it by the class's name alone; the layer itself may be named after what it holds.
    named = [module for module in layer.modules() if "Attention" in type(module).__name__]
    return found or [module for module in named if module is not layer]


def _span(modules: list[nn.Module], config: PreTrainedConfig, stated: str) -> Span:
    if "sliding" in stated or "local" in stated:
        return "sliding"
    if "chunked" in stated:
        return "chunked"
    if stated:
        return "full"
    if any(count_of(module, "sliding_window") for module in modules):
        return "sliding"
    every = count_of(config, "sliding_window") and value_of(config, "use_sliding_window") is not False
    return "sliding" if every and not any(hasattr(module, "sliding_window") for module in modules) else "full"


def _features(modules: list[nn.Module], config: PreTrainedConfig) -> dict[str, bool]:
    heads, shared = count_of(config, "num_attention_heads") or 0, key_value_heads(modules, config) or 0
    latent = any(count_of(module, "kv_lora_rank") for module in modules)
    vectors = any(parameter.numel() == heads for module in modules for parameter in module.parameters(recurse=False))
    made = any("sink" in name for module in modules for name, _ in module.named_children())
    capped: list[Any] = [value_of(place, "attn_logit_softcapping") for place in (*modules, config)]
    return {
        "grouped": not latent and 0 < shared < heads,
        "latent": latent,
        "learned sinks": vectors or made,
        "gated": any(_is_gated(module) for module in modules),
        "softcap": any(value for value in capped),
    }


def _is_gated(module: nn.Module) -> bool:
    """Whether attention gates what it gives: by a projection of its own, or by the second half of the queries'."""
    if any("gate" in name for name, _ in module.named_children()):
        return True
    first, last = getattr(module, "q_proj", None), getattr(module, "o_proj", None)
    if not isinstance(first, nn.Linear) or not isinstance(last, nn.Linear):
        return False
    return first.out_features == 2 * last.in_features
