"""P-values from the bulk of the dimensions, and false-discovery control. Pure functions of arrays."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPARED = 8
"""At least so many top dimensions take no part in fitting the null, because they may be sink dimensions."""


class Tail(NamedTuple):
    """The tail of the ordinary dimensions of a layer: above `base` their scores are exponential with mean `scale`.

    `inside` is the share of dimensions above `base`, `fitted` the number of dimensions that the scale rests on; `base`
    and `scale` are float64 [..., 1].
    """

    base: Floats
    scale: Floats
    inside: float
    fitted: int

    def p_values(self, score: Floats) -> Floats:
        """Predictive tail probability of a score; 1 in the bulk."""
        return exceedance(score - self.base, self.scale, self.inside, self.fitted)

    def score_at(self, p_value: float) -> Floats:
        """The score whose tail probability is `p_value`, float64 [..., 1]."""
        excess = self.fitted * ((self.inside / min(p_value, self.inside)) ** (1.0 / self.fitted) - 1.0)
        return self.base + self.scale * excess


class ScalePrior(NamedTuple):
    """What tails of the same kind say of the scale of one before it is looked at: inverse gamma."""

    shape: float
    rate: float


NO_PRIOR = ScalePrior(0.0, 0.0)


def exceedance(excess: Floats, scale: Floats, inside: float, fitted: int, prior: ScalePrior = NO_PRIOR) -> Floats:
    """Predictive probability that an ordinary dimension is so far above the base of its tail; 1 in the bulk.

    (1 + x / (n s))^-n for the excess x over a tail whose scale s rests on n = `fitted` dimensions; a prior counts like
    so many dimensions more.

    Parameters
    ----------
    excess, scale : float64 [...]
        Score minus base, and the mean excess of the tail; broadcast.
    inside : float
        Share of dimensions above the base.
    """
    weight, total = fitted + prior.shape, fitted * scale + prior.rate
    above = np.maximum(excess, 0.0)
    return np.where(above > 0, inside * (1.0 + above / total) ** -weight, 1.0)


def scale_prior(scales: Floats, fitted: int) -> ScalePrior:
    """The prior of a tail's scale from the scales of tails of the same kind (empirical Bayes, by their moments).

    Scales that differ no more than estimates from `fitted` dimensions do make a sharp prior, scales that differ a weak
    one. The spread is taken two standard errors larger than it is seen, so that few tails say little.

    Parameters
    ----------
    scales : float64 [M]
        One for every tail.
    fitted : int
        Number of dimensions that each rests on.
    """
    count = len(scales)
    if count < 2:
        return NO_PRIOR
    mean = float(scales.mean())
    spread = float(scales.var(ddof=1)) / mean**2
    cautious = max(spread, 1 / fitted) * (1 + 2 * np.sqrt(2 / (count - 1)))
    between = (cautious - 1 / fitted) / (1 + 1 / fitted)
    shape = 2 + 1 / between
    return ScalePrior(shape, mean * (shape - 1))


def fit_tail(score: Floats) -> Tail:
    """Fit the tail to the dimensions just below the top; the last axis of `score` runs over dimensions."""
    width = score.shape[-1]
    spared = min(max(SPARED, width // 100), max(1, width // 6))
    fitted = min(max(20, width // 10), max(2, int(0.6 * width) - spared))
    # Only the top is needed in order.
    reach = min(width, spared + fitted + 1)
    order = -np.sort(np.partition(-score, reach - 1, axis=-1)[..., :reach], axis=-1)
    top, base = order[..., spared : spared + 1], order[..., spared + fitted : spared + fitted + 1]
    scale = ((order[..., spared : spared + fitted] - base).sum(-1, keepdims=True) + spared * (top - base)) / fitted
    # A layer of equal scores has no tail; the smallest scale keeps its dimensions from all being outliers.
    return Tail(base, np.maximum(scale, 1e-3), (spared + fitted) / width, fitted)


def tail_p_values(score: Floats) -> Floats:
    """P-value of every dimension against the tail of the ordinary dimensions of its layer.

    The scores are logarithms, so a Pareto tail is exponential here: heavy tails are the model, not an exception. The
    scale comes from the dimensions just below the top (a censored Hill estimate: the top 1 %, and at least 8, count as
    "at least as large", whatever they are). The p-value is the predictive one, (1 + x / n)^-n, which accounts for the
    estimate resting on n dimensions only; for n to infinity it is exp(-x).

    Parameters
    ----------
    score : float64 [..., D]
        Log scores; the last axis runs over dimensions.

    Returns
    -------
    float64 [..., D]
        1 for dimensions in the bulk.

    Notes
    -----
    Hill, "A simple general approach to inference about the tail of a distribution", Annals of Statistics 3 (1975).
    """
    return fit_tail(score).p_values(score)


def simes(p_values: Floats, axis: int = 0) -> Floats:
    """One p-value for the hypothesis that no test along `axis` has an effect (Simes 1986); valid where they are
    positively dependent, as a dimension's layers are."""
    ordered = np.sort(p_values, axis=axis)
    count = p_values.shape[axis]
    shape = [1] * p_values.ndim
    shape[axis] = count
    return np.minimum((ordered * count / np.arange(1, count + 1).reshape(shape)).min(axis=axis), 1.0)


def benjamini_hochberg(p_values: Floats, axis: int = -1) -> Floats:
    """Adjusted p-values along `axis`: those at most q are discoveries at false-discovery rate q."""
    moved = np.moveaxis(p_values, axis, -1)
    order = np.argsort(moved, axis=-1)
    count = moved.shape[-1]
    raw = np.take_along_axis(moved, order, -1) * count / np.arange(1, count + 1)
    adjusted = np.minimum(np.minimum.accumulate(raw[..., ::-1], axis=-1)[..., ::-1], 1.0)
    result = np.empty_like(adjusted)
    np.put_along_axis(result, order, adjusted, -1)
    return np.moveaxis(result, -1, axis)


def runs(active: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of every stretch of True in a bool [n]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return [(int(first), int(last) - 1) for first, last in edges.reshape(-1, 2)]


def shortest_run(num_layers: int) -> int:
    """Consecutive hidden states over which a sink dimension lasts: 2 in shallow models, 3 from 24 layers on."""
    return min(3, max(2, num_layers // 8))
