"""Layer bands, and the thresholds that tell sink tokens from the others in each.

Thresholds are sought on the joint magnitude of the band's dimensions over the layer's typical one, which does not
saturate, and then given back as phi, whose range ends at sqrt(D).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.attention import AttentionLink
from sinkscope.discovery.dimensions import Candidate
from sinkscope.discovery.null import Floats, runs
from sinkscope.discovery.settings import DiscoverySettings
from sinkscope.discovery.split import Split, best_split, best_splits, gap_split
from sinkscope.discovery.tokens import TokenMagnitudes
from sinkscope.profile.schema import Band, LayerScale, Tau

FEW_SINKS = 5
"""With fewer attention sinks in a layer its own threshold is noise, and the band's serves."""
SEPARATED_F1 = 0.95
SEPARATED_GAP = 0.2


@dataclass
class BandTokens:
    """A band with the sink tokens that its thresholds flag, layer by layer."""

    band: Band
    flagged: dict[int, NDArray[np.bool_]]


def layer_bands(sinks: list[Candidate], num_layers: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """Consecutive layers 0..L-1 with the same sink dimensions: (first, last, dims), dims in the order of `sinks`."""
    acting = [tuple(sink.dim for sink in sinks if sink.core[layer]) for layer in range(num_layers)]
    bands = []
    for dims in dict.fromkeys(acting):
        if dims:
            same = np.array([dims == other for other in acting])
            bands += [(first, last, dims) for first, last in runs(same)]
    return sorted(bands)


def calibrate_band(
    first: int,
    last: int,
    dims: tuple[int, ...],
    link: AttentionLink | None,
    magnitudes: TokenMagnitudes,
    scale: dict[int, float],
    settings: DiscoverySettings,
    rarest: int,
) -> BandTokens:
    """Thresholds of one band.

    Parameters
    ----------
    first, last, dims
        The band.
    link : AttentionLink or None
        With it thresholds agree best with attention sinks; without it they lie in the widest gap.
    magnitudes : TokenMagnitudes
    scale : dict of layer to float
        Typical joint magnitude of the dims in each layer.
    settings : DiscoverySettings
    rarest : int
        Where the gap decides, at least so many tokens are sinks.
    """
    layers = range(first, last + 1)
    scores = {layer: magnitudes.joint(layer, dims) / scale[layer] for layer in layers}
    label = {layer: link.sink[:, layer] for layer in layers if link is not None and link.measured(layer)}
    if link is not None and any(sinks.any() for sinks in label.values()):
        pooled = best_split(
            np.concatenate([scores[layer][link.token] for layer in label]),
            np.concatenate(list(label.values())),
        )
    else:
        label = {}
        pooled = gap_split(np.concatenate(list(scores.values())), rarest * len(layers))
    if pooled is None:
        # All scores equal: nothing separates, and the threshold sits just above them.
        highest = max(float(score.max()) for score in scores.values())
        pooled = Split(highest, 2 * highest, 0.0, 0)
    thresholds: dict[int, float] = {}
    for layer in layers:
        own: list[Split] = []
        if layer in label and label[layer].sum() >= FEW_SINKS and link is not None:
            own = best_splits(scores[layer][link.token], label[layer])
        elif not label:
            gap = gap_split(scores[layer], rarest)
            own = [gap] if gap else []
        thresholds[layer] = _near(own, pooled.threshold)
    flagged = {layer: scores[layer] >= thresholds[layer] for layer in layers}
    phi_split = _phi_split({layer: magnitudes.phi(layer, dims) for layer in layers}, flagged)
    separated = pooled.f1 >= SEPARATED_F1 and pooled.gap >= SEPARATED_GAP
    band = Band(
        first_layer=first,
        last_layer=last,
        dims=list(dims),
        tau_phi=phi_split.threshold if phi_split else None,
        tau_phi_interval=(phi_split.low, phi_split.high) if phi_split else None,
        scale=float(np.exp(np.mean([np.log(scale[layer]) for layer in layers]))),
        tau_score=pooled.threshold,
        tau_score_interval=(pooled.low, pooled.high),
        quality="separated" if separated else "overlapping",
        layers=[LayerScale(layer=layer, scale=scale[layer], tau_score=thresholds[layer]) for layer in layers],
    )
    return BandTokens(band, flagged)


def overall_tau(bands: list[BandTokens], magnitudes: TokenMagnitudes, width: int) -> Tau | None:
    """One tau on phi for the whole backbone: the split of all bands' tokens that agrees best with the flagged ones."""
    if not bands:
        return None
    phi = {layer: magnitudes.phi(layer, entry.band.dims) for entry in bands for layer in entry.flagged}
    flagged = {layer: mask for entry in bands for layer, mask in entry.flagged.items()}
    split = _phi_split(phi, flagged)
    if split is None:
        return None
    clean = split.f1 >= 1 - 1e-9
    return Tau(
        phi=split.threshold,
        phi_interval=(split.low, split.high),
        energy_share=min(split.threshold**2 / width, 1.0),
        quality="separated" if clean else "overlapping",
    )


def _near(splits: list[Split], value: float) -> float:
    """The threshold closest to `value` that one of the equally good splits allows.

    Inside the winning interval the value is kept off the edges by a tenth of its width where the interval is wide.
    """
    if not splits:
        return value
    best = min(splits, key=lambda split: abs(np.log(split.nearest(value) / value)))
    margin = min(0.1 * best.gap, 0.25)
    low, high = best.low * np.exp(margin), best.high * np.exp(-margin)
    return float(min(max(value, low), high))


def _phi_split(phi: dict[int, Floats], flagged: dict[int, NDArray[np.bool_]]) -> Split | None:
    return best_split(np.concatenate(list(phi.values())), np.concatenate([flagged[layer] for layer in phi]))
