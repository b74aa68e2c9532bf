"""What flows where in a forward pass without data: every operation on the meta device, as a graph.

    with Dataflow(model) as flow:        operations on meta tensors ──> nodes with their inputs
        model(input_ids)                 parameters keep track of themselves through views, transposes and casts
    flow.node(tensor)

Nothing is computed, so it costs the same for any size. Control flow that asks for values (which expert has tokens?) is
answered with "the first one", which is enough to see what every expert does.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Axes = tuple[int | None, ...]


@dataclass(frozen=True)
class View:
    """A tensor that holds a parameter's entries in another arrangement.

    Attributes
    ----------
    parameter : str
        Name of the parameter.
    axes : tuple of int or None
        For every axis of the tensor the parameter's axis that runs along it; None where that is not known.
    offset : float
        What was added to it: the weight of some norms counts as 1 + w.
    """

    parameter: str
    axes: Axes
    offset: float = 0.0


@dataclass(eq=False)
class Node:
    """One operation: its name ("aten.mm"), its inputs, and for each input the parameter that it is a view of."""

    operation: str
    inputs: list["Node"] = field(default_factory=list)
    views: list[View | None] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)


class Dataflow(TorchDispatchMode):
    """Records the operations on meta tensors inside the context.

    Parameters
    ----------
    model : nn.Module
        A model on the meta device.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._views: dict[int, View] = {}
        self._nodes: dict[int, Node] = {}
        self._written: dict[int, Node] = {}
        self._alive: list[Tensor] = []
        for name, parameter in model.named_parameters():
            self._keep(parameter)
            self._views[id(parameter)] = View(name, tuple(range(parameter.dim())))

    def node(self, tensor: Tensor) -> Node:
        """The operation that gave `tensor`, with everything that was written into its memory since."""
        node = self._nodes.get(id(tensor))
        if node is None:
            node = self._nodes[id(tensor)] = Node("leaf")
            self._keep(tensor)
        written = self._written.get(_memory(tensor))
        return node if written is None or written is node else Node("written", [node, written], [None, None])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func.overloadpacket)
        tensors = list(_tensors((args, kwargs)))
        result = self._answer(name, tensors)
        if result is None:
            result = func(*args, **kwargs)
        outputs = list(_tensors(result))
        if outputs:
            node = Node(
                name,
                [self.node(tensor) for tensor in tensors],
                [self._views.get(id(tensor)) for tensor in tensors],
                [tuple(tensor.shape) for tensor in tensors],
            )
            for output in outputs:
                self._keep(output)
                self._nodes[id(output)] = node
                if func._schema.is_mutable:
                    self._written[_memory(output)] = node
            if len(outputs) == 1 or name in ("aten.split", "aten.chunk", "aten.unbind", "aten.split_with_sizes"):
                self._follow(name, tensors, args, outputs)
        return result

    def _answer(self, name: str, tensors: list[Tensor]) -> Any:
        """Values of which nothing is known on the meta device."""
        if not any(tensor.is_meta for tensor in tensors):
            return None
        if name == "aten._local_scalar_dense":
            return False if tensors[0].dtype == torch.bool else 0 if not tensors[0].is_floating_point() else 0.0
        if name == "aten.nonzero":
            return torch.zeros(1, tensors[0].dim(), dtype=torch.int64, device="meta")
        if name == "aten.equal":
            return True
        if name == "aten._grouped_mm":
            # Of fixed dtypes only; here the shape is all that matters.
            return tensors[0].new_empty(*tensors[0].shape[:-1], tensors[1].shape[-1])
        if name == "aten.bincount":
            return torch.zeros(1, dtype=torch.int64, device="meta")
        return None

    def _follow(self, name: str, tensors: list[Tensor], args: Any, outputs: list[Tensor]) -> None:
        """Where a parameter goes when it is viewed, transposed, cast, or an expert of it is picked."""
        if not tensors:
            return
        view = self._views.get(id(tensors[0]))
        if view is None:
            return
        for output in outputs:
            axes = _moved(name, view, tensors[0], args, output)
            if axes is not None:
                offset = view.offset
                if name == "aten.add" and not isinstance(args[1], Tensor):
                    offset += float(args[1])
                self._views[id(output)] = View(view.parameter, axes, offset)

    def _keep(self, tensor: Tensor) -> None:
        # Identities are reused once a tensor is gone; without data, keeping them all costs nothing.
        self._alive.append(tensor)


SAME = {
    "aten._to_copy", "aten.clone", "aten.detach", "aten.alias", "aten.contiguous", "aten.to", "aten.lift_fresh",
}  # fmt: skip
"""Operations that keep every entry of their first input in its place."""


def _moved(name: str, view: View, source: Tensor, args: Any, output: Tensor) -> Axes | None:
    """The parameter's axes in the output of an operation on a view of it; None where it is no view any more."""
    axes, rank = view.axes, source.dim()
    if name == "aten.t":
        return tuple(reversed(axes))
    if name in ("aten.transpose", "aten.swapaxes"):
        first, second = args[1] % rank, args[2] % rank
        swapped = list(axes)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        return tuple(swapped)
    if name == "aten.permute":
        return tuple(axes[dim % rank] for dim in args[1])
    if name == "aten.unsqueeze":
        place = args[1] % (rank + 1)
        return (*axes[:place], None, *axes[place:])
    if name == "aten.expand":
        return (*[None] * (output.dim() - rank), *axes)
    if name == "aten.select":
        return axes[: args[1] % rank] + axes[args[1] % rank + 1 :]
    if name in ("aten.slice", "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.narrow"):
        return axes
    if name == "aten.unbind":
        dim = (args[1] if len(args) > 1 else 0) % rank
        return axes[:dim] + axes[dim + 1 :]
    if name in ("aten.index", "aten.index_select"):
        # Picks whole entries along the first axis: experts.
        return (*[None] * (output.dim() - rank + 1), *axes[1:])
    if name in ("aten.view", "aten._unsafe_view", "aten.reshape", "aten.squeeze"):
        return _regrouped(axes, tuple(source.shape), tuple(output.shape))
    shifted = name == "aten.add" and not isinstance(args[1], Tensor)
    if (name in SAME or shifted) and output.shape == source.shape:
        return axes
    return None


def _regrouped(axes: Axes, before: tuple[int, ...], after: tuple[int, ...]) -> Axes:
    """Axes after a change of shape: those whose size is the same at the same distance from one of the ends stay."""
    found: list[int | None] = [None] * len(after)
    for ends in (range(len(after)), range(-1, -len(after) - 1, -1)):
        for place in ends:
            source = place if place >= 0 else len(before) + place
            if not 0 <= source < len(before) or before[place] != after[place]:
                break
            found[place] = axes[place]
    return tuple(found)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
