"""A small model of any type with seeded random weights."""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from benchmarks.coverage.overrides import ARGUMENTS
from benchmarks.coverage.shrinking import shrink

AUTO: dict[str, Any] = {"causal-lm": AutoModelForCausalLM, "image-text-to-text": AutoModelForImageTextToText}
STANDARD_DEVIATION = 0.1
LARGEST_MODEL = 120_000_000


class NotBuiltError(Exception):
    """A test model that cannot be had; the message says why."""


def build(kind: str, mapping: str, seed: int = 0) -> nn.Module:
    """The small model of a type, in float32, ready to run.

    Raises
    ------
    NotBuiltError
        If it cannot be built, or stays too large to run.
    """
    config = small_config(kind, mapping)
    torch.manual_seed(seed)
    # Parameters that a model forgets to initialise become NaN, not whatever memory held.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with torch.device("meta"):
            skeleton = AUTO[mapping].from_config(config)
        size = sum(parameter.numel() for parameter in skeleton.parameters())
        if size > LARGEST_MODEL:
            raise NotBuiltError(f"still {size / 1e6:.0f} million parameters after shrinking")
        model = AUTO[mapping].from_config(config, dtype=torch.float32).float().eval()
    except NotBuiltError:
        raise
    except Exception as error:
        raise NotBuiltError(one_line(error)) from error
    finally:
        torch.use_deterministic_algorithms(False)
    spread(model)
    return model


def small_config(kind: str, mapping: str) -> PreTrainedConfig:
    """The type's own config, made small."""
    try:
        config = AutoConfig.for_model(kind, **ARGUMENTS.get(kind, {}))
        shrink(config, kind)
        # Encoder classes become decoders this way, as their documentation asks for.
        if mapping == "causal-lm" and hasattr(config, "is_decoder"):
            config.is_decoder = True
    except Exception as error:
        raise NotBuiltError(one_line(error)) from error
    return config


def spread(model: nn.Module) -> None:
    """Weights large enough that layers and attention do something; the usual initialisation all but idles."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not torch.isfinite(parameter).all():
                parameter.normal_(0.0, STANDARD_DEVIATION)
            elif parameter.ndim >= 2 and parameter.numel() > 1:
                deviation = float(parameter.std())
                if 0 < deviation < STANDARD_DEVIATION:
                    parameter.mul_(STANDARD_DEVIATION / deviation)


def forward(model: Any, **inputs: Any) -> Any:
    """One pass without a cache, where the model knows of one."""
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    with torch.no_grad():
        return model(**inputs)


def one_line(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:220]}".rstrip(": ")
