"""Reading a layer on the CPU: a few passes over so many rows at a time that they stay in the processor's cache.

Whatever concerns single entries (a token's largest dimensions, a dimension's top tokens) is done on the few that pass a
bound, in NumPy, which finds and sorts them several times faster than PyTorch does.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sinkscope.capture.reading import SMALLEST_RMS, TINY, LayerReading, TokenEnergies
from sinkscope.capture.statistics import EMPTY_KEY, LayerStatistics, level_odds, numbers_of, top_keys

CHUNK_BYTES = 2**21
"""Size of a chunk in float32: the states and two more of that size pass through the cache again and again."""

MOST_ROWS = 1024
"""Rows of a chunk at most."""

MARGIN = 1e-6
"""Relative rounding of a share computed in float32, generously."""


def read_on_cpu(
    states: Tensor, index: Tensor | None, rows: NDArray[np.int64], before: LayerStatistics, count: int
) -> LayerReading:
    """Read T tokens and add them to the accumulators.

    Parameters
    ----------
    states : float [P, D]
        Hidden states of any floating dtype; those chosen should be finite.
    index : int64 [T], optional
        Which of the states are tokens; all by default.
    rows : int64 [T]
        Their rows in the token table, all distinct and new to the accumulators.
    before : LayerStatistics
        The accumulators without these tokens.
    count : int
        M.
    """
    full = max(1, min(MOST_ROWS, CHUNK_BYTES // (4 * states.shape[1])))
    reader = _Reader(len(rows), full, states.shape[1], before, count)
    stop = 0
    with np.errstate(all="ignore"):  # States that are not finite are found and named later.
        while stop < len(rows):
            start, stop = stop, min(len(rows), stop + full)
            chosen = states[start:stop] if index is None else states.index_select(0, index[start:stop])
            reader.add(start, chosen.float(), rows[start:stop])
        return reader.finish(rows)


class _Reader:
    """The arrays that chunks of rows fill."""

    def __init__(self, tokens: int, most: int, width: int, before: LayerStatistics, count: int) -> None:
        self.before = before
        self.width = width
        self.dim = np.empty((tokens, count), np.int64)
        self.value = np.empty((tokens, count), np.float32)
        self.rest = np.empty(tokens, np.float32)
        self.peak = torch.zeros(width)
        self.sums = np.zeros((3, width))
        self.exceedance = np.zeros((width, len(before.levels)), np.int64)
        self.least_level = np.float32(min(before.levels))
        self.top = _TopTokens(before.fields["top_keys"].numpy())
        self.magnitude, self.share = torch.empty(most, width), torch.empty(most, width)
        self.reached = np.empty((most, width), bool)

    def add(self, start: int, states: Tensor, rows: NDArray[np.int64]) -> None:
        """Take the states [R, D] of the tokens from `start` on."""
        count, part = len(rows), slice(start, start + len(rows))
        magnitude, share, reached = self.magnitude[:count], self.share[:count], self.reached[:count]
        torch.abs(states, out=magnitude)
        torch.maximum(self.peak, magnitude.amax(dim=0), out=self.peak)
        place = largest_places(magnitude, self.value.shape[1])
        flat_states, flat_share = states.numpy().reshape(-1), share.numpy().reshape(-1)
        self.dim[part] = place - np.arange(count)[:, None] * self.width
        self.value[part] = flat_states.take(place)
        largest = self.value[part] ** 2

        torch.mul(states, states, out=share)
        flat_share[place] = 0.0
        rest = share.sum(dim=1)
        self.rest[part] = rest.numpy()
        total = (rest + torch.from_numpy(largest).sum(dim=1)).numpy()
        rms = np.sqrt(total / self.width)
        some = rms > SMALLEST_RMS
        inverse_rms, inverse_total = (np.where(some, np.float32(1) / norm, np.float32(0)) for norm in (rms, total))
        flat_share[place] = largest
        share.mul_(torch.from_numpy(inverse_total)[:, None])
        # Products of a row of weights with the states: one pass each.
        weights = torch.from_numpy(inverse_rms)
        self.sums[0] += (weights @ states).numpy()
        self.sums[1] += (weights @ magnitude).numpy()
        self.sums[2] += share.sum(dim=0).numpy()

        flat_share[place] = -1.0  # From here on only the other dimensions are looked at.
        least = self.top.least_share(share)
        np.greater_equal(share.numpy(), np.minimum(least, self.least_level), out=reached)
        place = np.flatnonzero(reached)
        token = place // self.width
        dim = place - token * self.width
        found = flat_share.take(place)
        self.count(dim, found, self.before.levels)
        top = np.flatnonzero(found >= least.take(dim))
        token, dim = token[top], dim[top]
        square = flat_states.take(place[top]) ** 2
        odds = square / np.maximum(total[token] - square, np.float32(TINY))
        self.top.offer(dim, odds, rows[token])

    def count(self, dim: NDArray[np.int64], values: NDArray[np.float32], levels: Sequence[float]) -> None:
        """Count for every dimension the entries that reach the levels; of each entry [n] its dimension and value."""
        reached = np.zeros(len(dim), np.int64)
        for least in levels:
            reached += values >= np.float32(least)
        bins = len(levels) + 1
        counts = np.bincount(dim * bins + reached, minlength=self.width * bins).reshape(self.width, bins)
        # An entry that reaches so many levels reaches the lowest ones.
        at_least = counts[:, :0:-1].cumsum(axis=1)[:, ::-1]
        self.exceedance[:, np.argsort(levels)] += at_least

    def finish(self, rows: NDArray[np.int64]) -> LayerReading:
        """The reading, with what is left to do for the largest dimensions of all tokens."""
        energies = TokenEnergies.of(torch.from_numpy(self.value**2), torch.from_numpy(self.rest), self.width)
        odds = energies.odds().numpy()
        self.count(self.dim.reshape(-1), odds.reshape(-1), level_odds(self.before.levels))
        self.top.offer(self.dim.reshape(-1), odds.reshape(-1), np.repeat(rows, self.dim.shape[1]))
        fields = {
            "peak_magnitude": self.peak,
            "exceedance": torch.from_numpy(self.exceedance),
            "sum_normed": torch.from_numpy(self.sums[0]),
            "sum_abs_normed": torch.from_numpy(self.sums[1]),
            "sum_square_normed": torch.from_numpy(self.sums[2] * self.width),
            "sum_rms": energies.rms.sum(dtype=torch.float64),
        }
        statistics = self.before.extended(len(rows), fields, torch.from_numpy(self.top.merged()))
        value = torch.from_numpy(self.value)
        return LayerReading(torch.from_numpy(self.dim), value, energies.rms, torch.from_numpy(odds), statistics)


class _TopTokens:
    """The top keys of every dimension, to which candidates are added in turns."""

    def __init__(self, keys: NDArray[np.int64]) -> None:
        self._keys = keys.copy()
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting = 0
        self._look()

    def least_share(self, share: Tensor) -> NDArray[np.float32]:
        """No entry with a smaller energy share can be among the top: float32 [D]; `share` [R, D] is looked at next."""
        groups = 2 * self._keys.shape[1]
        if self._least_share.any() or len(share) < groups:
            return self._least_share
        # With no top yet: of so many groups of tokens, the K-th largest maximum bounds the K-th largest from below.
        maxima = share[: len(share) // groups * groups].unflatten(0, (groups, -1)).amax(dim=1)
        return maxima.kthvalue(groups // 2 + 1, dim=0).values.numpy() * np.float32(1 - MARGIN)

    def offer(self, dim: NDArray[np.int64], odds: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Candidates: dimension, odds and row of each, [n]."""
        reached = odds >= self._least_odds[dim]
        dim = dim[reached]
        self._pending.append((dim, top_keys(odds[reached], rows[reached])))
        self._waiting += len(dim)
        if self._waiting >= self._keys.size:
            self.merged()

    def merged(self) -> NDArray[np.int64]:
        """The top keys int64 [D, K], sorted down, with all candidates so far."""
        if not self._waiting:
            return self._keys
        dim, keys = (np.concatenate(column) for column in zip(*self._pending, strict=True))
        self._pending, self._waiting = [], 0
        width, kept = self._keys.shape
        # A stable sort of 16-bit numbers is a radix sort.
        order = np.argsort(dim.astype(np.uint16) if width <= 2**16 else dim, kind="stable")
        dim, keys = dim[order], keys[order]
        while len(dim):
            counts = np.bincount(dim, minlength=width)
            touched, number = np.flatnonzero(counts), np.cumsum(counts > 0) - 1
            column = np.arange(len(dim)) - (np.cumsum(counts) - counts)[dim]
            # A few dimensions have far more candidates than the others; most of these fall behind the first ones.
            turn = column < 2 * kept
            table = np.full((len(touched), kept + min(2 * kept, int(counts.max()))), EMPTY_KEY, np.int64)
            table[:, :kept] = self._keys[touched]
            table[number[dim[turn]], kept + column[turn]] = keys[turn]
            table.sort(axis=1)
            self._keys[touched] = table[:, : -kept - 1 : -1]
            later = ~turn & (keys > self._keys[dim, -1])
            dim, keys = dim[later], keys[later]
        self._look()
        return self._keys

    def _look(self) -> None:
        self._least_odds = np.maximum(self._keys[:, -1] >> 32, 0).astype(np.int32).view(np.float32)
        odds = self._least_odds.astype(np.float64)
        self._least_share = (odds / (1 + odds) * (1 - MARGIN)).astype(np.float32)


def largest_places(magnitude: Tensor, count: int) -> NDArray[np.int64]:
    """Flat places of the `count` largest magnitudes of every row, sorted down: float32 [R, D] gives int64 [R, count].

    In two steps, several times as fast as topk: of 4 `count` blocks of dimensions, the `count`-th largest maximum
    bounds the result from below, and only the few entries that reach it are sorted. Ties go to the lower dimension.
    """
    rows, width = magnitude.shape
    blocks = 4 * count
    if width < 2 * blocks:
        return _places_by_sorting(magnitude, count)
    whole = width // blocks * blocks
    maxima = magnitude[:, :whole].view(rows, -1, blocks).amax(dim=1).numpy()
    maxima.sort(axis=1)
    values = magnitude.numpy()
    place = np.flatnonzero(values >= maxima[:, blocks - count, None])
    token = place // width
    reached = np.bincount(token, minlength=rows)
    if reached.min() < count:  # A token with NaN reaches nothing; it is found and named later.
        return _places_by_sorting(magnitude, count)
    column = np.arange(len(place)) - (np.cumsum(reached) - reached)[token]
    table = np.full((rows, int(reached.max())), EMPTY_KEY, np.int64)
    table[token, column] = top_keys(values.reshape(-1)[place], place)
    table.sort(axis=1)
    return numbers_of(table[:, : -count - 1 : -1])


def _places_by_sorting(magnitude: Tensor, count: int) -> NDArray[np.int64]:
    chosen = magnitude.argsort(dim=1, descending=True, stable=True)[:, :count].numpy()
    return chosen + np.arange(len(chosen))[:, None] * magnitude.shape[1]
