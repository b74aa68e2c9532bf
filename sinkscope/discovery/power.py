"""How much data a decision needed, and what would have been seen."""

from typing import Any

import numpy as np

from sinkscope.discovery.dimensions import massive_dimensions
from sinkscope.discovery.find import Findings
from sinkscope.discovery.peaks import peak_ranks
from sinkscope.significance import fit_tail

PARTS = (0.125, 0.25, 0.5, 0.75)
"""Parts of the samples in which the decision is looked for again."""
SUBSETS = 10
"""Random subsets of each size."""
REPEATED = 0.9
"""A decision is repeated where this share of the subsets finds all of its dimensions."""


def measure_power(found: Findings) -> dict[str, Any]:
    """How many samples and tokens were needed for the decision.

    Returns
    -------
    dict
        Ready for JSON. `curve`: for every subset size the share of random subsets of the samples, drawn without
        repetition, in which all sink dimensions are massive and persist again. `samples_needed` and `tokens_needed`:
        the smallest size from which on at least 90 % do, an upper bound since a run keeps few top tokens of every
        dimension; null where only all of the samples do, and where there are no sink dimensions. `detectable_share`:
        the energy share from which on one dimension, alone and persistent, would have been found.
    """
    report: dict[str, Any] = {"samples_needed": None, "tokens_needed": None, "curve": []}
    if found.sinks:
        curve = [_repeated(found, part) for part in PARTS]
        report["curve"] = curve
        for entry in reversed(curve):
            if entry["repeated"] < REPEATED:
                break
            report["samples_needed"], report["tokens_needed"] = entry["samples"], entry["tokens"]
    return report | {"detectable_share": detectable_share(found)}


def detectable_share(found: Findings) -> float:
    """The energy share, in the median layer, from which on a single persistent dimension would have been massive."""
    scores = found.peaks.scores
    depth, width = scores[0].energy.shape
    tested = width if found.counted is None else max(1, int(found.counted.sum()))
    # What Simes over the layers and Benjamini-Hochberg over the dimensions ask of the least significant of its layers.
    p_value = found.settings.false_discovery_rate * found.persistence.minimum / (2 * len(scores) * depth * tested)
    needed = min(float(np.median(fit_tail(score.energy).score_at(p_value))) for score in scores)
    odds = np.exp(min(needed, 50.0))
    return float(max(found.effect_share, odds / (1 + odds)))


def _repeated(found: Findings, part: float) -> dict[str, Any]:
    sample = found.run.tokens.sample
    total = found.weights.shape[1]
    size = max(1, round(part * found.num_samples))
    generator = np.random.default_rng([found.settings.seed, size])
    present = np.unique(sample)
    lengths = np.bincount(sample, minlength=total)
    dims = [sink.dim for sink in found.sinks]
    again, tokens = 0, []
    for _ in range(SUBSETS):
        weight = np.zeros(total, np.int64)
        weight[generator.choice(present, size, replace=False)] = 1
        tokens.append(int(lengths @ weight))
        ranks = peak_ranks(size, found.peaks.sample.shape[-1], found.settings)
        massive = massive_dimensions(
            found.peaks.resampled(weight, ranks), found.effect_share, found.settings, found.counted, found.peaks.gaps
        )
        again += all(dim in massive.dims and bool(found.persistence.held(massive.active[:, dim]).any()) for dim in dims)
    return {"samples": size, "tokens": int(np.mean(tokens)), "repeated": again / SUBSETS}
