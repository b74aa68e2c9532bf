"""The peak statistic: how far a dimension rises above its own bulk, on the token's own scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.settings import DiscoverySettings
from sinkscope.significance import Floats
from sinkscope.store.reader import RunReader

SMALLEST = 1e-9
"""Floor under the excess ratio, so that dimensions without any excess have a finite logarithm."""

LARGEST_SHARE = 0.25
"""At most so many of the sampled tokens lie above a gap between ordinary tokens and sinks."""


class PeakScores(NamedTuple):
    """Two views of every dimension's peak, both float64 [L+1, D].

    Attributes
    ----------
    energy
        log(odds * (1 - ordinary / abs(x[d]))^2), where odds are the store's: the energy of x[d] over that of the
        token's other dimensions, its fellow leading dimensions left out. Only the excess over the dimension's own
        ordinary magnitude counts, so a dimension that is large on all tokens has none. It does not saturate, however
        many dimensions are massive.
    contrast
        2 log(abs(x[d]) / typical): how far the dimension rises above its own typical magnitude.
    """

    energy: Floats
    contrast: Floats


@dataclass(frozen=True)
class Peaks:
    """Peaks of all dimensions in all hidden states 0..L.

    Attributes
    ----------
    token_scores : PeakScores of float64 [L+1, D, K]
        Of each of the K top tokens, by energy score downwards.
    sample : int64 [L+1, D, K]
        Sample of these tokens; one past the last where there is none.
    token : int64 [L+1, D, K]
        Row of these tokens in the token table; -1 where there is none.
    typical, ordinary : float64 [L+1, D]
        Median, and the quantile of the settings, of abs(x[d]) over the sampled tokens.
    height : float64 [L+1, D]
        Median of abs(x[d]) over the first of the top tokens, as many as the first of `ranks` says.
    median_share : float64 [L+1, D]
        Median over the sampled tokens of the energy share.
    gaps : float64 [R, L+1, D] or None
        Widest gap, in logarithms, among the larger values of abs(x[d]) over the sampled and top tokens, with half of
        each of `ranks` above it: between two populations where there are two. Measured on demand.
    ranks : tuple of int
        The score of a dimension is the median over so many top tokens: one number for a trigger that occurs in some of
        the samples, one for a trigger in nearly all of them, where these differ.
    """

    token_scores: PeakScores
    sample: NDArray[np.int64]
    token: NDArray[np.int64]
    typical: Floats
    ordinary: Floats
    height: Floats
    median_share: Floats
    gaps: Floats | None
    ranks: tuple[int, ...]

    @property
    def used(self) -> int:
        """So many top tokens are massive where a trigger occurs in some of the samples only."""
        return self.ranks[0]

    @cached_property
    def massive_from(self) -> Floats:
        """On which tokens a dimension is massive: those with abs(x[d]) of at least this, half of the way, on a log
        scale, from its ordinary magnitude to its peak; float64 [L+1, D]. Infinite where it has no peak."""
        return np.where(self.height > self.ordinary, np.sqrt(self.height * self.ordinary), np.inf)

    @cached_property
    def scores(self) -> tuple[PeakScores, ...]:
        """The scores over all samples, one for each of `ranks`."""
        return tuple(
            PeakScores(*(np.median(values[..., :rank], axis=-1) for values in self.token_scores)) for rank in self.ranks
        )

    def resampled(self, weight: NDArray[np.int64], ranks: tuple[int, ...] | None = None) -> tuple[PeakScores, ...]:
        """The scores when sample s counts `weight[s]` times, one for each of `ranks`."""
        counted = np.cumsum(np.append(weight, 0)[self.sample], axis=-1)
        scores = []
        for rank in ranks or self.ranks:
            reached = counted >= rank / 2
            place = np.where(reached.any(-1), reached.argmax(-1), self.sample.shape[-1] - 1)[..., None]
            scores.append(PeakScores(*(np.take_along_axis(values, place, -1)[..., 0] for values in self.token_scores)))
        return tuple(scores)


def peak_ranks(num_samples: int, kept: int, settings: DiscoverySettings) -> tuple[int, ...]:
    """Over how many of the `kept` top tokens to take the median: a trigger in every `samples_per_token`-th sample gives
    the first number, one in every sample the second."""
    most = min(kept, settings.top_tokens)
    some, all_samples = (
        max(1, min(most, number)) for number in (num_samples // settings.samples_per_token, num_samples)
    )
    return (some,) if some == all_samples else (some, all_samples)


def widest_gaps(magnitude: NDArray[np.floating], top: NDArray[np.floating], ranks: Sequence[int]) -> Floats:
    """The widest gaps, on a log scale, with half of each of `ranks` and at most a quarter of the tokens above.

    Parameters
    ----------
    magnitude : float [D, S]
        abs(x[d]) of sampled tokens.
    top : float [D, K]
        Of the top tokens, which the sample may have missed.
    ranks : sequence of int

    Returns
    -------
    float64 [R, D]
    """
    together = np.concatenate([magnitude, top], axis=1)
    last = min(together.shape[1] - 1, int(LARGEST_SHARE * magnitude.shape[1]) + top.shape[1])
    upper = -np.sort(np.partition(-together, last, axis=1)[:, : last + 1], axis=1)
    steps = -np.diff(np.log(np.maximum(upper, SMALLEST)), axis=1)
    return np.stack([steps[:, max(1, rank // 2) - 1 :].max(axis=1, initial=0.0) for rank in ranks]).astype(np.float64)


def measure_peaks(run: RunReader, settings: DiscoverySettings, gaps: bool = False) -> Peaks:
    """Read the peak statistic of every dimension and layer from a run.

    Parameters
    ----------
    run : RunReader
        An open run file.
    settings : DiscoverySettings
        `typical_quantile`, `top_tokens` and `samples_per_token` are used.
    gaps : bool
        Measure the gaps, too.
    """
    statistics, tokens = run.statistics, run.tokens
    depth, width, kept = statistics.topk_token.shape
    num_samples = int(tokens.sample.max()) + 1 if len(tokens) else 0
    ranks = peak_ranks(num_samples, kept, settings)
    typical, ordinary, height, share = (np.empty((depth, width)) for _ in range(4))
    gap = np.empty((len(ranks), depth, width)) if gaps else None
    energy, contrast = np.empty((depth, width, kept)), np.empty((depth, width, kept))
    token, sample = (np.empty((depth, width, kept), np.int64) for _ in range(2))
    for layer in range(depth):
        rows, states = run.sampled(layer)
        kept_dim, kept_value, rms = run.largest(layer)
        # One row a dimension, which is many times faster to order.
        normed = np.ascontiguousarray(np.abs(states).T)
        share[layer] = np.median(normed, axis=1).astype(np.float64) ** 2 / width
        magnitude = normed * rms[rows]
        ordinary[layer], typical[layer] = np.quantile(magnitude, [settings.typical_quantile, 0.5], axis=1)
        found = statistics.topk_token[layer]
        odds = statistics.topk_odds[layer].astype(np.float64)
        peak = np.sqrt(odds / (1.0 + odds) * width) * rms[found]
        # Exact where the run kept the coordinate, as it does for all that are anywhere near massive.
        for place in range(kept_dim.shape[1]):
            kept = kept_dim[found, place] == np.arange(width)[:, None]
            peak[kept] = np.abs(kept_value[found, place][kept])
        if gap is not None:
            gap[:, layer] = widest_gaps(magnitude, np.where(found >= 0, peak, 0.0), ranks)
        rise = np.maximum(1.0 - ordinary[layer, :, None] / np.maximum(peak, np.finfo(np.float32).tiny), 0.0)
        values = np.where(found >= 0, np.log(odds * rise**2 + SMALLEST), np.log(SMALLEST))
        order = np.argsort(-values, axis=-1, kind="stable")
        energy[layer] = np.take_along_axis(values, order, -1)
        height[layer] = np.median(np.take_along_axis(peak, order[:, : ranks[0]], -1), axis=-1)
        rising = 2 * np.log(np.maximum(peak, SMALLEST) / np.maximum(typical[layer], SMALLEST)[:, None])
        contrast[layer] = np.take_along_axis(np.where(found >= 0, rising, 0.0), order, -1)
        token[layer] = np.take_along_axis(found, order, -1)
        sample[layer] = np.where(token[layer] >= 0, tokens.sample[token[layer]], num_samples)
    return Peaks(PeakScores(energy, contrast), sample, token, typical, ordinary, height, share, gap, ranks)
