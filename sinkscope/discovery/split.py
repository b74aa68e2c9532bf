"""Splitting tokens into sinks and others by a score. Pure functions of arrays."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sinkscope.significance import Floats

SMALLEST = float(np.finfo(np.float64).tiny)
EDGE = 4.0
"""Where one side of a split holds no token, the threshold may move by this factor beyond the outermost token."""
LARGEST_SHARE = 0.25
"""Where the gap decides, at most so many tokens are sinks."""


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
    search = AgreementSearch(int(label.sum()))
    search.add(score[order], label[order], np.ones(len(score), np.int64))
    return search.found()


def split_at(score: Floats, label: NDArray[np.bool_], threshold: float) -> Split:
    """The split that `threshold` makes: the interval in which every other threshold makes the same, and its F1."""
    return pooled_split([(score, label)], threshold)


def pooled_split(parts: Iterable[tuple[Floats, NDArray[np.bool_]]], threshold: float) -> Split:
    """`split_at` of scores float64 [n] and labels bool [n] in parts."""
    low, high, lowest, above, hit, total = -np.inf, np.inf, np.inf, 0, 0, 0
    for score, label in parts:
        flagged = score >= threshold
        low = max(low, float(score[~flagged].max(initial=-np.inf)))
        high = min(high, float(score[flagged].min(initial=np.inf)))
        lowest = min(lowest, float(score.min(initial=np.inf)))
        above += int(flagged.sum())
        hit += int((flagged & label).sum())
        total += int(flagged.sum() + label.sum())
    low = lowest / EDGE if low == -np.inf else low
    high = high if above else low * EDGE
    return Split(low, max(high, low), 2.0 * hit / total if total else 1.0, above)


class AgreementSearch:
    """Looks for the split with the best F1 against the labels, and of equals the widest gap.

    Parameters
    ----------
    total : int
        Weight of all labelled tokens.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._best: tuple[float, float] = (-1.0, 0.0)
        self._split: Split | None = None
        # The last score, and the weights of labelled and of all tokens from it on up.
        self._score, self._hit, self._above = np.zeros(0), np.zeros(1, np.int64), np.zeros(1, np.int64)

    def add(self, score: Floats, label: NDArray[np.bool_], weight: NDArray[np.int64]) -> None:
        """Scores that go down, below all before, where token n counts `weight[n]` times."""
        if not self._total or not len(score):
            return
        hit, above = np.cumsum(weight * label) + self._hit, np.cumsum(weight) + self._above
        if len(self._score):
            self._judge(self._score, score[:1], self._hit, self._above)
        self._judge(score[:-1], score[1:], hit[:-1], above[:-1])
        self._score, self._hit, self._above = score[-1:].copy(), hit[-1:].copy(), above[-1:].copy()

    def found(self) -> Split | None:
        """The best split of all; None where there are no labels or no different scores."""
        if len(self._score):
            # The last split has nothing below it.
            self._judge(self._score, np.maximum(self._score / EDGE, SMALLEST), self._hit, self._above)
        return self._split

    def _judge(self, upper: Floats, lower: Floats, hit: NDArray[np.int64], above: NDArray[np.int64]) -> None:
        """A threshold can only lie between different scores."""
        f1 = np.where(lower < upper, 2.0 * hit / (above + self._total), -1.0)
        best = float(f1.max(initial=-1.0))
        if best < 0 or best < self._best[0]:
            return
        good = np.flatnonzero(f1 >= best)
        ratio = upper[good] / np.maximum(lower[good], SMALLEST)
        place = np.argmax(ratio)
        if (best, float(ratio[place])) > self._best:
            self._best, at = (best, float(ratio[place])), good[place]
            self._split = Split(float(lower[at]), float(upper[at]), best, int(above[at]))


@dataclass
class GapSearch:
    """Looks for the widest gap, on a log scale, with at least `rarest` tokens above and at most `last`.

    Attributes
    ----------
    rarest, last : int
    best : Split or None
        The widest so far.
    seen : int
        Scores that came.
    """

    rarest: int
    last: int
    best: Split | None = None
    seen: int = 0
    _gap: float = 0.0
    _score: Floats = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, count: int, rarest: int, largest_share: float = LARGEST_SHARE) -> "GapSearch":
        """Among so many tokens, at most a share of them above."""
        return cls(rarest, min(count - 1, max(rarest, int(largest_share * count))))

    @property
    def ended(self) -> bool:
        """Whether what comes can change nothing."""
        return self.last < self.rarest or self.seen > self.last

    def add(self, score: Floats) -> None:
        """Scores that go down, below all before."""
        first = self.seen - len(self._score)
        together = np.concatenate([self._score, score])
        self.seen += len(score)
        self._score = together[-1:].copy()
        start, stop = max(0, self.rarest - 1 - first), min(len(together) - 1, self.last - first)
        if self.last < self.rarest or start >= stop:
            return
        upper, lower = together[start:stop], np.maximum(together[start + 1 : stop + 1], SMALLEST)
        gaps = np.log(upper / lower)
        place = int(np.argmax(gaps))
        if gaps[place] > self._gap:
            self._gap = float(gaps[place])
            self.best = Split(float(lower[place]), float(upper[place]), 1.0, first + start + place + 1)


def gap_split(score: Floats, rarest: int = 1, largest_share: float = LARGEST_SHARE) -> Split | None:
    """The widest gap, on a log scale, with at least `rarest` tokens and at most `largest_share` of them above.

    Used where no attention was measured. Tokens of one population crowd together, so the widest gap in the upper part
    lies between ordinary tokens and sinks where there are two populations.
    """
    search = GapSearch.of(len(score), rarest, largest_share)
    search.add(-np.sort(-score))
    return search.best


def average_precision(score: Floats, label: NDArray[np.bool_]) -> float:
    """Mean of the precision at every labelled token, going down the scores; NaN without labels.

    Tokens of equal score are taken together, so that their order makes no difference.
    """
    if not label.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    down, hit = -score[order], label[order]
    reached = np.searchsorted(down, down[hit], side="right")
    return float((np.cumsum(hit)[reached - 1] / reached).mean())


def auroc(score: Floats, label: NDArray[np.bool_]) -> float:
    """Probability that a labelled token scores above an unlabelled one, ties counted half; NaN without both."""
    positive, negative = int(label.sum()), int((~label).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[label].sum() - positive * (positive + 1) / 2) / (positive * negative))
