"""Mergeable accumulators over the hidden states of one layer, on the device where the states are.

Every field declares its reduction: accumulators over two disjoint sets of tokens combine field by field into the
accumulator over both, so that batches, interrupted runs and ranks merge into one result. Sums in float64 merge up to
rounding, everything else exactly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sinkscope.store.layout import DEFAULT_LEVELS, DEFAULT_TOP_TOKENS, Statistics

TOKEN_LIMIT = 2**32
EMPTY_KEY = -1
SMALLEST_RMS = 1e-18


def merge_top(first: Tensor, second: Tensor) -> Tensor:
    """The K largest keys of both: int64 [D, K] and [D, any] give [D, K], sorted down."""
    return torch.cat([first, second], dim=1).topk(first.shape[1], dim=1).values


REDUCTIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "peak_magnitude": torch.maximum,
    "exceedance": torch.add,
    "sum_normed": torch.add,
    "sum_abs_normed": torch.add,
    "sum_square_normed": torch.add,
    "sum_rms": torch.add,
    "top_keys": merge_top,
}


LEADING_RATIO = 0.05
"""Dimensions with at least this part of the energy of the token's largest are its leading dimensions."""


@dataclass
class TokenNorms:
    """What is needed of every token's hidden state, computed once.

    The squared norm is split into its few largest terms and the sum of all others, so that odds lose nothing when a few
    dimensions hold nearly all of the energy.

    Attributes
    ----------
    states, magnitude, square : float32 [T, D]
        x, |x| and x^2.
    largest_dim : int64 [T, M]
        Dimensions of the M largest magnitudes, sorted down.
    largest : float32 [T, M]
        Their x_d^2.
    rest, energy, rms : float32 [T]
        The sum of all other x_d^2, ||x||^2, and RMS(x).
    """

    states: Tensor
    magnitude: Tensor
    square: Tensor
    largest_dim: Tensor
    largest: Tensor
    rest: Tensor
    energy: Tensor
    rms: Tensor

    @classmethod
    def of(cls, states: Tensor, count: int) -> "TokenNorms":
        """From float32 states [T, D], with M = `count`."""
        magnitude, square = states.abs(), states * states
        largest_dim = largest_dims(magnitude, min(count, states.shape[1]))
        largest = square.gather(1, largest_dim)
        rest = square.scatter_(1, largest_dim, 0.0).sum(dim=1)
        square.scatter_(1, largest_dim, largest)
        energy = rest + largest.sum(dim=1)
        return cls(states, magnitude, square, largest_dim, largest, rest, energy, (energy / states.shape[1]).sqrt())

    def odds(self) -> Tensor:
        """The energy of every dimension over that of the others, float32 [T, D]; finite.

        x_d^2 / (||x||^2 - x_d^2); for a leading dimension, one with at least `LEADING_RATIO` of the energy of the
        token's largest (and among its M largest), the other leading ones are left out of the denominator. So a
        dimension is not hidden by fellows that are as massive, and one that rides along far below them is.
        """
        tiny, huge = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
        odds = (self.energy[:, None] - self.square).clamp_min_(tiny)
        torch.div(self.square, odds, out=odds)
        leading = self.largest >= LEADING_RATIO * self.largest[:, :1]
        behind = self.rest + self.largest.masked_fill(leading, 0.0).sum(dim=1)
        exact = torch.where(
            leading,
            self.largest / behind.clamp_min(tiny)[:, None],
            self.largest / (self.energy[:, None] - self.largest).clamp_min(tiny),
        )
        return odds.scatter_(1, self.largest_dim, exact).clamp_max_(huge)


def largest_dims(magnitude: Tensor, count: int) -> Tensor:
    """Dimensions of the `count` largest magnitudes of every token, sorted down: [T, D] gives int64 [T, count].

    On the CPU this was the most expensive of all statistics, so there it is done in two steps, twice to thrice as fast
    as topk: of 4 `count` blocks of dimensions, the `count`-th largest maximum bounds the result from below, and only
    the few entries that reach it are sorted.
    """
    rows, width = magnitude.shape
    blocks = 4 * count
    if magnitude.device.type != "cpu" or width < 2 * blocks or not rows:
        return magnitude.topk(count, dim=1).indices
    whole = width // blocks * blocks
    maxima = magnitude[:, :whole].view(rows, -1, blocks).amax(dim=1).numpy()
    maxima.sort(axis=1)
    values = magnitude.numpy()
    place = np.flatnonzero(values >= maxima[:, blocks - count, None])
    token, dim = np.divmod(place, width)
    reached = np.bincount(token, minlength=rows)
    if reached.min() < count:  # A token with NaN reaches nothing; it is found and named later.
        return magnitude.topk(count, dim=1).indices
    column = np.arange(len(place)) - (np.cumsum(reached) - reached)[token]
    table = np.full((rows, int(reached.max())), EMPTY_KEY, np.int64)
    bits = values.reshape(-1)[place].view(np.int32).astype(np.int64)
    table[token, column] = bits * TOKEN_LIMIT + (width - 1 - dim)  # Ties go to the lower dimension.
    table.sort(axis=1)
    return torch.from_numpy(width - 1 - (table[:, : -count - 1 : -1] & (TOKEN_LIMIT - 1)))


class LayerStatistics:
    """The accumulators of one layer over the tokens given to `update`.

    The top K are kept as int64 keys, the odds' bits above the complement of the token's row: as integers they order by
    odds, ties by lower row, so that the K largest are unique and their merge is exact on any device.

    Parameters
    ----------
    width : int
        Hidden size D.
    top_tokens : int
        K.
    levels : tuple of float
        Energy shares to count exceedances of.
    device : torch.device or str
    """

    def __init__(
        self,
        width: int,
        top_tokens: int = DEFAULT_TOP_TOKENS,
        levels: tuple[float, ...] = DEFAULT_LEVELS,
        device: torch.device | str = "cpu",
    ) -> None:
        self.levels = levels
        self.fields: dict[str, Tensor] = {
            "peak_magnitude": torch.zeros(width, dtype=torch.float32, device=device),
            "exceedance": torch.zeros(width, len(levels), dtype=torch.int64, device=device),
            "sum_normed": torch.zeros(width, dtype=torch.float64, device=device),
            "sum_abs_normed": torch.zeros(width, dtype=torch.float64, device=device),
            "sum_square_normed": torch.zeros(width, dtype=torch.float64, device=device),
            "sum_rms": torch.zeros((), dtype=torch.float64, device=device),
            "top_keys": torch.full((width, top_tokens), EMPTY_KEY, dtype=torch.int64, device=device),
        }

    def merge(self, other: "LayerStatistics") -> None:
        """Add the tokens of another accumulator of the same shape, disjoint from these."""
        for name, reduce in REDUCTIONS.items():
            mine = self.fields[name]
            self.fields[name] = reduce(mine, other.fields[name].to(mine.device))

    def update(self, norms: TokenNorms, rows: Tensor) -> None:
        """Add tokens.

        Parameters
        ----------
        norms : TokenNorms
            Of finite hidden states [T, D].
        rows : int64 [T]
            Their rows in the token table, all distinct and new to the accumulator.
        """
        fields = self.fields
        # A token that is all zero has no direction: it adds nothing. The bound keeps the square below within float32.
        inverse = torch.where(norms.rms > SMALLEST_RMS, 1.0 / norms.rms, 0.0)
        fields["peak_magnitude"] = torch.maximum(fields["peak_magnitude"], norms.magnitude.amax(dim=0))
        # Products of a row of weights with the states: one pass each, without an [T, D] intermediate.
        fields["sum_normed"] += inverse @ norms.states
        fields["sum_abs_normed"] += inverse @ norms.magnitude
        fields["sum_square_normed"] += (inverse * inverse) @ norms.square
        fields["sum_rms"] += norms.rms.sum(dtype=torch.float64)
        count = _sparse if norms.states.device.type == "cpu" else _dense
        exceedance, fields["top_keys"] = count(fields["top_keys"], norms.odds(), rows, self.levels)
        fields["exceedance"] += exceedance

    def load(self, fields: Mapping[str, Tensor]) -> None:
        """Take over the fields of a stored accumulator."""
        self.fields = {name: fields[name].to(mine.device) for name, mine in self.fields.items()}


def top_keys(odds: Tensor, rows: Tensor) -> Tensor:
    """Keys that order by odds and then by lower row: int64, of the shape of `odds`; `rows` must broadcast to it."""
    return odds.view(torch.int32).to(torch.int64) * TOKEN_LIMIT + (TOKEN_LIMIT - 1 - rows)


def level_odds(levels: tuple[float, ...]) -> NDArray[np.float32]:
    """Energy shares as odds share / (1 - share), float32 [E]."""
    shares = np.array(levels, np.float64)
    with np.errstate(divide="ignore"):
        return np.minimum(shares / (1 - shares), np.finfo(np.float32).max).astype(np.float32)


def _dense(keys: Tensor, odds: Tensor, rows: Tensor, levels: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Exceedances [D, E] and merged keys [D, K], without anything that the host has to wait for."""
    exceedance = torch.stack([(odds >= float(level)).sum(dim=0) for level in level_odds(levels)], dim=1)
    return exceedance, merge_top(keys, top_keys(odds, rows[:, None]).T)


def _sparse(keys: Tensor, odds: Tensor, rows: Tensor, levels: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The same on the CPU, looking only at the few entries that reach a level or the K-th key of their dimension.

    In NumPy, which finds and sorts them several times faster than PyTorch does.
    """
    (width, kept), wanted, dense = keys.shape, level_odds(levels), odds.numpy()
    threshold = np.maximum(keys[:, -1].numpy() >> 32, 0).astype(np.int32).view(np.float32)
    place = np.flatnonzero(dense >= np.minimum(threshold, wanted.min()))
    if len(place) > dense.size // 4 and len(rows) > 4 * kept:
        # Without a K-th key to compare with, every entry is a candidate: a part of the tokens gives one for the rest.
        part = len(rows) // 4
        first, keys = _sparse(keys, odds[:part], rows[:part], levels)
        second, keys = _sparse(keys, odds[part:], rows[part:], levels)
        return first + second, keys
    token, dim = np.divmod(place, width)
    value = dense.reshape(-1)[place]
    exceedance = np.stack([np.bincount(dim[value >= level], minlength=width) for level in wanted], axis=1)
    candidate = value >= threshold[dim]
    token, dim, value = token[candidate], dim[candidate], value[candidate]
    order = np.argsort(dim, kind="stable")
    token, dim, value = token[order], dim[order], value[order]
    counts = np.bincount(dim, minlength=width)
    column = kept + np.arange(len(dim)) - (np.cumsum(counts) - counts)[dim]
    table = np.full((width, kept + int(counts.max())), EMPTY_KEY, np.int64)
    table[:, :kept] = keys.numpy()
    table[dim, column] = top_keys(torch.from_numpy(value), rows[torch.from_numpy(token)]).numpy()
    table.sort(axis=1)
    return torch.from_numpy(exceedance), torch.from_numpy(np.ascontiguousarray(table[:, : -kept - 1 : -1]))


def collect_statistics(layers: list[LayerStatistics], count: int) -> Statistics:
    """The accumulators of all layers as arrays, for the store: one copy to the host per field and layer."""
    stacked = {name: np.stack([layer.fields[name].cpu().numpy() for layer in layers]) for name in REDUCTIONS}
    keys = stacked.pop("top_keys")
    empty = keys == EMPTY_KEY
    odds = np.where(empty, 0, keys >> 32).astype(np.int32).view(np.float32)
    token = np.where(empty, -1, TOKEN_LIMIT - 1 - (keys & (TOKEN_LIMIT - 1)))
    return Statistics(np.int64(count), odds, token, levels=layers[0].levels, **stacked)  # type: ignore[arg-type]


def restore_fields(statistics: Statistics, layer: int) -> dict[str, Tensor]:
    """The fields of one layer's accumulator out of stored statistics, exactly."""
    arrays: dict[str, NDArray[Any]] = {
        name: np.asarray(array[layer]) for name, array in statistics.arrays().items() if name in REDUCTIONS
    }
    bits = statistics.topk_odds[layer].view(np.int32).astype(np.int64)
    token = statistics.topk_token[layer]
    arrays["top_keys"] = np.where(token < 0, EMPTY_KEY, bits * TOKEN_LIMIT + (TOKEN_LIMIT - 1 - token))
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
