"""A forward pass as every capture makes it, and where its inputs go."""

import inspect
from typing import Any

import torch
from torch import nn

from sinkscope.errors import SinkscopeError

FAILURES = (RuntimeError, IndexError, ValueError, TypeError, AttributeError, NotImplementedError)
"""What the code of a model raises on inputs that it does not take."""


def forward(model: nn.Module, inputs: dict[str, Any], device: torch.device | None = None) -> None:
    """One forward pass without a cache, and with the logits of one position only where the model allows that.

    Logits over a large vocabulary cost more than the layers of a small model, and nothing here needs them. Inputs go to
    `device`, by default to `input_device`.
    """
    parameters = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        options["use_cache"] = False
    if "logits_to_keep" in parameters:
        # Told a number, some models drop all other positions in the layers that share keys with those below.
        options["logits_to_keep"] = torch.tensor([-1])
    device, dtype = device or input_device(model), model_dtype(model)
    moved = {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
    model(**inputs | moved, **options)


def failed_pass(name: str, error: BaseException) -> SinkscopeError:
    """What is said of a forward pass of the model `name` that ended in one of `FAILURES`."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return SinkscopeError(
        f"the forward pass of {name} failed ({reason}); check that the model runs by itself on such input"
    )


def input_device(model: nn.Module) -> torch.device:
    """Where token ids go: the device of the input embeddings."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    parameter = next((embeddings or model).parameters())
    # Offloaded parameters rest on the meta device; their hooks bring inputs to where the weights will be.
    return torch.device("cpu") if parameter.is_meta else parameter.device


def model_dtype(model: nn.Module) -> torch.dtype:
    """The floating dtype in which the model computes."""
    dtype = getattr(model, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
