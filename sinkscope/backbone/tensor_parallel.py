"""One model in several processes, each with a part of every layer: transformers' tensor-parallel plans.

    processes 0 1 │ 2 3     torchrun's, two of them to a model
              ────┼────
       team   0 1 │ 2 3     parameters are DTensors over a team's mesh
                            between layers every process of a team has the whole hidden state
                            inside of attention each has some of the heads

The processes of a team run the same passes at the same time, for they add up partial results inside of each.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sinkscope.backbone.anatomy import Anatomy, decoder_layers
from sinkscope.backbone.attention_kinds import interface_caller
from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.processes import Process, refuse_uneven_teams

APART = 1e-3
"""Difference, over the mean magnitude, up to which the processes of a team have the same hidden state. They get the
same sums, so whole states are the same to the last bit; where sums are not brought together, all numbers differ."""


@dataclass(frozen=True)
class Team:
    """The processes that hold one model together; a process that holds it alone is a team of its own.

    Attributes
    ----------
    ranks : tuple of int
        Their numbers among all processes, ascending; empty where there are no others at all.
    device : str
        Type of the devices that hold the model.
    """

    ranks: tuple[int, ...] = ()
    device: str = "cpu"
    _group: Any = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        return max(1, len(self.ranks))

    def mean(self, values: Tensor, counts: Tensor) -> Tensor:
        """The mean over all that the processes hold: of each the mean `values` of `counts` things.

        Parameters
        ----------
        values : float32 [..., n]
        counts : float32 [n]
            Positive.
        """
        if self.size == 1:
            return values
        # In one message, for each costs more than it carries.
        packed = torch.cat([(values * counts).reshape(-1), counts]).to(self.device)
        distributed.all_reduce(packed, group=self._group)
        packed = packed.to(values.device)
        return packed[: values.numel()].view_as(values) / packed[values.numel() :]

    def spread(self, states: Tensor) -> Tensor:
        """How far the processes' states are apart at most, over their mean magnitude: float32 [n, D] gives [n]."""
        extremes = torch.cat([states, -states]).to(self.device)
        if self.size > 1:
            distributed.all_reduce(extremes, distributed.ReduceOp.MAX, group=self._group)
        greatest, least = extremes[: len(states)], -extremes[len(states) :]
        magnitude = greatest.abs().maximum(least.abs()).mean(dim=1).clamp_min(torch.finfo(states.dtype).tiny)
        return (greatest - least).amax(dim=1) / magnitude


def team_of(model: nn.Module) -> Team:
    """The processes that hold a model together, as its parameters say.

    Raises
    ------
    UnsupportedModelError
        If it is sharded for training (FSDP) or over more than one mesh, or its parts are quantised by torchao.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return Team()
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    parameters = list(model.parameters())
    meshes = {parameter.device_mesh for parameter in parameters if isinstance(parameter, DTensor)}
    if not meshes:
        return Team((distributed.get_rank(),))
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        raise UnsupportedModelError(
            "the model is sharded for training (FSDP), so its weights come together in every pass; load it with "
            'tensor_parallel=N, or with device_map="auto"'
        )
    if any(is_traceable_wrapper_subclass(entry) for entry in parameters if not isinstance(entry, DTensor)):
        raise UnsupportedModelError(
            "the quantised weights of the model do not tell which part of the whole they are; load it with "
            'device_map="auto", or not quantised'
        )
    groups = {tuple(sorted(mesh.mesh.reshape(-1).tolist())): mesh for mesh in meshes}
    ranks, mesh = next(iter(groups.items()))
    if len(groups) > 1 or mesh.ndim > 1:
        raise UnsupportedModelError(
            "the weights of the model are split over several meshes of processes, not by one tensor-parallel plan; "
            "load it with tensor_parallel=N"
        )
    return Team(ranks, mesh.device_type, mesh.get_group())


def whole(tensor: Tensor) -> Tensor:
    """A parameter whose parts are brought together; all processes of the team must ask for it at the same time."""
    gather = getattr(tensor, "full_tensor", None)  # Only DTensors have it.
    return tensor if gather is None else gather()


def plan_options(size: int, device_map: Any, process: Process) -> dict[str, Any]:
    """Options of ``from_pretrained`` for a model that `size` processes hold together.

    Raises
    ------
    InputError
        If the processes, their devices or transformers do not allow it.
    """
    refuse_uneven_teams(process, size)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = "cpu" if accelerator is None else accelerator.type
    if device_map not in ("auto", None, device):
        raise InputError(
            f"a model that several processes hold together is put on one device of each, here {device}; leave the "
            f"device at auto, not {device_map}"
        )
    devices = process.local_size if device == "cpu" else torch.accelerator.device_count()
    if devices < process.local_size:
        raise InputError(
            f"{process.local_size} processes that hold models together need a device each, and this machine has "
            f"{devices}; start as many processes"
        )
    return {"distributed_config": _distributed_config(size, process.size // size)}


def _distributed_config(size: int, teams: int) -> Any:
    """transformers' description of several models, each held by `size` processes."""
    from transformers.distributed import DistributedConfig

    if not hasattr(DistributedConfig, "dp_size"):
        raise InputError("a model in several processes needs transformers 5.23 or newer; update it")

    class Teams(DistributedConfig):
        """The mesh of several models, of which none is sharded any further for training (FSDP)."""

        @property
        def dp_size(self) -> int:
            return 1

    return Teams(tp_size=size, dp_replicate_size=teams)


def refuse_split_heads(model: nn.Module, anatomy: Anatomy, size: int) -> None:
    """Refuse a model whose plan would cut key-value heads in pieces.

    Raises
    ------
    InputError
        With the numbers of processes that do.
    """
    heads = anatomy.num_kv_heads
    if not heads or heads % size == 0 or not _attention_is_split(model, anatomy):
        return
    fitting = [str(number) for number in range(1, heads + 1) if heads % number == 0]
    raise InputError(
        f"{size} processes cannot share the {heads} key-value heads of {anatomy.model_type} evenly; choose one of "
        f"{', '.join(fitting)}"
    )


def _attention_is_split(model: nn.Module, anatomy: Anatomy) -> bool:
    from torch.distributed.tensor import DTensor

    return any(
        isinstance(parameter, DTensor)
        for layer in decoder_layers(model, anatomy)
        for module in layer.modules()
        if interface_caller(type(module)) is not None
        for parameter in module.parameters()
    )
