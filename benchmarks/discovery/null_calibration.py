"""Are the p-values of ordinary dimensions valid? Empirical against nominal levels, on stores without sinks or decoys.

The result, ``calibration`` in benchmarks/results/discovery.json::

    levels    nominal levels, descending
    groups    [{width, tail ("normal" or "t3", "t4", ...), stores, p_values, observed: p-values at or below each level,
               ratio: observed rate over the level, families: stores in which the smallest Benjamini-Hochberg-adjusted
               p-value over dimensions, Simes over layers, is at or below q = 0.01}]
    all       the same over all groups

A p-value is valid where ratios do not exceed 1; ratios below 1 say that it is conservative. p-values of a dimension's
layers are dependent, so a group's ratios scatter more than its number of p-values suggests.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks.known_truth import Case, build
from sinkscope.capture.synthetic import write_synthetic
from sinkscope.discovery.dimensions import peak_p_values
from sinkscope.discovery.peaks import measure_peaks
from sinkscope.discovery.settings import DiscoverySettings
from sinkscope.significance import benjamini_hochberg, simes
from sinkscope.store.reader import RunReader

LEVELS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
Q = 0.01
WIDTHS: dict[int, tuple[int, int, int]] = {64: (40, 24, 8), 256: (30, 20, 8), 1024: (10, 16, 5), 4096: (5, 10, 4)}
"""Stores, samples and layers by width."""
TAILS = (0, 5, 3)


def calibration_cases() -> list[Case]:
    """Sink-free stores without decoys: every width with every tail."""
    listed = []
    for width, (stores, samples, layers) in WIDTHS.items():
        for tail in TAILS:
            for place in range(stores):
                generator = np.random.default_rng([7, width, tail, place])
                listed.append(
                    Case(
                        seed=10_000_000 + 1000 * width + 100 * tail + place,
                        stratum="calibration",
                        width=width,
                        layers=layers,
                        samples=samples,
                        length=72,
                        tail=tail,
                        spread=float(generator.uniform(0.3, 0.8)),
                        growth=float(np.exp(generator.uniform(0.4, 3.5))),
                        attention=False,
                        bos=bool(generator.random() < 0.5),
                    )
                )
    return listed


def store_p_values(case: Case) -> NDArray[np.float64]:
    """p-values of all dimensions in all hidden states of a case, float64 [L+1, D]."""
    truth = build(case)
    with tempfile.TemporaryDirectory() as folder:
        path = write_synthetic(Path(folder) / "run.h5", truth.states, truth.tokens.sample, seed=case.seed)
        with RunReader(path) as run:
            return peak_p_values(measure_peaks(run, DiscoverySettings()).scores)


def calibrate(progress: Progress, listed: list[Case] | None = None) -> dict[str, Any]:
    """Run all calibration stores."""
    listed = calibration_cases() if listed is None else listed
    bar = progress.add_task("null p-values", total=len(listed))
    found: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    for case in listed:
        found.setdefault((case.width, case.tail), []).append(store_p_values(case))
        progress.advance(bar)
    groups = [
        {"width": width, "tail": f"t{tail}" if tail else "normal"} | group(values)
        for (width, tail), values in found.items()
    ]
    return {
        "levels": list(LEVELS),
        "groups": groups,
        "all": group([one for values in found.values() for one in values]),
    }


def group(values: list[NDArray[np.float64]]) -> dict[str, Any]:
    """Counts and ratios of a group of stores."""
    together = np.concatenate([one.ravel() for one in values])
    observed = [int((together <= level).sum()) for level in LEVELS]
    ratios = [count / (level * together.size) for count, level in zip(observed, LEVELS, strict=True)]
    return {
        "stores": len(values),
        "p_values": int(together.size),
        "observed": observed,
        "ratio": [float(f"{ratio:.3g}") for ratio in ratios],
        "families": sum(bool(benjamini_hochberg(simes(one, axis=0)).min() <= Q) for one in values),
    }
