"""The hidden state entering each decoder layer, seen or edited through hooks that are always removed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from sinkscope.backbone.anatomy import Anatomy, decoder_layers
from sinkscope.backbone.compiled import uncompiled
from sinkscope.errors import InputError, UnsupportedModelError

StateCallback = Callable[[int, Tensor], None]
StateEdit = Callable[[Tensor], Tensor]


@contextmanager
def entering_states(model: nn.Module, anatomy: Anatomy, callback: StateCallback) -> Iterator[None]:
    """Call ``callback(layer, hidden_state)`` for l = 0..L in every forward pass inside the context.

    Parameters
    ----------
    model : nn.Module
        The model that `anatomy` describes.
    callback : callable
        Takes the layer index l and the hidden state entering it, Tensor [B, T, D], on the device where it is;
        l = L is the output of the last layer, before the final norm. What it returns is ignored.

    Raises
    ------
    UnsupportedModelError
        During the forward pass, if a layer does not receive or return a state of the hidden size.
    """
    layers = list(decoder_layers(model, anatomy))
    last = -1

    def see(index: int, state: Any) -> None:
        nonlocal last
        state = _checked(anatomy, index, state)
        # A layer that takes no part, such as cross-attention to an image where there is none, passes its state on.
        for layer in range(last + 1 if index > last else index, index + 1):
            callback(layer, state)
        last = index

    def before(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A copy of the model holds the hooks of the original.
            if module is layers[index]:
                see(index, args[0] if args else kwargs.get("hidden_states"))

        return hook

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if module is layers[-1]:
            see(len(layers), output[0] if isinstance(output, (tuple, list)) else output)

    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(before(index), with_kwargs=True).remove)
        stack.callback(layers[-1].register_forward_hook(after).remove)
        yield


@contextmanager
def edited_state(model: nn.Module, anatomy: Anatomy, layer: int, edit: StateEdit) -> Iterator[None]:
    """Put ``edit(hidden_state)`` in the place of the state entering `layer`, in every forward pass inside the context.

    Contexts of `entering_states` that are entered later see the edited state, earlier ones the state before it.

    Parameters
    ----------
    model : nn.Module
        The model that `anatomy` describes.
    layer : int
        Index of the decoder layer, 0 to L - 1.
    edit : callable
        Takes the state, Tensor [B, T, D], and returns its replacement; what it is given it must not change. The
        replacement may hold more samples than the pass began with, where all that the layers read beside it (masks,
        position embeddings) has a batch of one that broadcasts.

    Raises
    ------
    InputError
        If there is no such layer.
    UnsupportedModelError
        During the forward pass, if the layer does not receive a state of the hidden size.
    """
    layers = decoder_layers(model, anatomy)
    if not 0 <= layer < len(layers):
        raise InputError(f"there is no decoder layer {layer} to edit; {anatomy.model_type} has {len(layers)}")

    def replace(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (edit(_checked(anatomy, layer, args[0])), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": edit(_checked(anatomy, layer, kwargs.get("hidden_states")))}

    handle = layers[layer].register_forward_pre_hook(replace, with_kwargs=True)
    try:
        with uncompiled():
            yield
    finally:
        handle.remove()


def _checked(anatomy: Anatomy, index: int, state: Any) -> Tensor:
    """The state, if it is one of the hidden size."""
    if not isinstance(state, Tensor) or state.ndim != 3 or state.shape[-1] != anatomy.hidden_size:
        shape = list(state.shape) if isinstance(state, Tensor) else type(state).__name__
        last = shape[-1] if isinstance(shape, list) and shape else 0
        several = isinstance(shape, list) and last and (len(shape) == 4 or last > anatomy.hidden_size)
        reason = (
            "it keeps several residual streams"
            if several and last % anatomy.hidden_size == 0
            else ("the hidden size is not constant over depth")
        )
        raise UnsupportedModelError(
            f"decoder layer {index} of {anatomy.model_type} passes on {shape}, not [batch, tokens, "
            f"{anatomy.hidden_size}]: {reason}"
        )
    return state
