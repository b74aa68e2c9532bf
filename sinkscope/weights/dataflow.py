"""What flows where in a forward pass without data: every operation on the meta device, as a graph.

    with Dataflow(model) as flow:        operations on meta tensors ──> nodes with their inputs
        model(input_ids)                 parameters keep track of themselves through views, transposes and casts
    flow.node(tensor)

Nothing is computed, so it costs the same for any size. Control flow that asks for values (which expert has tokens, and
how many?) is answered with "the first one, all of them", which is enough to see what every expert does.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
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
    """One operation.

    Attributes
    ----------
    operation : str
        Its name, such as "aten.mm".
    number : int
        Larger than those of its inputs: its place in the order of all operations.
    inputs : list of Node
        What gave its inputs.
    views : list of View or None
        For each input the parameter that it is a view of.
    shapes : list of tuple of int
        The shapes of the inputs.
    result : tuple of int
        The shape of what it gives (the first, if several).
    moving : bool
        Whether it depends on the model's input: parameters, buffers and positions do not.
    """

    operation: str
    number: int
    inputs: list["Node"] = field(default_factory=list)
    views: list[View | None] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    result: tuple[int, ...] = ()
    moving: bool = False


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
        self._count = count()
        for name, parameter in model.named_parameters():
            self._put(parameter, Node("parameter", next(self._count)))
            self._views[id(parameter)] = View(name, tuple(range(parameter.dim())))
        for buffer in model.buffers():
            self._put(buffer, Node("buffer", next(self._count)))

    def node(self, tensor: Tensor) -> Node:
        """The operation that gave `tensor`, with everything that was written into its memory since."""
        node = self._nodes.get(id(tensor)) or self._put(tensor, Node("input", next(self._count), moving=True))
        written = self._written.get(_memory(tensor), node)
        if written.number > node.number:
            inputs, moving = [node, written], node.moving or written.moving
            node = self._put(tensor, Node("written", next(self._count), inputs, [None, None], moving=moving))
        return node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func.overloadpacket)
        tensors = list(_tensors((args, kwargs)))
        result = _answer(name, tensors, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        outputs = list(_tensors(result))
        if outputs:
            inputs = [self.node(tensor) for tensor in tensors]
            node = Node(
                name,
                next(self._count),
                inputs,
                [self._views.get(id(tensor)) for tensor in tensors],
                [tuple(tensor.shape) for tensor in tensors],
                tuple(outputs[0].shape),
                any(entry.moving for entry in inputs),
            )
            for output in outputs:
                self._put(output, node)
                if func._schema.is_mutable:
                    self._written[_memory(output)] = node
            if len(outputs) == 1 or name in ("aten.split", "aten.chunk", "aten.unbind", "aten.split_with_sizes"):
                self._follow(name, tensors, args, outputs)
        return result

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

    def _put(self, tensor: Tensor, node: Node) -> Node:
        # Identities are reused once a tensor is gone; without data, keeping them all costs nothing.
        self._alive.append(tensor)
        self._nodes[id(tensor)] = node
        return node


class WithoutValues(TorchDispatchMode):
    """Operations on the meta device, control flow answered as in a `Dataflow`, without the graph."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = _answer(str(func.overloadpacket), list(_tensors((args, kwargs))), args, kwargs)
        return func(*args, **kwargs) if result is None else result


def _answer(name: str, tensors: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation that needs values, of which nothing is known; None for all others."""
    if not any(tensor.is_meta for tensor in tensors):
        return None
    first = tensors[0]
    if name == "aten._local_scalar_dense":
        return False if first.dtype == torch.bool else 0 if not first.is_floating_point() else 0.0
    if name == "aten._to_copy" and torch.device(kwargs.get("device") or "meta").type == "cpu" and first.is_meta:
        return torch.zeros(first.shape, dtype=kwargs.get("dtype") or first.dtype)
    if name == "aten.nonzero":
        return _integers(1, first.dim())
    if name == "aten.index" and any(_is_mask(index) for index in args[1]):
        # A mask picks one entry, as the indices that it stands for would: one along each of its axes.
        picked = [[_integers(1)] * index.dim() if _is_mask(index) else [index] for index in args[1]]
        return torch.ops.aten.index(first, [index for indices in picked for index in indices])
    if name == "aten.masked_select":
        return first.new_empty(1)
    if name in ("aten._unique2", "aten.unique_consecutive"):
        return first.new_empty(1), _integers(*first.shape), _integers(1)
    if name == "aten.split_with_sizes":
        axis = args[2] if len(args) > 2 else 0
        if sum(args[1]) != first.shape[axis]:
            # Sizes that were values: the first part gets all.
            sizes = [first.shape[axis], *[0] * (len(args[1]) - 1)]
            return torch.ops.aten.split_with_sizes(first, sizes, axis)
    if name in ("aten.equal", "aten.allclose"):
        return True
    if name == "aten._grouped_mm":
        # Of fixed dtypes only; here the shape is all that matters.
        return first.new_empty(*first.shape[:-1], tensors[1].shape[-1])
    if name == "aten.bincount":
        return _integers(1)
    return None


def _integers(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


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
