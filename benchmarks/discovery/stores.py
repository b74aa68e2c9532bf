"""Build the stores, discover in them, apply the published rules, and score all of it."""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from benchmarks.discovery.scoring import TokenScore, activations, extent_error, profile_tokens, rule_outcome
from benchmarks.known_truth import Case, Truth, build
from benchmarks.rules import RULES
from sinkscope.capture.synthetic import write_synthetic
from sinkscope.discovery import discover


def write_store(truth: Truth, path: Path) -> Path:
    """The run file of a built case."""
    tokens = truth.tokens
    return write_synthetic(
        path,
        truth.states,
        tokens.sample,
        tokens.position,
        tokens.kind,
        tokens.id,
        {identifier: tokens.text[identifier] for identifier in np.unique(tokens.id).tolist()},
        truth.drawn,
        seed=truth.case.seed,
    )


def run_case(case: Case) -> dict[str, Any]:
    """Build a store, discover, apply the rules, score all of them."""
    started = time.perf_counter()
    truth = build(case)
    row: dict[str, Any] = {
        "case": case,
        "separable": truth.separable,
        "measures": truth.measures,
        "truth": truth.dims,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = write_store(truth, Path(folder) / "run.h5")
        try:
            profile = discover(path)
        except Exception as error:
            # A crash is a failure like any other; the benchmark goes on.
            row |= {"found": (-1,), "verdict": "error", "reason": f"{type(error).__name__}: {error}"}
            row |= {"stability": None, "tokens": TokenScore(), "extent": (0, 0)}
        else:
            row |= {
                "found": tuple(sorted(profile.dims)),
                "verdict": profile.verdict,
                "reason": profile.reason,
                "stability": min((entry.stability or 0.0 for entry in profile.sink_dimensions), default=None),
                "tokens": profile_tokens(truth, profile),
                "extent": extent_error(truth, profile),
            }
    row["own_seconds"] = round(time.perf_counter() - started, 2)
    data = activations(truth)
    judged = truth.separable and not case.free
    row["rules"] = {rule.name: rule_outcome(rule, data, truth, tokens=judged) for rule in RULES}
    row["seconds"] = round(time.perf_counter() - started, 2)
    return row


def run_cases(chosen: list[Case], workers: int, progress: Progress) -> list[dict[str, Any]]:
    """The rows of all cases, in their order."""
    torch.set_num_threads(1)
    bar = progress.add_task("stores", total=len(chosen))
    if workers == 1:
        rows = []
        for case in chosen:
            progress.update(bar, description=case.stratum)
            rows.append(run_case(case))
            progress.advance(bar)
        return rows
    with ProcessPoolExecutor(workers) as pool:
        futures = [pool.submit(run_case, case) for case in chosen]
        for future in futures:
            future.add_done_callback(lambda _: progress.advance(bar))
        return [future.result() for future in futures]
