"""Which parameters write into the residual stream, found by following it through the model on the meta device.

From the state that leaves a decoder layer, back through additions, norms and other elementwise operations, to the
first matrix products: the parameters of those write. Works the same for transposed layouts, stacked experts, fused
projections, sandwich norms (whose weight scales what is written) and layers whose parts run side by side; no name is
ever looked at.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sinkscope.backbone.anatomy import Anatomy
from sinkscope.backbone.hooks import entering_states
from sinkscope.errors import UnsupportedModelError
from sinkscope.weights.dataflow import Dataflow, Node, View

PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._grouped_mm", "aten.mv", "aten.addmv")
PRODUCT_WORDS = ("grouped_mm", "linear", "matmul", "convolution")
TRACED_TOKENS = 4


@dataclass(frozen=True)
class Scale:
    """A parameter [D] that scales what a matrix writes, entry by entry: `offset` + w."""

    parameter: str
    offset: float = 0.0


@dataclass(frozen=True)
class Writer:
    """A parameter whose product is added to the residual stream.

    Attributes
    ----------
    layer : int
        The decoder layer.
    kind : str
        "attention" where it reads what attention mixed, else "mlp".
    parameter : str
        Its name in the model.
    axis : int
        The axis that runs over the hidden size D: one row of the matrix for each dimension that it writes.
    scales : tuple of Scale
        What is multiplied on top, such as the weight of a norm after the block.
    """

    layer: int
    kind: str
    parameter: str
    axis: int
    scales: tuple[Scale, ...] = ()


def find_writers(model: nn.Module, anatomy: Anatomy) -> tuple[Writer, ...]:
    """The writers of all layers, by following the residual stream through a model on the meta device.

    Parameters
    ----------
    model : nn.Module
        On the meta device.
    anatomy : Anatomy
        Of the model.

    Raises
    ------
    UnsupportedModelError
        If the stream cannot be followed: the forward pass needs values, or no parameter writes into it.
    """
    flow, states = Dataflow(model), {}
    ends: dict[int, Node] = {}

    def see(layer: int, state: Tensor) -> None:
        ends[layer] = states[layer] = flow.node(state)

    ids = torch.ones(1, TRACED_TOKENS, dtype=torch.int64, device="meta")
    try:
        with torch.no_grad(), flow, entering_states(model, anatomy, see):
            model(input_ids=ids, use_cache=False)
    except UnsupportedModelError:
        raise
    except Exception as error:  # Whatever a model's code does without values; what was seen so far may be enough.
        if len(ends) <= anatomy.num_layers:
            raise UnsupportedModelError(
                f"the residual stream of {anatomy.model_type} cannot be followed without values "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); profile the "
                "model instead"
            ) from error
    skipped = [layer for layer in range(anatomy.num_layers + 1) if layer not in ends]
    if skipped:
        raise UnsupportedModelError(
            f"layer {skipped[0]} of {anatomy.model_type} takes no part in a text-only forward pass, so its residual "
            "stream cannot be followed; profile the model instead"
        )
    width = anatomy.hidden_size
    sizes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    writers = [
        writer
        for layer in range(anatomy.num_layers)
        for writer in _writers(layer, ends[layer + 1], ends[layer], width, sizes)
    ]
    if not writers:
        raise UnsupportedModelError(
            f"no matrix of {anatomy.model_type} was found to write into the residual stream; profile the model instead"
        )
    return tuple(_with_siblings(writers, sizes))


def _writers(layer: int, end: Node, start: Node, width: int, sizes: dict[str, tuple[int, ...]]) -> list[Writer]:
    products: dict[str, tuple[Node, int, tuple[Scale, ...]]] = {}
    stack: list[tuple[Node, tuple[Scale, ...]]] = [(end, ())]
    seen: set[int] = {id(start)}
    while stack:
        node, scales = stack.pop()
        if id(node) in seen:
            continue
        product = _product(node, width, sizes)
        if product is not None:
            products.setdefault(product[0], (node, product[1], scales))
            continue
        seen.add(id(node))
        if _is_product(node) and any(node.views):
            continue  # A router's weights, say: what it reads is no part of the sum.
        behind = scales + _scales_of(node, width)
        stack += [(entry, behind) for entry, view in zip(node.inputs, node.views, strict=True) if view is None]
    return [
        Writer(layer, "attention" if _mixes(node, seen) else "mlp", parameter, axis, scales)
        for parameter, (node, axis, scales) in products.items()
    ]


def _product(node: Node, width: int, sizes: dict[str, tuple[int, ...]]) -> tuple[str, int] | None:
    """The parameter of a matrix product that has D outputs, with the axis that runs over them."""
    if not _is_product(node):
        return None
    for place, view in enumerate(node.views):
        if view is None or len(sizes[view.parameter]) < 2:
            continue
        axis = _output_axis(node, place, view, width, sizes[view.parameter])
        if axis is not None:
            return view.parameter, axis
    return None


def _is_product(node: Node) -> bool:
    return node.operation in PRODUCTS or any(word in node.operation for word in PRODUCT_WORDS)


def _output_axis(node: Node, place: int, view: View, width: int, size: tuple[int, ...]) -> int | None:
    """The parameter's axis over which the product does not sum, if it is D long."""
    shape = node.shapes[place]
    others = [other for index, other in enumerate(node.shapes) if index != place and len(other) >= 2]
    last_is_output = place > 0 and bool(others)
    if node.operation in ("aten.mm", "aten.bmm") and place == 0:
        last_is_output = False
    axis = view.axes[-1 if last_is_output else -2] if len(shape) >= 2 else None
    if axis is None:
        # The arrangement was lost on the way; where only one axis fits there is no doubt.
        fitting = [index for index in range(max(0, len(size) - 2), len(size)) if size[index] == width]
        axis = fitting[0] if len(fitting) == 1 else None
    return axis if axis is not None and size[axis] == width else None


def _scales_of(node: Node, width: int) -> tuple[Scale, ...]:
    """Parameters [D] that an elementwise operation or a norm multiplies on its input."""
    if "mul" not in node.operation and "norm" not in node.operation:
        return ()
    views = [
        view
        for view, shape in zip(node.views, node.shapes, strict=True)
        if view is not None and shape[-1:] == (width,) and view.axes[-1] is not None and len(shape) == 1
    ]
    # Of a layer norm's weight and bias the first multiplies.
    return tuple(Scale(view.parameter, view.offset) for view in views[:1])


def _mixes(node: Node, stream: set[int]) -> bool:
    """Whether softmax attention lies between the residual stream and this product."""
    stack, seen = list(node.inputs), set(stream)
    while stack:
        entry = stack.pop()
        if id(entry) in seen:
            continue
        seen.add(id(entry))
        over_keys = bool(entry.shapes) and len(entry.shapes[0]) == 4
        if "scaled_dot_product" in entry.operation or ("_softmax" in entry.operation and over_keys):
            return True
        stack += entry.inputs
    return False


def _with_siblings(writers: list[Writer], sizes: dict[str, tuple[int, ...]]) -> list[Writer]:
    """The same with the other experts of a list, of which the trace saw the first only."""
    complete: dict[str, Writer] = {writer.parameter: writer for writer in writers}
    for writer in writers:
        for place in list(re.finditer(r"(?<=\.)0(?=\.)", writer.parameter))[1 if writer.layer == 0 else 0 :]:
            head, tail = writer.parameter[: place.start()], writer.parameter[place.end() :]
            number = 1
            while (name := f"{head}{number}{tail}") in sizes and sizes[name] == sizes[writer.parameter]:
                complete.setdefault(name, Writer(writer.layer, writer.kind, name, writer.axis, writer.scales))
                number += 1
    return sorted(complete.values(), key=lambda writer: writer.layer)
