"""How much attention tokens draw, measured beside the model's own kernel."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sinkscope.backbone.attention import AttentionCall
from sinkscope.backbone.attention_weights import attention_weights
from sinkscope.backbone.tensor_parallel import Team
from sinkscope.errors import UnsupportedModelError

CHUNK_BYTES = 2 * 2**20
"""Most memory for attention weights at a time: small enough to stay near the processor's caches."""
CHUNKS = 8
"""Least number of chunks of a causal call: every chunk leaves out the keys after its last query."""


@dataclass(frozen=True)
class DrawnAttention:
    """Of one batch: drawn, expected, value_norm float32 [B, T, L]; NaN where nothing was measured."""

    drawn: NDArray[np.float32]
    expected: NDArray[np.float32]
    value_norm: NDArray[np.float32]


class AttentionMeter:
    """A handler for `attention_tap` that measures the attention every token draws.

    Drawn attention is the mean over heads and over the strictly later queries of the same sample. The kernel runs
    unchanged; the weights are computed beside it, in chunks of query rows.

    Parameters
    ----------
    num_layers : int
        L.
    team : Team, optional
        The processes that hold the model together, each with some of the heads. All of them measure the same batches.
    """

    def __init__(self, num_layers: int, team: Team | None = None) -> None:
        self.num_layers = num_layers
        self.team = team or Team()
        self.layers_seen: set[int] = set()

    def begin(self, valid: NDArray[np.bool_]) -> None:
        """Announce a batch by its positions that hold tokens, bool [B, T], padding on the right."""
        self._valid = valid
        self._later = np.maximum(valid.sum(axis=1, keepdims=True) - 1 - np.arange(valid.shape[1]), 0)
        self._drawn: dict[int, Tensor] = {}
        self._value_norm: dict[int, Tensor] = {}
        self._heads: dict[int, tuple[int, int]] = {}
        self._visible: dict[int, tuple[Any, ...]] = {}
        self._expected: dict[tuple[Any, ...], Tensor] = {}
        self._causal: dict[tuple[Any, ...], bool] = {}
        self._masks: list[Any] = []

    def __call__(self, call: AttentionCall) -> Tensor:
        """Measure one call and return the kernel's output."""
        batch, _, rows, _ = call.query.shape
        if (batch, rows) != self._valid.shape or call.key.shape[2] != rows:
            raise UnsupportedModelError(
                f"attention of layer {call.layer} spans {rows} queries and {call.key.shape[2]} keys of {batch} "
                f"samples, not the {self._valid.shape[1]} tokens of {len(self._valid)}; profile with --no-attention"
            )
        self.layers_seen.add(call.layer)
        valid = torch.from_numpy(self._valid).to(call.query.device)
        self._value_norm[call.layer] = torch.linalg.vector_norm(call.value, dim=-1, dtype=torch.float32).mean(dim=1)
        # Layers of one kind share their mask, so what the mask allows is summed once for all of them.
        kind = (id(call.attention_mask), call.kwargs.get("sliding_window"), call.kwargs.get("is_causal"))
        if kind not in self._expected:
            # Some layers make a mask of their own; one that is gone could leave its id to the next.
            self._masks.append(call.attention_mask)
            self._causal[kind] = is_causal(call)
            self._expected[kind] = drawn_sum(uniform_call(call), valid, self._causal[kind])
        self._visible[call.layer] = kind
        self._drawn[call.layer] = drawn_sum(call, valid, self._causal[kind]) / call.query.shape[1]
        self._heads[call.layer] = call.query.shape[1], call.value.shape[1]
        return call.base()

    def finish(self) -> DrawnAttention:
        """The batch's measurements over all heads, on the host; all processes of the team come here together."""
        layers, kinds = list(self._drawn), list(self._expected)
        shape = (*self._valid.shape, self.num_layers)
        drawn, expected, norms = (np.full(shape, np.nan, np.float32) for _ in range(3))
        if layers:
            visible = [kinds.index(self._visible[layer]) for layer in layers]
            # By layer and kind of head: query heads draw, key-value heads have values.
            own = _side_by_side([*self._drawn.values(), *(self._value_norm[layer] for layer in layers)])
            counts = [float(self._heads[layer][kind]) for kind in (0, 1) for layer in layers]
            means = self.team.mean(own, torch.tensor(counts, device=own.device)).cpu().numpy()
            with np.errstate(divide="ignore", invalid="ignore"):
                drawn[..., layers] = means[..., : len(layers)] / self._later[..., None]
                sums = _side_by_side([self._expected[kind] for kind in kinds]).cpu().numpy()
                expected[..., layers] = sums[..., visible] / self._later[..., None]
            norms[..., layers] = means[..., len(layers) :]
        for array in (drawn, expected):
            array[self._later == 0] = np.nan
        self._drawn.clear()
        self._masks.clear()
        return DrawnAttention(drawn, expected, norms)


def _side_by_side(tensors: list[Tensor]) -> Tensor:
    """Tensors [B, T] as one, float32 [B, T, n]: on their device, or the host where they are on several."""
    if len({tensor.device for tensor in tensors}) > 1:
        tensors = [tensor.cpu() for tensor in tensors]
    return torch.stack(tensors, dim=-1)


def drawn_sum(call: AttentionCall, valid: Tensor, causal: bool) -> Tensor:
    """Attention to every key, summed over heads and strictly later valid queries: float32 [B, K].

    Parameters
    ----------
    call : AttentionCall
        With as many queries as keys.
    valid : BoolTensor [B, Q]
        Queries that hold tokens.
    causal : bool
        Whether no query sees a later key, see `is_causal`: spares about half of the work.
    """
    batch, heads, rows, _ = call.query.shape
    step = max(1, CHUNK_BYTES // (4 * batch * heads * rows))
    if causal:
        step = min(step, max(16, -(-rows // CHUNKS)))
    total = torch.zeros(batch, rows, dtype=torch.float32, device=call.query.device)
    keys = torch.arange(rows, device=call.query.device)
    for start in range(0, rows, step):
        chosen = slice(start, min(start + step, rows))
        seen = chosen.stop if causal else rows
        weights = attention_weights(first_keys(call, seen), queries=chosen).sum(dim=1)
        counted = (keys[None, :seen] < keys[chosen, None]) & valid[:, chosen, None]
        total[:, :seen] += weights.masked_fill_(~counted, 0.0).sum(dim=1)
    return total


def first_keys(call: AttentionCall, count: int) -> AttentionCall:
    """The same call without the keys from `count` on."""
    return replace(call, key=call.key[:, :, :count], value=call.value[:, :, :count])


def is_causal(call: AttentionCall) -> bool:
    """Whether the call is sure to be causal and its masks can be cut: no query row attends to a later key."""
    mask = call.attention_mask
    if call.kwargs.get("position_bias") is not None:
        return False
    if mask is None and call.kernel == "sdpa":
        declared = call.kwargs.get("is_causal")
        return bool(getattr(call.module, "is_causal", True) if declared is None else declared)
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return False
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    # Rows of padding may be let through everywhere, so that they hold no NaN; their weights are not counted.
    rows = call.query.shape[2]
    return not bool(visible[..., :rows, :rows].triu(diagonal=1).any())


def uniform_call(call: AttentionCall) -> AttentionCall:
    """The same call with one head that attends evenly to all keys that the mask lets it see."""
    batch, _, rows, _ = call.query.shape
    kept = {name: value for name, value in call.kwargs.items() if name in ("sliding_window", "is_causal")}
    zeros = torch.zeros(batch, 1, rows, 1, dtype=torch.float32, device=call.query.device)
    mask = call.attention_mask
    if isinstance(mask, Tensor) and mask.dim() == 4:
        mask = mask[:, :1]
    return replace(call, query=zeros, key=zeros, value=zeros, attention_mask=mask, kwargs=kept, scaling=1.0)


def causal_expectation(length: int) -> NDArray[np.float32]:
    """What uniform causal attention gives a token from its strictly later queries: float32 [length], NaN at the end.

    Query i sees i + 1 keys, so token j draws the mean of 1 / (i + 1) over i > j.
    """
    shares = 1.0 / np.arange(1, length + 1)
    later = np.arange(length)[::-1]
    total = np.cumsum(shares[::-1])[::-1] - shares
    with np.errstate(invalid="ignore"):
        return np.where(later > 0, total / np.maximum(later, 1), np.nan).astype(np.float32)
