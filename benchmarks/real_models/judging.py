"""Sinkscope and the published rules on the same tokens of one model, layer by layer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sinkscope
from benchmarks.real_models.agreement import (
    THRESHOLDS,
    average_precision,
    bootstrap_average_precision,
    bootstrap_f1,
    count_agreement,
    covered_share,
    first_token_layers,
    interval,
    mean_over_layers,
    oracle_threshold,
    precision_at,
    precision_recall_f1,
    resampled_pieces,
)
from benchmarks.real_models.captured import Captured
from benchmarks.rules import RULES, Activations, phi_tokens
from sinkscope.profile import Profile
from sinkscope.profile.score import joint_magnitude, phi, threshold_at

OWN, OWN_PHI, PUBLISHED, ORACLE = "sinkscope", "phi, tau of the profile", "phi, tau = 20", "best threshold in hindsight"
TAU = 20.0
BOOTSTRAPS = 400
RECALLS = np.linspace(0.0, 1.0, 41)


@dataclass
class LayerView:
    """What every method says about all tokens entering one layer.

    Attributes
    ----------
    layer : int
    flagged : dict of str to bool [T]
        Sink tokens by method; the oracle, which needs labels, is added later.
    score : dict of str to float [T]
        Of the methods that put a threshold on a score.
    threshold : float or None
        Of the profile, on its own score; None where the profile has no rule for the layer.
    massive : bool [T]
        Whether the token's largest coordinate is one of the sink dimensions that act in this layer.
    """

    layer: int
    flagged: dict[str, NDArray[np.bool_]]
    score: dict[str, NDArray[np.floating]]
    threshold: float | None
    massive: NDArray[np.bool_]


@dataclass
class Judged:
    """The results of one model; `views` are kept for the tokens of the disagreements."""

    layers: list[int]
    views: list[LayerView]
    rules: dict[str, Any]
    variants: dict[str, Any] = field(default_factory=dict)
    oracle: dict[tuple[str, int], float] = field(default_factory=dict)


def activations(data: Captured) -> Activations:
    """The captured tokens as the rules take them."""
    measured = None if np.isnan(data.drawn).all() else data.drawn
    return Activations(data.states, data.piece, data.position, data.visual, measured)


def judged_layers(profile: Profile, drawn: NDArray[np.float32]) -> list[int]:
    """The layers of the profile's bands in which attention was measured; all such layers where it has no bands."""
    measured = np.flatnonzero(~np.isnan(drawn).all(axis=0)).tolist()
    return [layer for layer in measured if not profile.bands or profile.band_at(layer) is not None]


def judge(data: Captured, profile: Profile, bootstraps: int = BOOTSTRAPS) -> Judged:
    """Apply all methods to the captured tokens and compare them with attention sinks."""
    shown = activations(data)
    dims = {rule.name: rule.dims(shown) for rule in RULES if rule.dims is not None}
    layers = judged_layers(profile, data.drawn)
    views = list(_views(data, shown, profile, layers, dims))
    result = Judged(layers, views, {name: {"dims": found[:64], "found": len(found)} for name, found in dims.items()})
    bands = [(band.first_layer, band.last_layer) for band in profile.bands]
    for variant in data.variants:
        rows = data.chosen(variant)
        first = first_token_layers(data.drawn[rows], data.position[rows] == 0)
        share = covered_share(first, bands)
        result.variants[variant] = {
            "pieces": sum(piece.variant == variant for piece in data.pieces),
            "tokens": int(rows.sum()),
            "judged": int((rows & data.judged).sum()),
            "first_token_layers": first,
            "uncovered_layers": [layer for layer in first if not covered_share([layer], bands)],
            "coverage": number(share),
            "thresholds": {
                f"{threshold:g}": _compare(data, result, variant, threshold, bootstraps) for threshold in THRESHOLDS
            },
        }
    return result


def _views(
    data: Captured, shown: Activations, profile: Profile, layers: list[int], rule_dims: dict[str, list[int]]
) -> Iterator[LayerView]:
    for layer in layers:
        states = torch.from_numpy(np.array(data.states[layer]))
        flagged = {OWN: sinkscope.sink_mask(states, profile, layer).numpy()}
        score: dict[str, NDArray[np.floating]] = {}
        threshold = None
        massive = np.zeros(len(states), bool)
        rule = threshold_at(profile, layer)
        if rule is not None:
            dims, scale, threshold = rule
            by_phi = phi(states, dims).numpy()
            score[OWN] = by_phi if scale is None else joint_magnitude(states, dims).numpy() / np.float32(scale)
            flagged[OWN_PHI] = sinkscope.sink_mask(states, profile, layer, score="phi").numpy()
            flagged[PUBLISHED] = by_phi >= TAU
            score[OWN_PHI] = score[PUBLISHED] = by_phi
            massive = np.isin(states.abs().argmax(dim=1).numpy(), dims)
        for published in RULES:
            own = rule_dims.get(published.name, [])
            if published.tokens is None:
                continue
            flagged[published.name] = published.tokens(shown, layer, own)
            if published.tokens is phi_tokens and own:
                score[published.name] = phi(states, own).numpy()
        yield LayerView(layer, flagged, score, threshold, massive)


def _compare(data: Captured, result: Judged, variant: str, threshold: float, bootstraps: int) -> dict[str, Any]:
    """All methods against the attention sinks of one variant."""
    rows = data.chosen(variant) & data.judged
    numbers, piece = np.unique(data.piece[rows], return_inverse=True)
    times = resampled_pieces(len(numbers), bootstraps)
    labels = [np.nan_to_num(data.drawn[rows, layer]) > threshold for layer in result.layers]
    has_sinks = np.array([label.any() for label in labels], bool)
    summary: dict[str, Any] = {
        "layers": result.layers,
        "sinks": [int(label.sum()) for label in labels],
        "layers_with_sinks": int(has_sinks.sum()),
        "methods": {},
    }
    flagged = {
        name: [view.flagged[name][rows] for view in result.views]
        for name in (result.views[0].flagged if result.views else {})
    }
    scores = {
        name: [view.score[name][rows] for view in result.views]
        for name in (result.views[0].score if result.views else {})
    }
    if OWN in scores:
        found = [oracle_threshold(score, label) for score, label in zip(scores[OWN], labels, strict=True)]
        flagged[ORACLE] = [score >= best.threshold for score, best in zip(scores[OWN], found, strict=True)]
        scores[ORACLE] = scores[OWN]
        summary["oracle_over_profile"] = [
            number(best.threshold / view.threshold) if view.threshold else None
            for view, best in zip(result.views, found, strict=True)
        ]
        if threshold == THRESHOLDS[0]:
            result.oracle |= {
                (variant, layer): best.threshold for layer, best in zip(result.layers, found, strict=True)
            }
    for name, masks in flagged.items():
        counts = np.array(
            [count_agreement(label, mask, piece, len(numbers)) for label, mask in zip(labels, masks, strict=True)]
        ).reshape(len(labels), len(numbers), 3)
        precision, recall, f1 = precision_recall_f1(counts.sum(axis=1))
        entry: dict[str, Any] = {
            "precision": number(mean_over_layers(precision, has_sinks)),
            "recall": number(mean_over_layers(recall, has_sinks)),
            "f1": number(mean_over_layers(f1, has_sinks)),
            "f1_interval": numbers_of(interval(bootstrap_f1(counts, times))),
            "average_precision": None,
            "average_precision_interval": None,
            "layers": {
                "flagged": counts[..., 1].sum(axis=1).tolist(),
                "both": counts[..., 0].sum(axis=1).tolist(),
                "precision": numbers_of(precision),
                "recall": numbers_of(recall),
                "f1": numbers_of(f1),
            },
        }
        if name in scores:
            values = [average_precision(score, label) for score, label in zip(scores[name], labels, strict=True)]
            entry["average_precision"] = number(mean_over_layers(values, has_sinks))
            entry["layers"]["average_precision"] = numbers_of(values)
            if has_sinks.any():
                curves = [
                    precision_at(score, label, RECALLS) for score, label in zip(scores[name], labels, strict=True)
                ]
                entry["precision_at_recall"] = numbers_of(
                    np.mean([curves[i] for i in np.flatnonzero(has_sinks)], axis=0)
                )
            if name in (OWN, PUBLISHED):
                resampled = bootstrap_average_precision(scores[name], labels, piece, times)
                entry["average_precision_interval"] = numbers_of(interval(resampled))
        summary["methods"][name] = entry
    return summary


def number(value: float) -> float | None:
    """Four significant digits, and null for what JSON cannot hold."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def numbers_of(values: Any) -> list[float | None] | None:
    """`number` of every value; None stays None."""
    return None if values is None else [number(float(value)) for value in values]
