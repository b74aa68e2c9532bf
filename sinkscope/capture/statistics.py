"""Mergeable accumulators over the hidden states of one layer, on the device where the states are.

Every field declares its reduction: accumulators over two disjoint sets of tokens combine field by field into the
accumulator over both, so that batches, interrupted runs and ranks merge into one result. Sums in float64 merge up to
rounding, everything else exactly. Accumulators never change: adding tokens makes new ones, so that a commit may read
them while the next batch runs, and a batch that failed is forgotten by going back to those before it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sinkscope.store.layout import DEFAULT_LEVELS, DEFAULT_TOP_TOKENS, STATISTICS_MERGE, TOKEN_LIMIT, Statistics

Keys = TypeVar("Keys", NDArray[np.int64], Tensor)

EMPTY_KEY = -1


def merge_top(first: Tensor, second: Tensor) -> Tensor:
    """The K largest keys of both: int64 [D, K] and [D, any] give [D, K], sorted down."""
    return torch.cat([first, second], dim=1).topk(first.shape[1], dim=1).values


_COMBINE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"max": torch.maximum, "sum": torch.add}
REDUCTIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: _COMBINE[rule] for name, rule in STATISTICS_MERGE.items() if rule in _COMBINE and name != "count"},
    "top_keys": merge_top,
}
"""How the accumulators of one layer combine, as `STATISTICS_MERGE` declares; the two of rule "top" in one key each."""


@dataclass(frozen=True)
class LayerStatistics:
    """The accumulators of one layer over `count` tokens.

    The top K are kept as int64 keys, the odds' bits above the complement of the token's row: as integers they order by
    odds, ties by lower row, so that the K largest are unique and their merge is exact on any device.

    Attributes
    ----------
    levels : tuple of float
        Energy shares to count exceedances of.
    count : int
        Number of tokens.
    fields : mapping of str to Tensor
        The accumulators named in `REDUCTIONS`.
    """

    levels: tuple[float, ...]
    count: int
    fields: Mapping[str, Tensor]

    @classmethod
    def empty(
        cls,
        width: int,
        top_tokens: int = DEFAULT_TOP_TOKENS,
        levels: tuple[float, ...] = DEFAULT_LEVELS,
        device: torch.device | str = "cpu",
    ) -> "LayerStatistics":
        """The accumulators over no tokens, of hidden size D = `width` with K = `top_tokens`."""
        fields: dict[str, Tensor] = {
            "peak_magnitude": torch.zeros(width, dtype=torch.float32, device=device),
            "exceedance": torch.zeros(width, len(levels), dtype=torch.int64, device=device),
            "sum_normed": torch.zeros(width, dtype=torch.float64, device=device),
            "sum_abs_normed": torch.zeros(width, dtype=torch.float64, device=device),
            "sum_square_normed": torch.zeros(width, dtype=torch.float64, device=device),
            "sum_rms": torch.zeros((), dtype=torch.float64, device=device),
            "top_keys": torch.full((width, top_tokens), EMPTY_KEY, dtype=torch.int64, device=device),
        }
        return cls(levels, 0, fields)

    def merge(self, other: "LayerStatistics") -> "LayerStatistics":
        """The accumulators over the tokens of both, which must be disjoint."""
        return self.extended(other.count, other.fields)

    def extended(self, count: int, fields: Mapping[str, Tensor], top_keys: Tensor | None = None) -> "LayerStatistics":
        """The accumulators with those over `count` more tokens; `top_keys` instead of a merge, where it is at hand."""
        merged = {} if top_keys is None else {"top_keys": top_keys}
        for name, reduce in REDUCTIONS.items():
            if name not in merged:
                mine = self.fields[name]
                merged[name] = reduce(mine, fields[name].to(mine.device))
        return LayerStatistics(self.levels, self.count + count, merged)


def top_keys(odds: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys that order by odds and then by lower row: int64, of the shape of `odds`; `rows` must broadcast to it."""
    return odds.view(np.int32).astype(np.int64) * TOKEN_LIMIT + (TOKEN_LIMIT - 1 - rows)


def numbers_of(keys: Keys) -> Keys:
    """The rows that `top_keys` was given: int64, of the shape of `keys`, an array or a tensor."""
    return TOKEN_LIMIT - 1 - (keys & (TOKEN_LIMIT - 1))


def level_odds(levels: tuple[float, ...]) -> list[float]:
    """Energy shares as odds share / (1 - share), each a float32."""
    shares = np.array(levels, np.float64)
    with np.errstate(divide="ignore"):
        odds = np.minimum(shares / (1 - shares), np.finfo(np.float32).max).astype(np.float32)
    return [float(value) for value in odds]


def collect_statistics(layers: Sequence[LayerStatistics]) -> Statistics:
    """The accumulators of all layers as arrays, for the store: one copy to the host per field and layer."""
    stacked = {name: np.stack([layer.fields[name].cpu().numpy() for layer in layers]) for name in REDUCTIONS}
    keys = stacked.pop("top_keys")
    empty = keys == EMPTY_KEY
    odds = np.where(empty, 0, keys >> 32).astype(np.int32).view(np.float32)
    token = np.where(empty, -1, numbers_of(keys))
    count = np.int64(layers[0].count)
    return Statistics(count, odds, token, levels=layers[0].levels, **stacked)  # type: ignore[arg-type]


def restore_statistics(statistics: Statistics, layer: int, device: torch.device | str = "cpu") -> LayerStatistics:
    """The accumulators of one layer out of stored statistics, exactly."""
    arrays: dict[str, NDArray[Any]] = {
        name: np.asarray(array[layer]) for name, array in statistics.arrays().items() if name in REDUCTIONS
    }
    token = statistics.topk_token[layer]
    arrays["top_keys"] = np.where(token < 0, EMPTY_KEY, top_keys(statistics.topk_odds[layer], token))
    fields = {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays.items()}
    return LayerStatistics(statistics.levels, int(statistics.count), fields)
