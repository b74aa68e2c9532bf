"""The dimensions of a profile: what is said of sink dimensions and of those that are not."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.dimensions import Candidate
from sinkscope.discovery.evidence import triggers
from sinkscope.discovery.find import Findings
from sinkscope.profile.schema import RejectedDimension, SinkDimension
from sinkscope.significance import runs

LISTED = 16
"""At most so many rejected dimensions of a kind are listed."""


def sink_dimensions(found: Findings) -> list[SinkDimension]:
    """The sink dimensions, those with the most energy first."""
    return sorted(
        (_sink_dimension(found, sink) for sink in found.sinks), key=lambda entry: -(entry.energy_share or 0.0)
    )


def _sink_dimension(found: Findings, sink: Candidate) -> SinkDimension:
    """Summary over the tokens that the bands of this dimension flag."""
    best: dict[str, Any] = {}
    union = np.zeros(len(found.run.tokens), bool)
    drawn: list[float] = []
    for entry in found.bands:
        if sink.dim not in entry.band.dims:
            continue
        for layer, mask in entry.flagged.items():
            # In a band of several dimensions, a token belongs to this one where it is fairly large beside the largest.
            rows = np.flatnonzero(mask)
            value = found.magnitudes.values(layer, sink.dim, rows)
            leading = found.magnitudes.leading(layer, entry.band.dims, rows)
            own = value**2 >= found.settings.companion_ratio * leading**2
            if not own.any():
                continue
            value, rows = value[own], rows[own]
            union[rows] = True
            share = value**2 / (found.width * found.magnitudes.rms(layer)[rows] ** 2)
            if found.link is not None and found.link.measured(layer):
                judged = np.isin(found.link.token, rows)
                if judged.any():
                    drawn.append(float(found.link.drawn[judged, layer].mean()))
            usual = max(found.peaks.typical[layer, sink.dim], 1e-30)
            if np.median(share) > best.get("energy_share", -1.0):
                best = {
                    "energy_share": min(float(np.median(share)), 1.0),
                    "typical_value": float(np.median(value)),
                    "phi": float(np.median(np.sqrt(np.minimum(share, 1.0) * found.width))),
                    "contrast": float(np.median(np.abs(value)) / usual),
                    "sign": int(np.sign(np.median(np.sign(value)))),
                }
    kinds, examples, visual = triggers(union, found.run.tokens, found.run.token_text)
    layers = np.flatnonzero(sink.core[: found.num_layers])
    return SinkDimension.model_validate(
        best
        | {
            "dim": sink.dim,
            "p_value": sink.p_value,
            "stability": sink.stability,
            "first_layer": int(layers[0]),
            "last_layer": int(layers[-1]),
            "triggers": kinds,
            "trigger_tokens": examples,
            "fires_on_visual": visual > 0,
            "attention_drawn": float(np.mean(drawn)) if drawn else None,
        }
    )


def companions(found: Findings) -> list[RejectedDimension]:
    """Dimensions that rise on the same sink tokens, with too little energy to count."""
    sinks = {sink.dim for sink in found.sinks}
    layers = {
        candidate.dim: candidate.linked for candidate in found.candidates if candidate.linked.any()
    } | found.accompanying
    highest: dict[int, float] = {}
    for entry in found.bands:
        for layer, mask in entry.flagged.items():
            for dim in (dim for dim, where in layers.items() if where[layer] and dim not in sinks and mask.any()):
                energy = found.magnitudes.values(layer, dim, mask) ** 2
                ratio = np.median(energy / found.magnitudes.joint(layer, [dim, *entry.band.dims], mask) ** 2)
                highest[dim] = max(highest.get(dim, ratio), ratio)
    listed = [
        (highest[dim], _rejected(dim, where, f"rises on sink tokens, with at most {highest[dim]:.2g} of their energy"))
        for dim, where in layers.items()
        if dim in highest
    ]
    return [entry for _, entry in sorted(listed, key=lambda pair: -pair[0])][:LISTED]


def content_dimensions(found: Findings) -> list[RejectedDimension]:
    """Dimensions that are massive on few tokens which draw no attention."""
    listed = []
    for candidate in found.content:
        drawn = drawn_by_content(found, candidate)
        said = "none of them was measured" if drawn is None else f"these draw {drawn:.3f} of the attention"
        listed.append(_rejected(candidate.dim, candidate.massive, f"large on few tokens, but {said}"))
    return listed[:LISTED]


def drawn_by_content(found: Findings, candidate: Candidate) -> float | None:
    """Mean attention that the tokens with the highest peaks draw, in the layer of most energy of those that were
    measured; None where no such token was."""
    assert found.link is not None
    massive = np.flatnonzero(candidate.massive).tolist()
    layers = [layer for layer in massive if found.link.measured(_entered(found, layer))]
    if not layers:
        return None
    layer = max(layers, key=lambda layer: float(found.peaks.scores[0].energy[layer, candidate.dim]))
    top = np.isin(found.link.token, found.peaks.token[layer, candidate.dim])
    return float(found.link.drawn[top, _entered(found, layer)].mean()) if top.any() else None


def _entered(found: Findings, layer: int) -> int:
    """The layer that a hidden state enters: for the last one, the layer that it leaves."""
    return min(layer, found.num_layers - 1)


def outlier_dimensions(found: Findings) -> list[RejectedDimension]:
    """All-token outliers that are no sink dimensions."""
    sinks = {sink.dim for sink in found.sinks}
    return [
        _rejected(dim, active, "large on most tokens") for dim, active in found.outliers.items() if dim not in sinks
    ][:LISTED]


def _rejected(dim: int, where: NDArray[np.bool_], reason: str) -> RejectedDimension:
    layers = runs(where)
    return RejectedDimension(dim=dim, reason=reason, first_layer=layers[0][0], last_layer=layers[-1][1])
