"""Massive activations written into a model by hooks: known dimensions, on known tokens, from a known layer on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.words import BOS_ID
from sinkscope.backbone.anatomy import Anatomy, decoder_layers
from sinkscope.backbone.hooks import entering_states

DIMS, FIRST_LAYER = (11, 40), 2
TIMES = 60
"""A planted entry over the largest RMS of any state."""
VISUAL_EVERY = 9
"""Every ninth visual token of a sample is a trigger."""


class Planted:
    """Hooks that plant into `model` until `remove` is called.

    Attributes
    ----------
    ids : Tensor [B, T]
        Token ids of the pass under way.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, stops: Tensor, size: float) -> None:
        self._model = model
        self._stops = stops
        self._image_ids = torch.tensor(sorted(anatomy.placeholder_ids) or [-1])
        self.ids: Tensor | None = None
        signs = [1 if place % 2 == 0 else -1 for place in range(len(DIMS))]
        self._spike = size * torch.tensor(signs, dtype=torch.float32)
        # Texts may be run through an inner model alone, so all that hold the decoder layers are watched.
        path = anatomy.layers_path.split(".")[:-1]
        holders = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path) + 1)]
        self._handles = [holder.register_forward_pre_hook(self._see, with_kwargs=True) for holder in holders]
        for layer in decoder_layers(model, anatomy)[FIRST_LAYER - 1 :]:
            self._handles.append(layer.register_forward_hook(self._write))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def triggers(self, ids: Tensor) -> Tensor:
        """The tokens that carry the massive entries: ids [B, T] to bool [B, T]."""
        visual = torch.isin(ids, self._image_ids)
        return (ids == BOS_ID) | torch.isin(ids, self._stops) | (visual & (visual.cumsum(1) % VISUAL_EVERY == 1))

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(given, Tensor) and not given.is_floating_point():
            self.ids = given

    def _write(self, module: nn.Module, args: Any, output: Any) -> Any:
        several = isinstance(output, (tuple, list))
        state = (output[0] if several else output).clone()
        assert self.ids is not None
        mask = self.triggers(self.ids)
        if state.shape[:2] != mask.shape:
            return output
        rows = state[mask]
        # Not quite constant, by what the token holds, so that it does not depend on the batch.
        rows[:, list(DIMS)] = self._spike * (1 + 0.02 * torch.sin(rows[:, -1:]))
        state[mask] = rows
        return type(output)((state, *output[1:])) if several else state


def spike_size(model: nn.Module, anatomy: Anatomy, run: Callable[[], Any]) -> float:
    """The size to plant: above the RMS of every token's state in every layer while `run` runs the model."""
    seen = [1.0]

    def see(layer: int, state: Tensor) -> None:
        seen.append(float(state.float().square().mean(-1).sqrt().max()))

    with torch.no_grad(), entering_states(model, anatomy, see):
        run()
    return TIMES * max(seen)
