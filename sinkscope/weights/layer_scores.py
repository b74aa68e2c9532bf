"""The scores of the matrices of one layer, one after another, as one; and the p-values of its rows."""

from collections.abc import Sequence

import numpy as np

from sinkscope.significance import Floats, exceedance, fit_tail, scale_prior
from sinkscope.weights.statistic import TINY, RowScores


class LayerScores:
    """Of every row what the matrix says in which it stands out most: one MLP matrix, or all experts. Their number does
    not change the memory.

    Attributes
    ----------
    ratio, norm_ratio, odds, score : float64 [D]
        As in `RowScores`, of the matrix with the row's highest score.
    """

    def __init__(self, first: RowScores) -> None:
        self.ratio, self.norm_ratio, self.odds, self.score = first.ratio, first.norm_ratio, first.odds, first.score
        views = _views(first)
        tail = fit_tail(views)
        self.inside, self.fitted = tail.inside, tail.fitted
        self.scales = [tail.scale[:, 0]]
        self.excess, self.scale = views - tail.base, np.broadcast_to(tail.scale, views.shape)

    def add(self, scores: RowScores) -> None:
        """One more matrix of the layer."""
        other = LayerScores(scores)
        better = other.score > self.score
        for name in ("ratio", "norm_ratio", "odds", "score"):
            setattr(self, name, np.where(better, getattr(other, name), getattr(self, name)))
        further = other.excess / other.scale > self.excess / self.scale
        self.excess = np.where(further, other.excess, self.excess)
        self.scale = np.where(further, other.scale, self.scale)
        self.scales += other.scales


def _views(scores: RowScores) -> Floats:
    """What the rows are compared by: the first tells spikes among heavy-tailed rows, the second is sharp where rows are
    alike. Float64 [2, D]."""
    return np.stack([scores.score, np.log(np.maximum(scores.ratio, TINY))])


def p_values(layers: Sequence[LayerScores]) -> Floats:
    """P-value of every row in every layer, float64 [layers, D].

    Of the score and of log r, each against the tail of the other rows of the matrix in which the row stands out most;
    the smaller one, doubled. The scales of all matrices are each other's prior. A layer's matrices count as so many
    independent tries (Sidak).
    """
    scales = np.concatenate([np.stack(layer.scales) for layer in layers])
    tries = np.array([len(layer.scales) for layer in layers])[:, None]
    views = []
    for view, prior in enumerate(scale_prior(column, layers[0].fitted) for column in scales.T):
        once = np.stack(
            [exceedance(layer.excess[view], layer.scale[view], layer.inside, layer.fitted, prior) for layer in layers]
        )
        views.append(-np.expm1(tries * np.log1p(-np.minimum(once, 1 - 1e-16))))
    return np.minimum(2 * np.min(views, axis=0), 1.0)
