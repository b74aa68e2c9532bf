"""VAR as it is usually written: whole attention maps, edited at once, head by head, or row by row of every head."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from benchmarks.var.models import IMAGE_ID, SINK_DIM, TAU
from sinkscope.redistribution import redistribute

P, RHO, FLOOR = 0.6, 0.8, 0.2
Way = Literal["eager", "by head", "by row"]


class Eager:
    """Everything that a pass needs to know: visual tokens and queries, and the sinks of every layer so far."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.visual: Tensor | None = None
        self.queries: Tensor | None = None
        self.sinks: dict[int, Tensor] = {}

    def begin(self, ids: Tensor) -> None:
        """A pass over `ids`, the first one of a prompt if it holds a picture."""
        visual = ids == IMAGE_ID
        if visual.any():
            self.sinks.clear()
            self.visual, self.queries = visual, (visual.cumsum(1) > 0) & ~visual
        else:
            assert self.visual is not None
            self.visual = torch.cat([self.visual, visual], dim=1)
            self.queries = torch.ones_like(visual)

    def see(self, layer: int, state: Tensor) -> None:
        """The hidden state entering a layer."""
        rms = state.float().norm(dim=-1) / math.sqrt(state.shape[-1])
        sinks = state[..., SINK_DIM].float().abs() / rms >= TAU
        known = self.sinks.get(layer)
        self.sinks[layer] = sinks if known is None else torch.cat([known, sinks], dim=1)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """The attention function: softmax, redistribution, product with the values."""
        logits = query @ key.mT * scaling
        if mask is not None:
            logits = logits + mask[..., : key.shape[2]]
        weights = logits.float().softmax(-1)
        sinks = self.sinks[module.layer_idx]
        if module.layer_idx in self.edited:
            edit = {"eager": self._whole, "by head": self._by_head, "by row": self._by_row}[self.way]
            weights = edit(weights, sinks)
        return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), weights

    edited: frozenset[int] = frozenset()

    def _whole(self, weights: Tensor, sinks: Tensor) -> Tensor:
        assert self.visual is not None
        assert self.queries is not None
        return redistribute(weights, sinks, self.visual, self.queries, p=P, rho=RHO, attention_floor=FLOOR)

    def _by_head(self, weights: Tensor, sinks: Tensor) -> Tensor:
        """The same in a loop over heads."""
        return torch.cat([self._whole(weights[:, head : head + 1], sinks) for head in range(weights.shape[1])], dim=1)

    def _by_row(self, weights: Tensor, sinks: Tensor) -> Tensor:
        """The same in a loop over samples, heads and text queries, as the authors' code does it."""
        assert self.visual is not None
        assert self.queries is not None
        for sample in range(weights.shape[0]):
            visual, sink = self.visual[sample], sinks[sample]
            rows = self.queries[sample].nonzero()[:, 0]
            rest = (visual & ~sink).nonzero()[:, 0]
            given, seen = sink.nonzero()[:, 0], visual.nonzero()[:, 0]
            for head in range(weights.shape[1]):
                map_ = weights[sample, head]
                for row in rows:
                    line = map_[row]
                    on_visual, on_rest = line[seen].sum(), line[rest].sum()
                    if on_visual >= FLOOR and on_rest / on_visual >= RHO:
                        omega = P * line[given].sum()
                        line[given] *= 1 - P
                        line[rest] += omega * line[rest] / on_rest
        return weights


@contextmanager
def eager_var(model: Any, way: Way) -> Iterator[None]:
    """VAR with whole attention maps inside the context."""
    state = Eager(way)
    layers: nn.ModuleList = model.model.language_model.layers
    state.edited = frozenset(range(len(layers) - 1))
    name = f"benchmark_{way}"
    AttentionInterface.register(name, state.attend)
    AttentionMaskInterface.register(name, eager_mask)
    text = model.model.language_model.config
    before = text._attn_implementation

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        state.begin(kwargs["input_ids"])

    def see(layer: int) -> Any:
        return lambda module, args, kwargs: state.see(layer, args[0] if args else kwargs["hidden_states"])

    with ExitStack() as stack:
        text._attn_implementation = {"": name}
        stack.callback(setattr, text, "_attn_implementation", {"": before})
        stack.callback(model.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(see(index), with_kwargs=True).remove)
        yield
