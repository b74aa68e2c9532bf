"""The numbers behind the pictures, read from a run: scores per band, and magnitudes and attention layer by layer.

Largest magnitudes are stored exactly for every token, but only the few largest of each; ordinary values come from the
sampled hidden states. Nothing here looks at a model.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sinkscope.errors import InputError
from sinkscope.profile import Band, Profile, Tau
from sinkscope.store.layout import KIND_SPECIAL, KIND_TEXT, KIND_VISUAL
from sinkscope.store.reader import RunReader

MINIMUM_LATER_QUERIES = 16

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """The scores of some tokens: name, score float64 [n], and weight [n], how many tokens each stands for."""

    name: str
    score: Floats
    weight: Floats


@dataclass(frozen=True)
class BandScores:
    """The sink score over the tokens of all layers of a band: each token counts once a layer.

    Attributes
    ----------
    first_layer, last_layer : int
        The band.
    score_name : str
        "score" (joint magnitude over the layer's typical one) or "phi".
    tau : float
        The band's threshold; a layer's own may differ.
    interval : (float, float) or None
        Within which every threshold gives the same sink tokens.
    quality : str
        "separated", "overlapping" or "unknown".
    populations : list of Population
    """

    first_layer: int
    last_layer: int
    score_name: str
    tau: float
    interval: tuple[float, float] | None
    quality: str
    populations: list[Population] = field(default_factory=list)


@dataclass(frozen=True)
class LayerSeries:
    """Layer by layer, what sink tokens have and other tokens have not. NaN where it is not known.

    Attributes
    ----------
    dims : tuple of int
    on_sinks, on_others : float64 [dims, L+1]
        Median magnitude of each sink dimension entering each layer.
    attention_sinks, attention_others : float64 [L] or None
        Mean attention that a token draws from later queries; None where it was not measured.
    bands : list of (int, int)
        First and last layer of each band.
    """

    dims: tuple[int, ...]
    on_sinks: Floats
    on_others: Floats
    attention_sinks: Floats | None
    attention_others: Floats | None
    bands: list[tuple[int, int]]


def band_scores(run: RunReader, profile: Profile) -> list[BandScores]:
    """Scores of all tokens in all layers of each band, by population.

    Where a token's sink dimensions are not among its stored largest magnitudes its score is not known. Such tokens
    are represented by those of their kind in the seeded sample, each with the weight of the tokens that it stands for.

    Raises
    ------
    InputError
        If the run is of another backbone.
    """
    _check(run, profile)
    members = _populations(run)
    results = []
    for band in _bands(profile):
        pieces: dict[str, list[Population]] = {name: [] for name in members}
        calibrated, tau = False, None
        for layer in range(band.first_layer, band.last_layer + 1):
            rule = _rule(profile, layer)
            if rule is None:
                continue
            dims, scale, threshold = rule
            calibrated = scale is not None
            tau = band.tau_score if calibrated else threshold
            listed, sampled = _listed_score(run, layer, dims, scale), _sampled_score(run, layer, dims, scale)
            for name, mask in members.items():
                pieces[name].append(_population(name, mask, listed, sampled))
        if tau is None:
            continue
        overall = profile.tau or Tau()
        interval = band.tau_score_interval if calibrated else band.tau_phi_interval or overall.phi_interval
        results.append(
            BandScores(
                band.first_layer,
                band.last_layer,
                "score" if calibrated else "phi",
                tau,
                interval,
                overall.quality if band.quality == "unknown" else band.quality,
                [whole for parts in pieces.values() if len((whole := _joined(parts)).score)],
            )
        )
    return results


def layer_series(run: RunReader, profile: Profile) -> LayerSeries:
    """Magnitude of the sink dimensions, and attention drawn, on sink tokens and on the others, in every layer.

    In a layer outside all bands the sink tokens of the nearest band are followed.

    Raises
    ------
    InputError
        If the run is of another backbone.
    """
    _check(run, profile)
    depth, dims = profile.backbone.num_layers, profile.dims
    on_sinks, on_others = (np.full((len(dims), depth + 1), np.nan) for _ in range(2))
    attention = run.attention
    drawn_sinks, drawn_others = (np.full(depth, np.nan) for _ in range(2))
    masks = _sink_masks(run, profile)
    for layer in range(depth + 1):
        sinks = masks[layer]
        listed_dim, listed_value, rms = run.largest(layer)
        rows, states = run.sampled(layer)
        for index, dim in enumerate(dims):
            here = np.where(listed_dim == dim, np.abs(listed_value), 0.0).max(1)
            on_sinks[index, layer] = _censored_median(here[sinks])
            ordinary = ~sinks[rows]
            magnitude = np.abs(states[:, dim]) * rms[rows]
            if ordinary.any():
                on_others[index, layer] = np.median(magnitude[ordinary])
            if np.isnan(on_sinks[index, layer]) and (~ordinary).any():
                on_sinks[index, layer] = np.median(magnitude[~ordinary])
        if attention is not None and layer < depth:
            usable = np.isfinite(attention.drawn[:, layer]) & (attention.later_queries >= MINIMUM_LATER_QUERIES)
            for chosen, target in ((sinks, drawn_sinks), (~sinks, drawn_others)):
                values = attention.drawn[usable & chosen[attention.token], layer]
                if len(values):
                    target[layer] = float(values.mean())
    measured = attention is not None
    bands = [(band.first_layer, band.last_layer) for band in _bands(profile)]
    return LayerSeries(
        dims, on_sinks, on_others, drawn_sinks if measured else None, drawn_others if measured else None, bands
    )


def _check(run: RunReader, profile: Profile) -> None:
    attributes, backbone = run.attributes, profile.backbone
    if (attributes.hidden_size, attributes.num_layers) != (backbone.hidden_size, backbone.num_layers):
        raise InputError(
            f"the run of {attributes.model_id} has {attributes.num_layers} layers of width {attributes.hidden_size}, "
            f"profile {profile.name} is for {backbone.num_layers} of {backbone.hidden_size}; use its own profile"
        )


def _bands(profile: Profile) -> list[Band]:
    """The profile's bands, or one that spans the layers of its dimensions."""
    if profile.bands or not profile.dims:
        return sorted(profile.bands, key=lambda band: band.first_layer)
    first = min(entry.first_layer or 0 for entry in profile.sink_dimensions)
    last = max(
        profile.backbone.num_layers if entry.last_layer is None else entry.last_layer
        for entry in profile.sink_dimensions
    )
    return [Band(first_layer=first, last_layer=max(first, last), dims=list(profile.dims))]


def _rule(profile: Profile, layer: int) -> tuple[list[int], float | None, float] | None:
    # Imported here because it brings torch, which the other pictures do without.
    from sinkscope.profile.score import threshold_at

    return threshold_at(profile, layer)


def _score(magnitudes: Floats, rms: Floats, scale: float | None) -> Floats:
    """The score from the magnitudes [n, dims] of the sink dimensions: phi without a scale, else the joint magnitude."""
    if scale is None:
        return magnitudes.max(1) / np.maximum(rms, np.finfo(np.float32).tiny)
    return np.sqrt((magnitudes**2).sum(1)) / scale


def _listed_score(run: RunReader, layer: int, dims: list[int], scale: float | None) -> tuple[Floats, NDArray[np.bool_]]:
    """Score of every token, and where it is exact up to dimensions below the stored ones: where any is stored."""
    listed_dim, listed_value, rms = run.largest(layer)
    magnitudes = np.stack(
        [np.where(listed_dim == dim, np.abs(listed_value), 0.0).max(1).astype(np.float64) for dim in dims], axis=1
    )
    return _score(magnitudes, rms.astype(np.float64), scale), magnitudes.max(1) > 0


def _sampled_score(
    run: RunReader, layer: int, dims: list[int], scale: float | None
) -> tuple[NDArray[np.int64], Floats]:
    rows, states = run.sampled(layer)
    rms = run.largest(layer)[2][rows].astype(np.float64)
    return rows, _score(np.abs(states[:, dims]).astype(np.float64) * rms[:, None], rms, scale)


def _population(
    name: str,
    members: NDArray[np.bool_],
    listed: tuple[Floats, NDArray[np.bool_]],
    sampled: tuple[NDArray[np.int64], Floats],
) -> Population:
    """The members whose score is known, and sampled ones that stand for the rest."""
    score, known = listed
    rows, sampled_score = sampled
    exact, stand_ins = members & known, members[rows] & ~known[rows]
    count = int(stand_ins.sum())
    weight = int((members & ~known).sum()) / max(count, 1)
    return Population(
        name,
        np.concatenate([score[exact], sampled_score[stand_ins]]),
        np.concatenate([np.ones(int(exact.sum())), np.full(count, weight)]),
    )


def _joined(parts: list[Population]) -> Population:
    return Population(
        parts[0].name, np.concatenate([part.score for part in parts]), np.concatenate([part.weight for part in parts])
    )


def _sink_masks(run: RunReader, profile: Profile) -> list[NDArray[np.bool_]]:
    """The sink tokens of every layer, bool [N] each; outside the bands those of the nearest band's nearest layer."""
    depth = profile.backbone.num_layers
    masks: dict[int, NDArray[np.bool_]] = {}
    for layer in range(depth + 1):
        rule = _rule(profile, layer)
        if rule is not None:
            dims, scale, tau = rule
            masks[layer] = _listed_score(run, layer, dims, scale)[0] >= tau
    if not masks:
        return [np.zeros(len(run.tokens), bool)] * (depth + 1)
    known = np.array(list(masks))
    return [masks[int(known[np.argmin(np.abs(known - layer))])] for layer in range(depth + 1)]


def _censored_median(values: NDArray[np.floating]) -> float:
    """The median where unknown small values stand as 0: NaN where it would be one of those."""
    if not len(values):
        return float("nan")
    median = float(np.median(values))
    return median if np.min(np.sort(values)[(len(values) - 1) // 2 :]) > 0 else float("nan")


def _populations(run: RunReader) -> dict[str, NDArray[np.bool_]]:
    """Who the tokens are: every sample's first token, then the others by kind."""
    tokens = run.tokens
    first = tokens.position == 0
    return {
        "first token": first,
        "special": ~first & (tokens.kind == KIND_SPECIAL),
        "visual": ~first & (tokens.kind == KIND_VISUAL),
        "text": ~first & (tokens.kind == KIND_TEXT),
    }
