"""Which cases are separable: the rule, in terms of what was planted.

A store with sinks is separable where, for every sink dimension and every layer that reads it,

- its share of the energy of its sink tokens, fellow sink dimensions left out, is at least 0.2 in the median, or 0.6
  where no attention bears witness;
- its magnitude on 95 % of its sink tokens is at least 1.3 times that on any other token;
- its odds there are at least twice the highest 99.9 % quantile of an ordinary dimension's odds;

and where, besides,

- at least 8 samples, and a quarter of all, hold a sink token of the dimension, out of at least 500 tokens;
- at least 3 consecutive layers read the peak (2 layers with attention in a hybrid);
- with attention, in every such layer, at least 8 of its sink tokens have enough later queries (40, in short samples
  half of the sample) and these draw at least 0.15 in the mean, and tokens that draw more than 0.10 by chance are at
  most a fifth of all sink tokens.

A sink-free store is separable where it has at least 8 samples and 500 tokens: then "none" can be known.
"""

import numpy as np
from numpy.typing import NDArray

from benchmarks.known_truth.attention import THRESHOLD
from benchmarks.known_truth.case import Case, Mask, Measures, Tokens
from benchmarks.known_truth.sinks import Planted

LEAST_SHARE, LEAST_SHARE_UNLINKED = 0.2, 0.6
LEAST_GAP, LEAST_RISE = 1.3, 2.0
LEAST_SAMPLES, LEAST_PART, LEAST_TOKENS = 8, 0.25, 500
LEAST_LAYERS, LEAST_HYBRID_LAYERS = 3, 2
LEAST_DRAWN, MOST_ATTENDED = 0.15, 0.2
ORDINARY_QUANTILE = 0.999


def longest_stretch(mask: Mask) -> int:
    """Length of the longest run of True."""
    best = run = 0
    for value in mask.tolist():
        run = run + 1 if value else 0
        best = max(best, run)
    return best


def ordinary_odds(state: NDArray[np.float32], taken: set[int]) -> float:
    """The highest 99.9 % quantile over tokens of an ordinary dimension's odds."""
    square = np.square(state)
    energy = square.sum(axis=1, keepdims=True)
    square[:, sorted(taken)] = 0.0
    odds = square / np.maximum(energy - square, 1e-30)
    place = min(len(odds) - 1, int(np.ceil(ORDINARY_QUANTILE * len(odds))))
    return float(np.partition(odds, place, axis=0)[place].max())


def measure(
    case: Case, tokens: Tokens, states: NDArray[np.float32], planted: Planted, drawn: NDArray[np.float32] | None
) -> Measures:
    """What was planted, measured; see `Measures`."""
    shares, gaps, rises, levels, judged_counts, layers = [], [], [], [], [], []
    judged = tokens.judged
    attentive = np.ones(case.layers, bool) if drawn is None else ~np.isnan(drawn).all(axis=0)
    ordinary: dict[int, float] = {}
    for dim, acting in planted.acting.items():
        read = acting[:-1] & attentive & ~planted.unsure[:-1]
        layers.append(int(read.sum()) if case.hybrid != "no" else longest_stretch(read))
        for layer in np.flatnonzero(read).tolist():
            state, sinks = states[layer], planted.sinks[layer] & planted.own[dim]
            fellows = [other for other, others in planted.acting.items() if others[layer]]
            value = state[:, dim].astype(np.float64)
            rows = state[sinks].astype(np.float64)
            rest = np.square(rows).sum(axis=1) - np.square(rows[:, fellows]).sum(axis=1)
            odds = float(np.median(value[sinks] ** 2 / np.maximum(rest, 1e-30)))
            shares.append(odds / (1 + odds))
            gaps.append(float(np.quantile(np.abs(value[sinks]), 0.05)) / max(float(np.abs(value[~sinks]).max()), 1e-30))
            if layer not in ordinary:
                ordinary[layer] = ordinary_odds(state, planted.taken)
            rises.append(odds / max(ordinary[layer], 1e-30))
            if drawn is not None:
                judged_counts.append(int((sinks & judged).sum()))
                levels.append(float(drawn[sinks & judged, layer].mean()) if (sinks & judged).any() else 0.0)
    return Measures(
        share=min(shares, default=0.0),
        gap=min(gaps, default=0.0),
        rise=min(rises, default=0.0),
        samples=min(len(np.unique(tokens.sample[own])) for own in planted.own.values()),
        layers=min(layers),
        drawn=min(levels, default=float("nan")),
        judged=min(judged_counts, default=0),
        attended=_attended(planted, drawn, judged),
    )


def _attended(planted: Planted, drawn: NDArray[np.float32] | None, judged: Mask) -> float:
    """Tokens above the threshold by chance, over sink tokens: the mean over layers with sinks."""
    if drawn is None:
        return 0.0
    chance = judged & ~planted.strength.any(axis=0)
    parts = [
        float((drawn[chance, layer] > THRESHOLD).sum() / max((planted.sinks[layer] & judged).sum(), 1))
        for layer in np.flatnonzero(planted.sinks[:-1].any(axis=1)).tolist()
        if not np.isnan(drawn[:, layer]).all()
    ]
    return float(np.mean(parts)) if parts else 0.0


def is_separable(case: Case, tokens: Tokens, measures: Measures | None) -> bool:
    """The rule above."""
    enough = len(tokens) >= LEAST_TOKENS and case.samples >= LEAST_SAMPLES
    if measures is None:
        return enough
    fair = (
        enough
        and measures.share >= (LEAST_SHARE if case.attention else LEAST_SHARE_UNLINKED)
        and measures.gap >= LEAST_GAP
        and measures.rise >= LEAST_RISE
        and measures.samples >= max(LEAST_SAMPLES, LEAST_PART * case.samples)
        and measures.layers >= (LEAST_LAYERS if case.hybrid == "no" else LEAST_HYBRID_LAYERS)
    )
    if not case.attention:
        return fair
    return (
        fair
        and measures.drawn >= LEAST_DRAWN
        and measures.judged >= LEAST_SAMPLES
        and measures.attended <= MOST_ATTENDED
    )
