"""How well flagged tokens agree with attention sinks. Pure functions of arrays; nothing of sinkscope is used here.

An attention sink of a layer is a token whose attention, averaged over heads and over all strictly later queries, is
above a threshold; only tokens with at least 40 later queries are judged. Counts are pooled over pieces of text within a
layer, and F1 and average precision are then averaged over the layers that have attention sinks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Floats = NDArray[np.floating]

LATER_QUERIES = 40
THRESHOLDS = (0.10, 0.05)
"""An attention sink draws more than this; the first is the one that the bars are about."""
FIRST_TOKEN_DRAWS = 0.10


def drawn_attention(weights: Floats) -> NDArray[np.float32]:
    """Attention that every token draws: mean over heads and strictly later queries.

    Parameters
    ----------
    weights : float [heads, T, T]
        Attention of one sample, rows are queries.

    Returns
    -------
    float32 [T]
        0 for the last token, which no query follows.
    """
    length = weights.shape[-1]
    later = np.tril(np.ones((length, length)), -1)
    total = (weights.mean(axis=0, dtype=np.float64) * later).sum(axis=0)
    return (total / np.maximum(later.sum(axis=0), 1)).astype(np.float32)


def judged_tokens(length: int) -> Mask:
    """Tokens of a sample of this length that at least 40 queries follow, bool [T]."""
    return np.arange(length) < length - LATER_QUERIES


def count_agreement(sinks: Mask, flagged: Mask, piece: NDArray[np.int64], pieces: int) -> NDArray[np.int64]:
    """Tokens that are both, flagged, and sinks, piece by piece: int64 [pieces, 3]."""
    columns = (sinks & flagged, flagged, sinks)
    return np.stack([np.bincount(piece[mask], minlength=pieces) for mask in columns], axis=1).astype(np.int64)


def precision_recall_f1(counts: Any) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of counts (both, flagged, sinks) in the last axis; NaN where there is nothing to judge.

    F1 is 0 where sinks are missed altogether, and where tokens are flagged though there is no sink.
    """
    both, flagged, sinks = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return both / flagged, both / sinks, 2 * both / (flagged + sinks)


def average_precision(score: Floats, sinks: Mask, weight: Floats | None = None) -> float:
    """Sum over distinct scores, going down, of precision times the gain in recall; NaN without sinks.

    Equal scores are taken together, so the order of the tokens does not matter.

    Parameters
    ----------
    score : float [n]
        Larger means more of a sink.
    sinks : bool [n]
    weight : float [n], optional
        How often every token counts.
    """
    weight = np.ones(len(score)) if weight is None else weight
    positive = float(weight[sinks].sum())
    if not positive:
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(weight[order] * sinks[order])
    above = np.cumsum(weight[order])
    # The last token of every group of equal scores stands for the group.
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    hits, above = hits[ends], above[ends]
    gain = np.diff(hits, prepend=0.0) / positive
    return float((gain * hits / np.maximum(above, 1e-300)).sum())


def precision_at(score: Floats, sinks: Mask, recall: Floats) -> Floats:
    """The highest precision of any threshold with at least the given recall: float64 [len(recall)]; NaN without sinks.

    Parameters
    ----------
    score : float [n]
    sinks : bool [n]
    recall : float [r]
        Between 0 and 1.
    """
    if not sinks.any():
        return np.full(len(recall), np.nan)
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    hits = np.cumsum(sinks[order])[ends]
    best = np.maximum.accumulate((hits / (ends + 1))[::-1])[::-1]
    # The smallest number of hits that reaches the recall; rounding must not ask for one more.
    wanted = np.ceil(np.asarray(recall) * sinks.sum() - 1e-9)
    return best[np.searchsorted(hits, wanted)]


@dataclass(frozen=True)
class Oracle:
    """The best single threshold in hindsight: tokens with score >= `threshold` are flagged."""

    threshold: float
    f1: float


def oracle_threshold(score: Floats, sinks: Mask) -> Oracle:
    """The threshold on the score with the best F1; without sinks it flags nothing.

    Of thresholds that do equally well the one with the fewest flagged tokens is taken.
    """
    if not sinks.any():
        return Oracle(float("inf"), float("nan"))
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(sinks[order])
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    f1 = 2.0 * hits[ends] / (ends + 1 + sinks.sum())
    best = int(np.argmax(f1))
    return Oracle(float(score[order][ends[best]]), float(f1[best]))


def mean_over_layers(values: Any, has_sinks: Any) -> float:
    """Mean over the layers that have attention sinks, NaN where none has; a value that is NaN there counts as 0."""
    values, has_sinks = np.asarray(values, np.float64), np.asarray(has_sinks, bool)
    return float(np.nan_to_num(values[has_sinks]).mean()) if has_sinks.any() else float("nan")


def mean_f1(counts: NDArray[np.int64]) -> float:
    """Mean over layers of F1, of counts int64 [layers, pieces, 3] that are pooled over pieces."""
    pooled = counts.sum(axis=1)
    return mean_over_layers(precision_recall_f1(pooled)[2], pooled[:, 2] > 0)


def resampled_pieces(pieces: int, bootstraps: int, seed: int = 0) -> NDArray[np.int64]:
    """How often every piece is drawn in each bootstrap: int64 [bootstraps, pieces]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(pieces, np.full(pieces, 1 / pieces), size=bootstraps).astype(np.int64)


def bootstrap_f1(counts: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean F1 of every bootstrap over pieces: float64 [bootstraps]."""
    pooled = np.einsum("bp,lpc->blc", times, counts)
    f1 = np.nan_to_num(precision_recall_f1(pooled)[2])
    return np.array([mean_over_layers(one, sinks > 0) for one, sinks in zip(f1, pooled[..., 2], strict=True)])


def bootstrap_average_precision(
    scores: Sequence[Floats], sinks: Sequence[Mask], piece: NDArray[np.int64], times: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean average precision of every bootstrap over pieces: float64 [bootstraps].

    Parameters
    ----------
    scores, sinks : sequence of float [n] and of bool [n]
        One entry a layer.
    piece : int64 [n]
        Piece of every token.
    times : int64 [bootstraps, pieces]
    """
    results = np.full((len(times), len(scores)), np.nan)
    for layer, (score, label) in enumerate(zip(scores, sinks, strict=True)):
        if not label.any():
            continue
        # Tokens far below every sink in every bootstrap change nothing: precision is only read at sinks.
        kept = score >= score[label].min()
        for index, row in enumerate(times):
            results[index, layer] = average_precision(score[kept], label[kept], row[piece[kept]].astype(np.float64))
    return np.array([mean_over_layers(row, ~np.isnan(row)) for row in results])


def interval(values: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of bootstrap values, or None where there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def first_token_layers(drawn: Floats, first: Mask) -> list[int]:
    """Layers in which the first token draws more than 0.10, on average over pieces.

    Parameters
    ----------
    drawn : float [T, L]
        NaN where a layer has no softmax attention.
    first : bool [T]
        First token of every piece.
    """
    mean = drawn[first].mean(axis=0) if first.any() else np.zeros(drawn.shape[1])
    return [int(layer) for layer in np.flatnonzero(np.nan_to_num(mean) > FIRST_TOKEN_DRAWS)]


def covered_share(layers: Sequence[int], bands: Sequence[tuple[int, int]]) -> float:
    """Part of the layers that lie in one of the bands (first, last); NaN without layers."""
    inside = [any(first <= layer <= last for first, last in bands) for layer in layers]
    return float(np.mean(inside)) if inside else float("nan")
