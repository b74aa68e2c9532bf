"""Attention drawn, as a capture would measure it: mean over heads and strictly later queries."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.known_truth.case import Case, Mask, Tokens

THRESHOLD = 0.10
MOST = 0.9
"""The sinks of a sample together draw at most this much of a query."""


def attention_drawn(
    generator: np.random.Generator,
    case: Case,
    tokens: Tokens,
    strength: NDArray[np.float64],
    attended_layers: Mask,
) -> NDArray[np.float32]:
    """float32 [T, L]; NaN where a layer has no attention.

    Ordinary tokens draw 0.0005 to 0.03, and a local part that their next few queries give, which weighs more the fewer
    later queries there are. Some draw just below the threshold, some above it: those of a token are the same in half of
    the cases. Sink tokens draw their strength times a token's own factor and the layer's noise.
    """
    count = len(tokens)
    samples = int(tokens.sample[-1]) + 1
    later = tokens.later
    local = generator.uniform(0.2, 1.0, count) / np.maximum(later, 1)
    own = np.exp(generator.normal(0, 0.12, count))
    judged = np.flatnonzero(tokens.judged & ~strength.any(axis=0))
    number_of_sinks = int(np.median([row.sum() for row in (strength > 0) if row.any()] or [samples]))
    fixed = generator.permutation(judged) if generator.random() < 0.5 else None
    drawn = np.empty((count, case.layers))
    for layer in range(case.layers):
        base = np.clip(np.exp(generator.normal(np.log(0.004), 0.8, count)), 0.0005, 0.03)
        row = base + local * np.exp(generator.normal(0, 0.4, count))
        order = generator.permutation(judged) if fixed is None else fixed
        above = int(generator.poisson(case.attended * number_of_sinks))
        below = above + int(0.001 * count)
        row[order[:above]] = generator.uniform(THRESHOLD, 0.15, len(order[:above]))
        row[order[above : above + below]] = generator.uniform(0.05, 0.095, len(order[above : above + below]))
        sinks = strength[layer] > 0
        if sinks.any():
            wanted = strength[layer] * own * np.exp(generator.normal(0, 0.1, count))
            total = np.bincount(tokens.sample, weights=wanted, minlength=samples)
            wanted *= np.minimum(1.0, MOST / np.maximum(total, 1e-9))[tokens.sample]
            row = np.where(sinks, wanted, row)
        drawn[:, layer] = np.where(later > 0, np.clip(row, 0.0, 0.97), 0.0)
    drawn[:, ~attended_layers] = np.nan
    return drawn.astype(np.float32)
