"""The hidden state entering each decoder layer, seen through hooks that are always removed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from sinkscope.backbone.anatomy import Anatomy, decoder_layers
from sinkscope.errors import UnsupportedModelError

StateCallback = Callable[[int, Tensor], None]


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
    layers = decoder_layers(model, anatomy)

    def see(index: int, state: Any) -> None:
        if not isinstance(state, Tensor) or state.ndim != 3 or state.shape[-1] != anatomy.hidden_size:
            shape = list(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise UnsupportedModelError(
                f"decoder layer {index} of {anatomy.model_type} passes on {shape}, not [batch, tokens, "
                f"{anatomy.hidden_size}]: the hidden size is not constant over depth"
            )
        callback(index, state)

    def before(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(index, args[0] if args else kwargs.get("hidden_states"))

        return hook

    def after(module: nn.Module, args: Any, output: Any) -> None:
        see(len(layers), output[0] if isinstance(output, (tuple, list)) else output)

    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(before(index), with_kwargs=True).remove)
        stack.callback(layers[-1].register_forward_hook(after).remove)
        yield
