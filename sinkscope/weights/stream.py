"""The residual stream of a model on the meta device: what enters every decoder layer, as operations.

    model(ids) ──fails?──> the pretrained models inside that hold the decoder layers, from the outside in
    state entering layer 0, 1, ..., L ──> nodes of a Dataflow

Wrappers around a text decoder may ask for images; the decoder itself needs none. Layers that take no part in a
text-only pass (cross-attention to an image) write nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.backbone.anatomy import Anatomy, decoder_holders, decoder_layers
from sinkscope.errors import UnsupportedModelError
from sinkscope.weights.dataflow import Dataflow, Node

TRACED_TOKENS = 19
"""A prime number that hardly any other size of a model is a multiple of, so that it tells which axis holds tokens."""


def follow_stream(model: nn.Module, anatomy: Anatomy) -> list[Node]:
    """The nodes of the hidden states entering layers 0, ..., L - 1 and of the one leaving the last.

    Parameters
    ----------
    model : nn.Module
        On the meta device.
    anatomy : Anatomy
        Of the model.

    Raises
    ------
    UnsupportedModelError
        If the forward pass needs values, or the hidden size is not constant.
    """
    failure: Exception | None = None
    ids = torch.ones(1, TRACED_TOKENS, dtype=torch.int64, device="meta")
    for holder in decoder_holders(model, anatomy):
        flow = Dataflow(model)
        states: dict[int, Node] = {}
        try:
            with torch.no_grad(), _evaluating(model), flow, _seen_states(model, anatomy, flow, states):
                holder(input_ids=ids, use_cache=False)
        except UnsupportedModelError:
            raise
        except Exception as error:  # Whatever a model's code does without values.
            failure = error
            if anatomy.num_layers not in states:  # Otherwise only what comes after the layers failed.
                continue
        if states:
            entering = states[min(states)]
            return [entering := states.get(layer, entering) for layer in range(anatomy.num_layers + 1)]
    reason = (
        f"{type(failure).__name__}: {next(iter(str(failure).splitlines()), 'no message')}" if failure else "no layer"
    )
    raise UnsupportedModelError(
        f"the residual stream of {anatomy.model_type} cannot be followed without values ({reason}); profile the model "
        "instead"
    ) from failure


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _seen_states(model: nn.Module, anatomy: Anatomy, flow: Dataflow, states: dict[int, Node]) -> Iterator[None]:
    """Fill `states` in a forward pass inside the context: layer l to the node of the state [..., D] entering it."""

    def see(layer: int, state: Any) -> None:
        if not isinstance(state, Tensor) or state.shape[-1:] != (anatomy.hidden_size,):
            shape = list(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise UnsupportedModelError(
                f"the state entering decoder layer {layer} of {anatomy.model_type} is {shape}, not [..., "
                f"{anatomy.hidden_size}]: the hidden size is not constant over depth"
            )
        states[layer] = flow.node(state)

    def before(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(layer, args[0] if args else kwargs.get("hidden_states"))

        return hook

    def after(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # What enters the next layer takes its place, if that takes part.
            see(layer + 1, output[0] if isinstance(output, (tuple, list)) else output)

        return hook

    with ExitStack() as stack:
        for index, layer in enumerate(decoder_layers(model, anatomy)):
            stack.callback(layer.register_forward_pre_hook(before(index), with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(after(index)).remove)
        yield
