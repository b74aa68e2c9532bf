"""Thresholds on the scores of all layers of a band together, which need not fit into memory.

The scores come in parts, one a layer, and are read from the highest down, a block at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.split import AgreementSearch, GapSearch, Split
from sinkscope.significance import Floats

BLOCK = 2**22
"""At most so many scores are held in order."""


class Scored(NamedTuple):
    """Tokens with their scores: float64 [n], whether each is labelled bool [n], and its sample, integers [n]."""

    score: Floats
    label: NDArray[np.bool_]
    sample: NDArray[np.integer]

    def take(self, rows: NDArray[np.generic] | slice) -> "Scored":
        """The chosen ones: of their numbers, a mask or a slice."""
        return Scored(self.score[rows], self.label[rows], self.sample[rows])


Parts = Callable[[], Iterable[Scored]]
"""The parts of the whole, made anew whenever they are read."""


def downwards(parts: Parts, reach: int | None = None, block: int | None = None) -> Iterator[Scored]:
    """All scores from the highest down, equal ones in the order of the parts, a block at a time.

    Every block reads all parts once.

    Parameters
    ----------
    parts : callable
        Gives the parts.
    reach : int, optional
        End after so many scores.
    block : int, optional
        The first block has at most so many scores; the others are larger, up to `BLOCK`.
    """
    left, most = np.inf if reach is None else reach, min(block or BLOCK, BLOCK)
    last, taken = np.inf, 0
    while left > 0:
        wanted = int(min(most, left))
        found = _highest(parts(), wanted, last, taken)
        if len(found.score):
            yield found
        if len(found.score) < wanted:
            return
        left, most = left - wanted, min(4 * most, BLOCK)
        lowest = float(found.score[-1])
        taken = int((found.score == lowest).sum()) + (taken if lowest == last else 0)
        last = lowest


def _highest(parts: Iterable[Scored], most: int, last: float, taken: int) -> Scored:
    """The highest `most` scores, in order, below `last`; and of those equal to it, all after the first `taken`."""
    held, least = Scored(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int32)), -np.inf
    for part in parts:
        wanted = (part.score < last) & (part.score >= least)
        equal = np.flatnonzero(part.score == last)
        wanted[equal[taken:]] = True
        taken = max(0, taken - len(equal))
        held = Scored(*(np.concatenate(pair) for pair in zip(held, part.take(wanted), strict=True)))
        if len(held.score) > 2 * most:
            held, least = _top(held, most)
    if len(held.score) > most:
        held, _ = _top(held, most)
    return held.take(np.argsort(-held.score, kind="stable"))


def _top(held: Scored, most: int) -> tuple[Scored, float]:
    """The highest `most` scores, of equal ones the first, in their order; and the lowest of them."""
    least = np.partition(held.score, len(held.score) - most)[len(held.score) - most]
    wanted = held.score > least
    wanted[np.flatnonzero(held.score == least)[: most - int(wanted.sum())]] = True
    return held.take(wanted), float(least)


def resampled_thresholds(
    score: Floats,
    label: NDArray[np.bool_] | None,
    sample: NDArray[np.integer],
    weights: NDArray[np.int64],
    rarest: int = 1,
) -> Floats:
    """The best threshold in every resampling of the samples, float64 [B]; NaN where it has none.

    Parameters
    ----------
    score : float64 [n]
        Positive scores.
    label : bool [n] or None
        What the split should find; the widest gap with at least `rarest` tokens above decides without it.
    sample : integers [n]
        Sample of every token.
    weights : int64 [B, samples]
        How often every sample counts.
    """
    if label is None:
        parts = [Scored(score, np.zeros(len(score), bool), sample)]
        return gap_thresholds(lambda: parts, len(score), weights, rarest)
    parts = [Scored(score, label, sample)]
    return agreement_thresholds(downwards(lambda: parts), count_labelled(parts, weights.shape[1]), weights)


def count_labelled(parts: Iterable[Scored], samples: int) -> NDArray[np.int64]:
    """How many labelled tokens every sample has, int64 [samples]."""
    counts = np.zeros(samples, np.int64)
    for part in parts:
        counts += np.bincount(part.sample[part.label], minlength=samples)
    return counts


def agreement_thresholds(blocks: Iterable[Scored], labelled: NDArray[np.int64], weights: NDArray[np.int64]) -> Floats:
    """`resampled_thresholds` by the F1 of scores that come downwards, with `labelled` tokens in every sample."""
    searches = [AgreementSearch(int(total)) for total in weights @ labelled]
    for block in blocks:
        for search, weight in zip(searches, weights, strict=True):
            counted = weight[block.sample]
            kept = counted > 0
            search.add(block.score[kept], block.label[kept], counted[kept])
    return _thresholds([search.found() for search in searches])


def gap_thresholds(parts: Parts, count: int, weights: NDArray[np.int64], rarest: int) -> Floats:
    """`resampled_thresholds` by the widest gap, of `count` scores in parts."""
    # Only the upper part can be split, with a margin for samples that a resampling leaves out.
    reach = min(count, max(8 * rarest, count // 2))
    tokens, only = np.zeros(weights.shape[1], np.int64), None
    for block in downwards(parts, reach):
        tokens += np.bincount(block.sample, minlength=len(tokens))
        only = block if len(block.score) == reach else None
    searches = [GapSearch.of(int(tokens[weight > 0].sum()), rarest) for weight in weights]
    for block in downwards(parts, reach) if only is None else [only]:
        for search, weight in zip(searches, weights, strict=True):
            if not search.ended:
                search.add(block.score[weight[block.sample] > 0])
        if all(search.ended for search in searches):
            break
    return _thresholds([search.best for search in searches])


def _thresholds(splits: Iterable[Split | None]) -> Floats:
    return np.array([np.nan if split is None else split.threshold for split in splits])
