"""The scores of the matrices of one layer, one after another, as one; and the p-values of its rows."""

from collections.abc import Sequence

import numpy as np

from sinkscope.significance import Floats, Tail, exceedance, fit_tail, scale_prior
from sinkscope.weights.statistic import TINY, RowScores


class LayerScores:
    """Of every row what the matrix says in which it stands out most: one MLP matrix, or all experts. Their number does
    not change the memory.

    Attributes
    ----------
    ratio, norm_ratio, odds, score : float64 [D]
        As in `RowScores`, of the matrix with the row's highest score.
    matrices : int
        How many were added.
    """

    def __init__(self, first: RowScores) -> None:
        self.ratio, self.norm_ratio, self.odds, self.score = first.ratio, first.norm_ratio, first.odds, first.score
        self.matrices = 1
        tails = _tails(first)
        self.inside, self.fitted = tails[0].inside, tails[0].fitted
        self.scales = [[tail.scale.item()] for tail in tails]
        self.excess = np.stack([view - tail.base for view, tail in zip(_views(first), tails, strict=True)])
        self.scale = np.stack(
            [np.broadcast_to(tail.scale, view.shape) for view, tail in zip(_views(first), tails, strict=True)]
        )

    def add(self, scores: RowScores) -> None:
        """One more matrix of the layer."""
        other = LayerScores(scores)
        better = other.score > self.score
        for name in ("ratio", "norm_ratio", "odds", "score"):
            setattr(self, name, np.where(better, getattr(other, name), getattr(self, name)))
        further = other.excess / other.scale > self.excess / self.scale
        self.excess = np.where(further, other.excess, self.excess)
        self.scale = np.where(further, other.scale, self.scale)
        self.matrices += 1
        for known, scale in zip(self.scales, other.scales, strict=True):
            known += scale


def _views(scores: RowScores) -> tuple[Floats, Floats]:
    """What the rows are compared by: the first tells spikes among heavy-tailed rows, the second is sharp where rows are
    alike."""
    return scores.score, np.log(np.maximum(scores.ratio, TINY))


def _tails(scores: RowScores) -> list[Tail]:
    return [fit_tail(view) for view in _views(scores)]


def p_values(layers: Sequence[LayerScores]) -> Floats:
    """P-value of every row in every layer, float64 [layers, D].

    Of the score and of log r, each against the tail of the other rows of the matrix in which the row stands out most;
    the smaller one, doubled. The scales of all matrices are each other's prior. A layer's matrices count as so many
    independent tries (Sidak).
    """
    views = []
    for view in range(2):
        scales = np.concatenate([layer.scales[view] for layer in layers])
        prior = scale_prior(scales, layers[0].fitted)
        once = np.stack(
            [exceedance(layer.excess[view], layer.scale[view], layer.inside, layer.fitted, prior) for layer in layers]
        )
        tries = np.array([layer.matrices for layer in layers])[:, None]
        views.append(-np.expm1(tries * np.log1p(-np.minimum(once, 1 - 1e-16))))
    return np.minimum(2 * np.min(views, axis=0), 1.0)
