"""Low-rank updates of linear layers, in the few lines that the demo needs."""

from collections.abc import Mapping

import torch
from torch import nn

from sinkscope.demo.recipe import LORA_ALPHA, LORA_RANK, LORA_TARGETS


class LoraLinear(nn.Module):
    """A frozen linear layer plus the trainable update ``alpha / rank * B @ A``."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        # A zero start leaves the pretrained model unchanged until the first step.
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out]."""
        update = nn.functional.linear(nn.functional.linear(hidden, self.down), self.up)
        return self.base(hidden) + self.scale * update


def add_lora(layers: nn.Module, seed: int) -> dict[str, LoraLinear]:
    """Freeze a module and wrap its target linear layers in place.

    Returns
    -------
    dict
        The wrapped layers by their path inside ``layers``, such as "0.self_attn.q_proj".
    """
    torch.manual_seed(seed)
    layers.requires_grad_(False)
    targets = [
        (path, module)
        for path, module in layers.named_modules()
        if isinstance(module, nn.Linear) and path.rsplit(".", 1)[-1] in LORA_TARGETS
    ]
    wrapped = {}
    for path, module in targets:
        parent, name = path.rsplit(".", 1)
        wrapped[path] = LoraLinear(module, LORA_RANK, LORA_ALPHA)
        setattr(layers.get_submodule(parent), name, wrapped[path])
    return wrapped


def lora_state(wrapped: Mapping[str, LoraLinear]) -> dict[str, torch.Tensor]:
    """Return the trained updates: "<path>.A" [rank, in] and "<path>.B" [out, rank]."""
    state = {}
    for path, layer in wrapped.items():
        state[f"{path}.A"] = layer.down.detach()
        state[f"{path}.B"] = layer.up.detach()
    return state


def merge_lora(layers: nn.Module, state: Mapping[str, torch.Tensor], rank: int, alpha: float) -> None:
    """Add the updates of ``lora_state`` to the weights of plain linear layers, in place.

    Parameters
    ----------
    layers : nn.Module
        The decoder layer list that the paths in ``state`` start from.
    state : mapping
        "<path>.A" [rank, in] and "<path>.B" [out, rank], any float dtype.
    rank, alpha : int, float
        The update is ``alpha / rank * B @ A``, computed in float32.
    """
    for path in sorted({name.rsplit(".", 1)[0] for name in state}):
        weight = layers.get_submodule(path).weight
        assert isinstance(weight, nn.Parameter)
        update = state[f"{path}.B"].float() @ state[f"{path}.A"].float()
        weight.data += (alpha / rank * update).to(weight.dtype)
