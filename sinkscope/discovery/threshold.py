"""Layer bands, and the thresholds that tell sink tokens from the others in each.

Thresholds are sought on the joint magnitude of the band's dimensions over the layer's typical one, which does not
saturate, and then given back as phi, whose range ends at sqrt(D). A threshold is the median of the best thresholds over
resamplings of the samples: steadier than the best one, and it comes with its interval.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.attention import AttentionLink
from sinkscope.discovery.dimensions import Candidate
from sinkscope.discovery.pooled import (
    Scored,
    agreement_thresholds,
    count_labelled,
    downwards,
    gap_thresholds,
    resampled_thresholds,
)
from sinkscope.discovery.settings import DiscoverySettings
from sinkscope.discovery.split import Split, pooled_split, split_at
from sinkscope.discovery.tokens import ByLayer, TokenMagnitudes
from sinkscope.profile.schema import Band, LayerScale, Tau
from sinkscope.significance import Floats, runs

CONFIDENCE = 0.95
"""Of the bootstrap intervals."""


@dataclass
class BandTokens:
    """A band with the sink tokens that its thresholds flag, bool [N], layer by layer."""

    band: Band
    flagged: Mapping[int, NDArray[np.bool_]]


@dataclass(frozen=True)
class Threshold:
    """A threshold with its bootstrap interval."""

    value: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, found: Floats) -> "Threshold | None":
        """Median and interval of resampled thresholds; None where hardly any resampling has one."""
        known = found[np.isfinite(found)]
        if len(known) <= len(found) / 2:
            return None
        outside = 50 * (1 - CONFIDENCE)
        low, middle, high = np.exp(np.percentile(np.log(known), [outside, 50, 100 - outside]))
        return cls(float(middle), (float(low), float(high)))


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
    massive_from: Floats,
    scale: Mapping[int, float],
    sample: NDArray[np.integer],
    weights: NDArray[np.int64],
    settings: DiscoverySettings,
    rarest: int,
) -> BandTokens:
    """Thresholds of one band.

    Parameters
    ----------
    first, last, dims
        The band.
    link : AttentionLink or None
        With it thresholds agree best with the attention sinks among massive tokens; without it they lie in the widest
        gap.
    magnitudes : TokenMagnitudes
    massive_from : float64 [L+1, D]
        From which magnitude on a dimension is massive.
    scale : mapping of layer to float
        Typical joint magnitude of the dims in each layer.
    sample : integers [N]
        Sample of every token.
    weights : int64 [B, samples]
        Resamplings of the samples.
    settings : DiscoverySettings
        `few_sinks`, `separated_f1` and `separated_gap` are used.
    rarest : int
        Where the gap decides, at least so many tokens are sinks.
    """
    layers = range(first, last + 1)
    scores = ByLayer(layers, lambda layer: magnitudes.joint(layer, dims) / scale[layer])
    label: dict[int, NDArray[np.bool_]] = {}
    of_judged: dict[int, Floats] = {}
    if link is not None:
        for layer in filter(link.measured, layers):
            # What draws attention without massive activation is not for these dimensions to find.
            massive = [np.abs(magnitudes.judged_values(layer, dim)) >= massive_from[layer, dim] for dim in dims]
            label[layer] = link.sink[:, layer] & np.any(massive, axis=0)
            of_judged[layer] = magnitudes.judged_joint(layer, dims) / scale[layer]
    of: NDArray[np.integer] = sample
    judged: Mapping[int, Floats] = scores
    if link is not None and any(sinks.any() for sinks in label.values()):
        of, judged = sample[link.token], of_judged
    else:
        label = {}
    pooled = _pooled(judged, label or None, of, weights, rarest)
    own: dict[int, Threshold] = {}
    for layer in layers:
        found = None
        if layer in label and label[layer].sum() >= settings.few_sinks:
            found = Threshold.of(resampled_thresholds(judged[layer], label[layer], of, weights))
        elif not label:
            found = Threshold.of(resampled_thresholds(judged[layer], None, of, weights, rarest))
        own[layer] = found or pooled
    flagged = ByLayer(layers, lambda layer: magnitudes.reaching(layer, dims, scale[layer], own[layer].value))
    splits = [
        split_at(score, label.get(layer, score >= own[layer].value), own[layer].value)
        for layer, score in judged.items()
    ]
    whole = pooled_split(((score, score >= pooled.value) for score in judged.values()), pooled.value)
    phi = ByLayer(layers, lambda layer: magnitudes.phi(layer, dims))
    tau_phi, phi_split = phi_threshold(phi, flagged, sample, weights)
    separated = (
        np.mean([split.f1 for split in splits]) >= settings.separated_f1
        and np.median([split.gap for split in splits]) >= settings.separated_gap
    )
    band = Band(
        first_layer=first,
        last_layer=last,
        dims=list(dims),
        tau_phi=tau_phi.value if tau_phi else None,
        tau_phi_interval=(phi_split.low, phi_split.high) if phi_split else None,
        tau_phi_bootstrap=tau_phi.interval if tau_phi else None,
        scale=float(np.exp(np.mean([np.log(scale[layer]) for layer in layers]))),
        tau_score=pooled.value,
        tau_score_interval=(min(whole.low, pooled.value), max(whole.high, pooled.value)),
        tau_score_bootstrap=pooled.interval,
        quality="separated" if separated else "overlapping",
        layers=[
            LayerScale(
                layer=layer, scale=scale[layer], tau_score=own[layer].value, tau_score_bootstrap=own[layer].interval
            )
            for layer in layers
        ],
    )
    return BandTokens(band, flagged)


def overall_tau(
    bands: list[BandTokens],
    magnitudes: TokenMagnitudes,
    sample: NDArray[np.integer],
    weights: NDArray[np.int64],
    width: int,
) -> Tau | None:
    """One tau on phi for the whole backbone: the split of all bands' tokens that agrees best with the flagged ones."""
    if not bands:
        return None
    band_of = {layer: entry for entry in bands for layer in entry.flagged}
    phi = ByLayer(list(band_of), lambda layer: magnitudes.phi(layer, band_of[layer].band.dims))
    flagged = ByLayer(list(band_of), lambda layer: band_of[layer].flagged[layer])
    tau, split = phi_threshold(phi, flagged, sample, weights)
    if tau is None or split is None:
        return None
    return Tau(
        phi=tau.value,
        phi_interval=(split.low, split.high),
        phi_bootstrap=tau.interval,
        energy_share=min(tau.value**2 / width, 1.0),
        quality="separated" if split.f1 >= 1 - 1e-9 else "overlapping",
    )


def phi_threshold(
    phi: Mapping[int, Floats],
    flagged: Mapping[int, NDArray[np.bool_]],
    sample: NDArray[np.integer],
    weights: NDArray[np.int64],
) -> tuple[Threshold | None, Split | None]:
    """The threshold on phi that flags the same tokens best, and the split that it makes.

    Where no token of another kind lies between, every threshold of the split's interval flags the same tokens.
    """
    labelled, lowest = np.zeros(weights.shape[1], np.int64), np.inf
    for layer, scores in phi.items():
        labels = flagged[layer]
        labelled += np.bincount(sample[labels], minlength=len(labelled))
        lowest = min(lowest, float(scores[labels].min(initial=np.inf)))
    total = int(labelled.sum())
    if not total:
        return None, None

    def parts() -> Iterator[Scored]:
        return (Scored(scores, flagged[layer], sample) for layer, scores in phi.items())

    # Tokens far below can change no split; without them the resamplings cost little.
    others = max(1000, 4 * total)
    near = _near(downwards(parts, block=total + others + 1), lowest, others)
    tau = Threshold.of(agreement_thresholds(near, labelled, weights))
    if tau is None:
        return None, None
    split = pooled_split(((scores, flagged[layer]) for layer, scores in phi.items()), tau.value)
    return Threshold(min(tau.value, split.high), tau.interval), split


def _near(blocks: Iterable[Scored], lowest: float, others: int) -> Iterator[Scored]:
    """Of scores that come downwards those down to `lowest`, and to so many that are not labelled."""
    seen, last = 0, -np.inf
    for block in blocks:
        counted = seen + np.cumsum(~block.label)
        place = int(np.searchsorted(counted, others))
        if last == -np.inf and place < len(counted):
            last = min(lowest, float(block.score[place]))
        seen = int(counted[-1])
        wanted = block.score >= last
        yield block.take(wanted)
        if not wanted[-1]:
            return


def _pooled(
    scores: Mapping[int, Floats],
    label: Mapping[int, NDArray[np.bool_]] | None,
    sample: NDArray[np.integer],
    weights: NDArray[np.int64],
    rarest: int,
) -> Threshold:
    """One threshold for all layers of a band."""
    if label is None:
        nothing = np.zeros(len(sample), bool)
        found = gap_thresholds(
            lambda: (Scored(score, nothing, sample) for score in scores.values()),
            len(sample) * len(scores),
            weights,
            rarest * len(scores),
        )
    else:
        parts = [Scored(score, label[layer], sample) for layer, score in scores.items()]
        found = agreement_thresholds(downwards(lambda: parts), count_labelled(parts, weights.shape[1]), weights)
    threshold = Threshold.of(found)
    if threshold is None:
        # All scores equal: nothing separates, and the threshold sits just above them.
        highest = max(float(score.max()) for score in scores.values())
        return Threshold(2 * highest, (highest, 4 * highest))
    return threshold
