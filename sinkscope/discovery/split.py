"""Splitting tokens into sinks and others by a score. Pure functions of arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sinkscope.significance import Floats

EDGE = 4.0
"""Where one side of a split holds no token, the threshold may move by this factor beyond the outermost token."""


@dataclass(frozen=True)
class Split:
    """A threshold on a positive score.

    Attributes
    ----------
    low, high : float
        The largest score below and the smallest above: every threshold in (low, high] gives the same tokens.
    f1 : float
        Agreement with the labels the split was chosen by; 1 where it was chosen by the gap alone.
    above : int
        Number of tokens above.
    """

    low: float
    high: float
    f1: float
    above: int

    @property
    def threshold(self) -> float:
        """The middle of the interval on a log scale."""
        return float(np.sqrt(self.low * self.high)) if self.low > 0 else self.high / 2

    @property
    def gap(self) -> float:
        """Width of the interval in logarithms."""
        return float(np.log(self.high / self.low)) if self.low > 0 else np.inf


def best_split(score: Floats, label: NDArray[np.bool_]) -> Split | None:
    """The split whose F1 against the labels is the best, and of equals the one with the widest gap: the most robust.

    Parameters
    ----------
    score : float64 [n]
        Positive scores; larger means more of a sink.
    label : bool [n]
        What the split should find.

    Returns
    -------
    Split or None
        None where there are no labels or no different scores.
    """
    if len(score) < 2:
        return None
    order = np.argsort(-score, kind="stable")
    return _best_of_sorted(score[order], label[order], np.ones(len(score), np.int64))


def split_at(score: Floats, label: NDArray[np.bool_], threshold: float) -> Split:
    """The split that `threshold` makes: the interval in which every other threshold makes the same, and its F1."""
    above = score >= threshold
    low = float(score[~above].max()) if not above.all() else float(score.min()) / EDGE
    high = float(score[above].min()) if above.any() else low * EDGE
    total = int(above.sum() + label.sum())
    return Split(low, max(high, low), 2.0 * int((above & label).sum()) / total if total else 1.0, int(above.sum()))


def resampled_thresholds(
    score: Floats,
    label: NDArray[np.bool_] | None,
    sample: NDArray[np.int64],
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
    sample : int64 [n]
        Sample of every token.
    weights : int64 [B, samples]
        How often every sample counts.
    """
    order = np.argsort(-score, kind="stable")
    if label is None:
        # Only the upper part can be split, with a margin for samples that a resampling leaves out.
        order = order[: max(8 * rarest, len(order) // 2)]
    ordered, of = score[order], sample[order]
    marked = None if label is None else label[order]
    found = np.full(len(weights), np.nan)
    for index, weight in enumerate(weights):
        counted = weight[of]
        kept = counted > 0
        if marked is None:
            split = gap_split(ordered[kept], rarest)
        else:
            split = _best_of_sorted(ordered[kept], marked[kept], counted[kept])
        if split is not None:
            found[index] = split.threshold
    return found


def _best_of_sorted(ordered: Floats, label: NDArray[np.bool_], weight: NDArray[np.int64]) -> Split | None:
    """`best_split` of scores that go down, where token n counts `weight[n]` times."""
    hit, above = np.cumsum(weight * label), np.cumsum(weight)
    if not len(ordered) or not hit[-1]:
        return None
    # A threshold can only lie between different scores; the last split has nothing below it.
    lower = np.append(ordered[1:], max(ordered[-1] / EDGE, np.finfo(np.float64).tiny))
    f1 = np.where(lower < ordered, 2.0 * hit / (above + hit[-1]), -1.0)
    if f1.max() < 0:
        return None
    good = np.flatnonzero(f1 >= f1.max())
    best = good[np.argmax(ordered[good] / np.maximum(lower[good], np.finfo(np.float64).tiny))]
    return Split(float(lower[best]), float(ordered[best]), float(f1[best]), int(above[best]))


def gap_split(score: Floats, rarest: int = 1, largest_share: float = 0.25) -> Split | None:
    """The widest gap, on a log scale, with at least `rarest` tokens and at most `largest_share` of them above.

    Used where no attention was measured. Tokens of one population crowd together, so the widest gap in the upper part
    lies between ordinary tokens and sinks where there are two populations.
    """
    ordered = -np.sort(-score)
    last = min(len(ordered) - 1, max(rarest, int(largest_share * len(ordered))))
    if last < rarest:
        return None
    upper, lower = ordered[rarest - 1 : last], np.maximum(ordered[rarest : last + 1], np.finfo(np.float64).tiny)
    gaps = np.log(upper / lower)
    place = int(np.argmax(gaps))
    if gaps[place] <= 0:
        return None
    return Split(float(lower[place]), float(upper[place]), 1.0, place + rarest)


def average_precision(score: Floats, label: NDArray[np.bool_]) -> float:
    """Mean of the precision at every labelled token, going down the scores; NaN without labels."""
    if not label.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hit = label[order]
    return float((np.cumsum(hit)[hit] / (np.flatnonzero(hit) + 1)).mean())


def auroc(score: Floats, label: NDArray[np.bool_]) -> float:
    """Probability that a labelled token scores above an unlabelled one, ties counted half; NaN without both."""
    positive, negative = int(label.sum()), int((~label).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[label].sum() - positive * (positive + 1) / 2) / (positive * negative))
