"""Paired comparisons of two settings on the same questions. Pure functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks.helps.scoring import Scores
from sinkscope.demo.pictures import QUESTION_TYPES

Floats = NDArray[np.float64]

OVERALL = "all"
DRAWS = 10_000
CONFIDENCE = 0.95


def mcnemar(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float:
    """Exact two-sided p-value of McNemar's test for paired outcomes [n]."""
    mended, broken = int((after & ~before).sum()), int((before & ~after).sum())
    return float(binomtest(mended, mended + broken).pvalue) if mended + broken else 1.0


def interval(values: Floats, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values` [n], drawing whole pictures."""
    random = np.random.default_rng(seed)
    n = len(values)
    means = random.multinomial(n, np.full(n, 1 / n), size=DRAWS) @ values / n
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def sign_flip(differences: Floats, seed: int = 0) -> float:
    """Two-sided p-value that the mean of paired differences [n] is 0, by random flips of their signs."""
    changed = differences[differences != 0]
    if not len(changed):
        return 1.0
    random = np.random.default_rng(seed)
    signs = random.integers(0, 2, size=(DRAWS, len(changed)), dtype=np.int8) * 2.0 - 1.0
    # Sums that are equal but for rounding count as equally extreme.
    extreme = np.abs(signs @ changed) >= abs(changed.sum()) * (1 - 1e-9)
    return float((1 + extreme.sum()) / (1 + DRAWS))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the chance of any false finding in the family is at most what one is compared with."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[int(place)]))
        adjusted[place] = running
    return [float(value) for value in adjusted]


def compare(off: Scores, on: Scores) -> dict[str, dict[str, Any]]:
    """Compare VAR on with VAR off, by question type and overall.

    Accuracy of a type is tested by McNemar's exact test. Overall, the five questions of a picture hang together, so
    signs are flipped for whole pictures. The loss is tested by sign flips throughout.

    Returns
    -------
    dict
        By type and "all": accuracy and loss, off and on; their differences (on minus off) with interval and p-value;
        questions; answers mended and broken; and the share of answers in which any most likely token changed.
    """
    columns: dict[str, slice] = {kind: slice(place, place + 1) for place, kind in enumerate(QUESTION_TYPES)}
    columns[OVERALL] = slice(None)
    result = {}
    for name, chosen in columns.items():
        before, after = off.right[:, chosen], on.right[:, chosen]
        by_picture = after.mean(axis=1) - before.mean(axis=1)
        loss_by_picture = on.loss[:, chosen].mean(axis=1) - off.loss[:, chosen].mean(axis=1)
        result[name] = {
            "questions": int(before.size),
            "accuracy_off": float(before.mean()),
            "accuracy_on": float(after.mean()),
            "accuracy_difference": float(by_picture.mean()),
            "accuracy_interval": interval(by_picture),
            "accuracy_p": sign_flip(by_picture) if name == OVERALL else mcnemar(before[:, 0], after[:, 0]),
            "mended": int((after & ~before).sum()),
            "broken": int((before & ~after).sum()),
            "changed": float((off.said[:, chosen] != on.said[:, chosen]).any(axis=-1).mean()),
            "loss_off": float(off.loss[:, chosen].mean()),
            "loss_on": float(on.loss[:, chosen].mean()),
            "loss_difference": float(loss_by_picture.mean()),
            "loss_interval": interval(loss_by_picture),
            "loss_p": sign_flip(loss_by_picture),
        }
    return result


def adjust(cells: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Add Holm-adjusted p-values to comparisons: over the cells overall, and over cells and types by type."""
    for kinds in ((OVERALL,), QUESTION_TYPES):
        for measure in ("accuracy", "loss"):
            family = [cell[kind] for cell in cells for kind in kinds]
            for entry, value in zip(family, holm([entry[f"{measure}_p"] for entry in family]), strict=True):
                entry[f"{measure}_p_holm"] = value
