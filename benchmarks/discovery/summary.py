"""From the rows of the stores to the figures of the benchmark; the package's docstring says what they are."""

import platform
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

import sinkscope
from benchmarks.discovery.scoring import TokenScore, accuracy, rate
from benchmarks.known_truth import Case
from benchmarks.rules import RULES
from sinkscope.discovery import DiscoverySettings

OWN = "sinkscope"
METHODS = [OWN] + [rule.name for rule in RULES if rule.dims is not None]
STABLE = 0.95
FACTORS: dict[str, Callable[[Case], list[str]]] = {
    "width": lambda case: [str(case.width)],
    "dims": lambda case: [str(case.dims)],
    "tokens": lambda case: [_bin(case.samples * case.length, (500, 1000, 2000, 5000, 20_000))],
    "tail": lambda case: [f"t{case.tail}" if case.tail else "normal"],
    "magnitude": lambda case: ["share" if case.magnitude < 0 else _bin(case.magnitude, (50, 200, 1000, 5000))],
    "onset": lambda case: [case.onset],
    "sizes": lambda case: [case.sizes],
    "triggers": lambda case: ["+".join(case.triggers)],
    "attention": lambda case: ["measured" if case.attention else "none"],
    "rounding": lambda case: ["bfloat16" if case.bfloat16 else "float32"],
    "decoys": lambda case: [str(len(case.decoys))],
}
SINKS_ONLY = {"dims", "magnitude", "onset", "sizes", "triggers"}


def _bin(value: float, edges: tuple[int, ...]) -> str:
    below = [edge for edge in edges if edge <= value]
    above = [edge for edge in edges if edge > value]
    return f"{below[-1] if below else 0}-{above[0] if above else ''}"


def exact(row: dict[str, Any], method: str) -> bool | None:
    """Whether a method names exactly the planted dimensions; None where it has no answer."""
    if method == OWN:
        return bool(row["found"] == row["truth"])
    dims = row["rules"][method].dims
    return None if dims is None else bool(dims == row["truth"])


def accuracies(rows: Iterable[dict[str, Any]], key: Callable[[Case], Iterable[str]]) -> dict[str, Any]:
    """Exact-set accuracy of all methods by groups."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for name in key(row["case"]):
            groups[name].append(row)
    return {
        name: {method: accuracy([exact(row, method) for row in members]) for method in METHODS}
        for name, members in groups.items()
    }


def false_discovery(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Stores without sinks in which a method names some, and false dimensions among all that sinkscope names."""
    free = [row for row in rows if row["case"].free]
    result: dict[str, Any] = {}
    for method in METHODS:
        named = [row["found"] if method == OWN else row["rules"][method].dims for row in free]
        named = [dims for dims in named if dims is not None]
        result[method] = rate(sum(bool(dims) for dims in named), len(named))
    strata: dict[str, list[bool]] = defaultdict(list)
    for row in free:
        strata[row["case"].stratum].append(bool(row["found"]))
    result["by_stratum"] = {name: rate(sum(hits), len(hits)) for name, hits in strata.items()}
    false = sum(len(set(row["found"]) - set(row["truth"])) for row in rows)
    result["dimensions"] = rate(false, sum(len(row["found"]) for row in rows))
    return result


def token_scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums of the token counts over separable stores with sinks."""
    scores: dict[str, TokenScore] = defaultdict(TokenScore)
    for row in rows:
        if row["case"].free or not row["separable"]:
            continue
        found = {OWN: row["tokens"]} | {
            rule.name: row["rules"][rule.name].tokens for rule in RULES if row["rules"][rule.name].dims is not None
        }
        for method, score in found.items():
            for name, value in vars(score).items():
                setattr(scores[method], name, getattr(scores[method], name) + value)
    result = {}
    for method, score in scores.items():
        hits = score.sinks - score.missed
        result[method] = vars(score) | {
            "error": float(f"{(score.missed + score.false) / max(score.tokens, 1):.4g}"),
            "f1": float(f"{2 * hits / max(2 * hits + score.missed + score.false, 1):.5g}"),
        }
    return result


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that results from the rows; see the top of the module."""
    separable = [row for row in rows if row["separable"]]
    with_sinks = [row for row in separable if not row["case"].free]
    steady = [row for row in with_sinks if (row["stability"] or 0.0) >= STABLE]
    settings = DiscoverySettings()

    def groups(case: Case) -> list[str]:
        return ["", "free" if case.free else "sinks", case.stratum]

    result: dict[str, Any] = {
        "settings": settings.to_dict(),
        "versions": {
            "sinkscope": sinkscope.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
        "accuracy": {"separable": accuracies(separable, groups), "all": accuracies(rows, groups)},
        "factors": {
            name: accuracies(with_sinks if name in SINKS_ONLY else separable, of) for name, of in FACTORS.items()
        },
        "false_discovery": false_discovery(rows),
        "tokens": token_scores(rows),
        "stability": rate(len(steady), len(with_sinks)),
        "extent": rate(sum(row["extent"][0] for row in with_sinks), sum(row["extent"][1] for row in with_sinks)),
    }
    wrong = [row for row in rows if not exact(row, OWN)]
    result["failures"] = [failure(row) for row in wrong if row["separable"]]
    result["unseparable"] = [failure(row) for row in wrong if not row["separable"]]
    result["stores"] = [
        [
            row["case"].seed,
            row["case"].stratum,
            row["separable"],
            list(row["truth"]),
            list(row["found"]),
            row["verdict"],
            row["stability"],
            row["tokens"].row,
            list(row["extent"]),
            row["seconds"],
            {method: exact(row, method) for method in METHODS[1:]},
        ]
        for row in rows
    ]
    return result


def failure(row: dict[str, Any]) -> dict[str, Any]:
    """A store that sinkscope gets wrong, so that anyone can rebuild it."""
    return {
        "truth": list(row["truth"]),
        "found": list(row["found"]),
        "reason": row["reason"],
        "measures": row["measures"]
        and {name: None if np.isnan(value) else float(f"{value:.4g}") for name, value in vars(row["measures"]).items()},
        "factors": row["case"].to_dict(),
    }


def bars(result: dict[str, Any]) -> dict[str, Any]:
    """The figures that discovery is held to."""
    separable = result["accuracy"]["separable"]
    own = separable.get("", {}).get(OWN)
    free = result["false_discovery"][OWN]
    error = result["tokens"].get(OWN, {}).get("error")
    behind = [
        f"{stratum}: {method}"
        for stratum, by_method in separable.items()
        for method, score in by_method.items()
        if method != OWN and score and score["rate"] > by_method[OWN]["rate"]
    ]
    quantile = result["settings"]["false_discovery_rate"]
    listed = {
        "exact set on separable stores": (own and own["rate"], ">=", 0.99),
        "rules that are better in a stratum": (len(behind), "<=", 0),
        "sink-free stores with a dimension": (free["rate"], "<=", quantile),
        "token error on separable stores": (error, "<=", 0.001),
        "stores stable in 95 % of bootstraps": (result["stability"]["rate"], ">=", 0.95),
    }
    if result.get("speed"):
        listed["seconds for the large run"] = (result["speed"]["seconds"], "<=", 30)
        listed["GiB for the large run"] = (result["speed"]["peak_gib"], "<=", 2)
    return {
        name: {"value": value, "bound": f"{sign} {bound}", "met": _met(value, sign, bound)}
        for name, (value, sign, bound) in listed.items()
    }


def _met(value: float | None, sign: str, bound: float) -> bool | None:
    if value is None:
        return None
    return value >= bound if sign == ">=" else value <= bound
