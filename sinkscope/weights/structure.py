"""Which parameters write into the residual stream, found by following it through the model on the meta device.

From the state that leaves a decoder layer, back through additions, norms and other elementwise operations, to the
first matrix products: the parameters of those write. Works the same for transposed layouts, stacked experts, fused
projections, sandwich norms (whose weight scales what is written) and layers whose parts run side by side; no name is
ever looked at.
"""

import re
from dataclasses import dataclass, replace

from torch import nn

from sinkscope.backbone.anatomy import Anatomy
from sinkscope.errors import UnsupportedModelError
from sinkscope.weights.dataflow import Node, View
from sinkscope.weights.stream import TRACED_TOKENS, follow_stream

PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._grouped_mm", "aten.mv", "aten.addmv")
PRODUCT_WORDS = ("grouped_mm", "linear", "matmul", "convolution")
BOUNDED = ("aten.sigmoid", "aten.tanh", "aten._softmax")


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
        "attention" where all that it reads has been mixed over tokens, by attention, a convolution or a recurrence;
        else "mlp".
    parameter : str
        Its name in the model.
    axis : int
        The axis that runs over the hidden size D: one row of the matrix for each dimension that it writes.
    scales : tuple of Scale
        What is multiplied on top, such as the weight of a norm after the block.
    reads : tuple of Scale
        What the stream is multiplied with on its way into the block: the weight of the norm before it.
    """

    layer: int
    kind: str
    parameter: str
    axis: int
    scales: tuple[Scale, ...] = ()
    reads: tuple[Scale, ...] = ()


def find_writers(model: nn.Module, anatomy: Anatomy) -> tuple[Writer, ...]:
    """The writers of all layers, by following the residual stream through a model on the meta device.

    Layers that take no part in a text-only forward pass, such as those of cross-attention to an image, have none.

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
    states = follow_stream(model, anatomy)
    width = anatomy.hidden_size
    sizes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    writers = [
        writer
        for layer in range(anatomy.num_layers)
        for writer in _writers(layer, states[layer + 1], states[layer], width, sizes)
    ]
    if not writers:
        raise UnsupportedModelError(
            f"no matrix of {anatomy.model_type} was found to write into the residual stream; profile the model instead"
        )
    return tuple(_with_siblings(writers, sizes))


def _writers(layer: int, end: Node, start: Node, width: int, sizes: dict[str, tuple[int, ...]]) -> list[Writer]:
    products: dict[str, tuple[Node, int, tuple[Scale, ...]]] = {}
    stack: list[tuple[Node, tuple[Scale, ...]]] = [(end, ())]
    stream: set[int] = set()
    while stack:
        node, scales = stack.pop()
        # What is older than the state entering the layer was written before it.
        if node.number <= start.number or node.number in stream:
            continue
        product = _product(node, width, sizes)
        if product is not None:
            products.setdefault(product[0], (node, product[1], scales))
            continue
        stream.add(node.number)
        if node.operation in BOUNDED or (_is_product(node) and any(node.views)):
            continue  # Gates and the weights of a router scale what is written; what they read is no part of the sum.
        behind = scales + _scales_of(node, width)
        stack += [(entry, behind) for entry, view in zip(node.inputs, node.views, strict=True) if view is None]
    writers = []
    for parameter, (node, axis, scales) in products.items():
        between = _between(node, stream, start)
        kind = "attention" if _reads_mixed(node, between) else "mlp"
        writers.append(Writer(layer, kind, parameter, axis, scales, _read_through(between, stream, start, width)))
    return writers


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


def _between(product: Node, stream: set[int], start: Node) -> list[Node]:
    """What lies between the residual stream of a layer and a product that writes into it, in order."""
    between: dict[int, Node] = {}
    stack = list(product.inputs)
    while stack:
        node = stack.pop()
        if node.number > start.number and node.number not in stream and node.number not in between:
            between[node.number] = node
            stack += node.inputs
    return [between[number] for number in sorted(between)]


def _read_through(between: list[Node], stream: set[int], start: Node, width: int) -> tuple[Scale, ...]:
    """Parameters [D] that scale the stream before the first product with a matrix."""
    raw = {start.number, *stream}
    found: dict[Scale, None] = {}
    for node in between:
        if not _is_product(node) and any(entry.number in raw for entry in node.inputs):
            raw.add(node.number)
            found |= dict.fromkeys(_scales_of(node, width))
    return tuple(found)


def _reads_mixed(product: Node, between: list[Node]) -> bool:
    """Whether what a product reads was mixed over tokens since it left the residual stream; of joined parts: all."""
    mixed: set[int] = set()
    for node in between:
        parts = [entry.number in mixed for entry in node.inputs if entry.moving]
        joined = node.operation == "aten.cat"
        if _mixes_tokens(node) or (any(parts) and (all(parts) or not joined)):
            mixed.add(node.number)
    return any(entry.number in mixed for entry in product.inputs)


def _mixes_tokens(node: Node) -> bool:
    """Whether an operation takes values from one token to another: attention, a convolution, a step of a recurrence."""
    if not node.moving:
        return False
    if "convolution" in node.operation:
        return node.shapes[1][-1] > 1
    if node.operation == "aten.select":
        return node.shapes[0].count(TRACED_TOKENS) > node.result.count(TRACED_TOKENS)
    # Attention is a product of activations with activations. One for each token apart has the tokens in front.
    activations = not any(node.views) and sum(entry.moving for entry in node.inputs) >= 2
    if "scaled_dot_product" not in node.operation and not (_is_product(node) and activations):
        return False
    return all(size % TRACED_TOKENS for size in node.shapes[0][:-2])


def _with_siblings(writers: list[Writer], sizes: dict[str, tuple[int, ...]]) -> list[Writer]:
    """The same with the other experts of a list, of which the trace saw the first only."""
    complete = {(writer.layer, writer.parameter): writer for writer in writers}
    for writer in writers:
        for place in list(re.finditer(r"(?<=\.)0(?=\.)", writer.parameter))[1 if writer.layer == 0 else 0 :]:
            head, tail = writer.parameter[: place.start()], writer.parameter[place.end() :]
            number = 1
            while (name := f"{head}{number}{tail}") in sizes and sizes[name] == sizes[writer.parameter]:
                complete.setdefault((writer.layer, name), replace(writer, parameter=name))
                number += 1
    return sorted(complete.values(), key=lambda writer: writer.layer)
