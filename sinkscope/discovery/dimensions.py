"""Which dimensions are sink dimensions, and in which layers.

peaks ──> p-values per layer ──> Simes over layers, Benjamini-Hochberg over dimensions ──> massive dimensions
      ──> persistence ──> link to attention ──> energy beside the leading dimension ──> sink | companion | content
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.attention import AttentionLink
from sinkscope.discovery.null import Floats, benjamini_hochberg, runs, simes, tail_p_values
from sinkscope.discovery.peaks import Peaks, PeakScores
from sinkscope.discovery.settings import DiscoverySettings
from sinkscope.discovery.split import best_split, gap_split
from sinkscope.discovery.tokens import TokenMagnitudes

LEAST_PRESENCE = 0.25
"""Share of a layer's attention sinks on which a dimension must be among the largest coordinates to be looked at."""


@dataclass
class Candidate:
    """A massive dimension on its way through the conditions.

    Attributes
    ----------
    dim : int
    p_value : float
        Adjusted over dimensions and layers.
    massive : bool [L+1]
        Hidden states in which it is massive on few tokens and persists.
    linked : bool [L+1]
        Those of them in which its tokens draw attention; all of `massive` where attention was not measured.
    core : bool [L+1]
        Those in which it is, besides, a leading dimension of its tokens.
    link_f1 : float64 [L+1]
        Agreement of its massive tokens with attention sinks; NaN where attention was not measured.
    energy_ratio : float64 [L+1]
        Its energy on its own tokens over the leading linked dimension's; NaN where it is not linked.
    stability : float
        Share of bootstraps that find it again.
    """

    dim: int
    p_value: float
    massive: NDArray[np.bool_]
    linked: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    core: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    link_f1: Floats = field(default_factory=lambda: np.zeros(0))
    energy_ratio: Floats = field(default_factory=lambda: np.zeros(0))
    stability: float = 1.0


@dataclass(frozen=True)
class Massive:
    """Which of the dimensions that count are massive.

    Attributes
    ----------
    dims : int64 [n]
        At false-discovery rate q over the dimensions that count, most significant first.
    adjusted : float64 [D]
        Adjusted p-values; 1 for dimensions that do not count.
    active : bool [L+1, D]
        Hidden states in which a dimension is massive, at false-discovery rate q over its own.
    p_values : float64 [L+1, D]
        Unadjusted.
    """

    dims: NDArray[np.int64]
    adjusted: Floats
    active: NDArray[np.bool_]
    p_values: Floats


def peak_p_values(scores: PeakScores) -> Floats:
    """P-value of every dimension and layer, float64 [L+1, D]: the smaller of the two views', doubled (Bonferroni)."""
    return np.minimum(2 * np.minimum(tail_p_values(scores.energy), tail_p_values(scores.contrast)), 1.0)


def massive_dimensions(
    scores: PeakScores, effect_share: float, settings: DiscoverySettings, counted: NDArray[np.bool_] | None = None
) -> Massive:
    """Dimensions with a peak that ordinary dimensions do not reach, and that holds a fair share of its tokens' energy.

    Parameters
    ----------
    scores : PeakScores
        Of all dimensions.
    effect_share : float
        The least energy share, among the token's dimensions that are not fellow leading ones, of a massive peak.
    settings : DiscoverySettings
        `false_discovery_rate` is used.
    counted : bool [D], optional
        The dimensions that passed an independent filter; all by default.
    """
    p_values = peak_p_values(scores)
    counted = np.ones(p_values.shape[1], bool) if counted is None else counted
    adjusted = np.ones(p_values.shape[1])
    if counted.any():
        adjusted[counted] = benjamini_hochberg(simes(p_values, axis=0)[counted])
    active = benjamini_hochberg(p_values, axis=0) <= settings.false_discovery_rate
    active &= scores.energy >= np.log(effect_share / (1 - effect_share))
    found = np.flatnonzero((adjusted <= settings.false_discovery_rate) & active.any(0))
    return Massive(found[np.argsort(adjusted[found], kind="stable")], adjusted, active, p_values)


@dataclass(frozen=True)
class Persistence:
    """Where, and how long, a dimension must persist.

    Attributes
    ----------
    minimum : int
        Over so many consecutive hidden states.
    attended : int64 [A] or None
        Hybrids only: the layers that hold softmax attention. Where recurrent layers stand between them a spike may
        exist right before attention only, so that hidden states consecutive among these count as consecutive too.
    """

    minimum: int
    attended: NDArray[np.int64] | None = None

    def held(self, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """`active` [L+1] without its stretches that are too short."""
        kept = np.zeros_like(active)
        for order in self.orders(len(active)):
            for first, last in runs(active[order]):
                if last - first + 1 >= self.minimum:
                    kept[order[first : last + 1]] = True
        return kept

    def orders(self, depth: int) -> list[NDArray[np.int64]]:
        """The sequences of hidden states along which to look."""
        return [np.arange(depth)] + ([] if self.attended is None else [self.attended])


def link_to_attention(link: AttentionLink, magnitudes: TokenMagnitudes, depth: int, width: int) -> Floats:
    """F1 of every dimension's largest tokens against the attention sinks, float64 [L+1, D].

    The split of the tokens by abs(x[d]) is the best one for the dimension. A dimension that is not among the few
    largest coordinates of at least a quarter of a layer's attention sinks cannot reach an F1 of 2/3 and counts as
    0, like every dimension of a layer without attention sinks; NaN where no attention was measured.
    """
    agreement = np.full((depth, width), np.nan)
    for layer in range(depth):
        if not link.measured(layer):
            continue
        agreement[layer] = 0.0
        sinks = link.token[link.sink[:, layer]]
        if not len(sinks):
            continue
        kept, _ = magnitudes.largest_dims(layer)
        dims, counts = np.unique(kept[sinks], return_counts=True)
        for dim in dims[counts >= LEAST_PRESENCE * len(sinks)].tolist():
            split = best_split(np.abs(magnitudes.values(layer, dim))[link.token], link.sink[:, layer])
            agreement[layer, dim] = split.f1 if split else 0.0
    return agreement


def find_candidates(
    peaks: Peaks,
    magnitudes: TokenMagnitudes,
    massive: Massive,
    settings: DiscoverySettings,
    persistence: Persistence,
) -> tuple[list[Candidate], list[int]]:
    """Massive dimensions that persist over layers on the same tokens, and those that do not."""
    lasting: list[Candidate] = []
    fleeting: list[int] = []
    for dim in massive.dims.tolist():
        held = np.zeros(len(massive.active), bool)
        for order in persistence.orders(len(held)):
            for stretch in _without_rotation(massive.active[:, dim], order, dim, peaks, magnitudes, settings):
                if len(stretch) >= persistence.minimum:
                    held[stretch] = True
        if held.any():
            lasting.append(Candidate(dim, float(massive.adjusted[dim]), held))
        else:
            fleeting.append(dim)
    return lasting, fleeting


def _without_rotation(
    active: NDArray[np.bool_],
    order: NDArray[np.int64],
    dim: int,
    peaks: Peaks,
    magnitudes: TokenMagnitudes,
    settings: DiscoverySettings,
) -> list[list[int]]:
    """Stretches of layers, consecutive in `order`, over which the same tokens stay large in the dimension."""
    stretches: list[list[int]] = []
    for first, last in runs(active[order]):
        layers = order[first : last + 1].tolist()
        stretch = [layers[0]]
        for earlier, layer in pairwise(layers):
            before, top = peaks.token[earlier, dim], peaks.token[layer, dim]
            now = np.abs(magnitudes.values(layer, dim)[before[before >= 0]])
            usual = np.median(np.abs(magnitudes.values(layer, dim)[top[top >= 0]]))
            # Half of the way, on a log scale, from the ordinary magnitude to the peak.
            if np.mean(now >= np.sqrt(usual * min(peaks.typical[layer, dim], usual))) < settings.kept_tokens:
                stretches.append(stretch)
                stretch = []
            stretch.append(layer)
        stretches.append(stretch)
    return stretches


def drawn_by_top(dim: int, link: AttentionLink, peaks: Peaks, depth: int) -> Floats:
    """Median attention drawn by the dimension's top tokens, float64 [L+1]; NaN where none of them was measured."""
    drawn = np.full(depth, np.nan)
    for layer in range(depth):
        top = np.isin(link.token, peaks.token[layer, dim])
        if link.measured(layer) and top.any():
            drawn[layer] = np.median(link.drawn[top, layer])
    return drawn


def judge_link(
    candidates: list[Candidate],
    agreement: Floats | None,
    link: AttentionLink | None,
    peaks: Peaks,
    p_values: Floats,
    settings: DiscoverySettings,
    persistence: Persistence,
) -> None:
    """Fill in `linked` and `link_f1`: in which layers do a candidate's massive tokens draw the attention?

    Layers next to linked ones are added where the dimension passes the link and is large there too: within a found
    dimension its extent is no new discovery. A layer between linked ones stays where the dimension is massive and its
    tokens draw a fair part of what makes an attention sink, or where there is no attention to draw. At the ends of a
    stretch, layers in which the agreement is nearer to the least that is asked for than to what is usual in the
    stretch are let go: there the sinks only form or fade.
    """
    for candidate in candidates:
        if agreement is None or link is None:
            candidate.link_f1 = np.full(len(p_values), np.nan)
            candidate.linked = candidate.massive.copy()
            continue
        candidate.link_f1 = agreement[:, candidate.dim]
        strong = np.nan_to_num(candidate.link_f1) >= settings.link_f1
        linked = candidate.massive & strong
        reach = (candidate.massive | (p_values[:, candidate.dim] <= settings.extension_p_value)) & strong
        for first, last in runs(reach):
            if linked[first : last + 1].any():
                linked[first : last + 1] = True
        fair = drawn_by_top(candidate.dim, link, peaks, len(p_values)) >= settings.fair_part * settings.attention_sink
        fair |= ~np.array([link.measured(layer) for layer in range(len(p_values))])
        for first, last in runs((candidate.massive & fair) | linked):
            inside = np.flatnonzero(linked[first : last + 1])
            if len(inside):
                linked[first + inside[0] : first + inside[-1] + 1] = True
        candidate.linked = persistence.held(_without_faded_ends(linked, candidate.link_f1, settings.link_f1))


def _without_faded_ends(linked: NDArray[np.bool_], agreement: Floats, least: float) -> NDArray[np.bool_]:
    kept = linked.copy()
    for first, last in runs(linked):
        inside = agreement[first : last + 1]
        clear = np.flatnonzero(inside >= (np.nanmedian(inside) + least) / 2)
        kept[first : first + clear[0]] = False
        kept[first + clear[-1] + 1 : last + 1] = False
    return kept


def judge_energy(
    candidates: list[Candidate],
    link: AttentionLink | None,
    magnitudes: TokenMagnitudes,
    settings: DiscoverySettings,
    persistence: Persistence,
) -> None:
    """Fill in `core` and `energy_ratio`.

    A core dimension holds, on its own sink tokens, at least `companion_ratio` of the energy of the leading linked
    dimension; below that it rides along: a companion.
    """
    depth = len(candidates[0].linked) if candidates else 0
    for candidate in candidates:
        candidate.energy_ratio = np.full(depth, np.nan)
    for layer in range(depth):
        present = [candidate for candidate in candidates if candidate.linked[layer]]
        if not present:
            continue
        energy = {candidate.dim: magnitudes.values(layer, candidate.dim) ** 2 for candidate in present}
        leading = np.max(list(energy.values()), axis=0)
        for candidate in present:
            own = energy[candidate.dim]
            if link is not None and link.measured(layer):
                split = best_split(own[link.token], link.sink[:, layer])
            else:
                split = gap_split(own)
            sinks = own >= split.high if split else own >= own.max()
            candidate.energy_ratio[layer] = float(np.median(own[sinks] / leading[sinks]))
    for candidate in candidates:
        with np.errstate(invalid="ignore"):
            core = candidate.linked & (candidate.energy_ratio >= settings.companion_ratio)
        candidate.core = persistence.held(core)


def measure_stability(
    candidates: list[Candidate],
    peaks: Peaks,
    weights: NDArray[np.int64],
    settings: DiscoverySettings,
    persistence: Persistence,
    effect_share: float,
    counted: NDArray[np.bool_] | None,
) -> None:
    """Fill in `stability`: the share of bootstraps over samples in which the dimension is massive and persists."""
    if not candidates:
        return
    found = np.zeros(len(candidates))
    for weight in weights:
        again = massive_dimensions(peaks.resampled(weight), effect_share, settings, counted)
        for index, candidate in enumerate(candidates):
            lasts = persistence.held(again.active[:, candidate.dim]).any()
            found[index] += candidate.dim in again.dims and bool(lasts)
    for index, candidate in enumerate(candidates):
        candidate.stability = float(found[index] / len(weights))


def all_token_outliers(peaks: Peaks, settings: DiscoverySettings) -> dict[int, NDArray[np.bool_]]:
    """Dimensions that are large on most tokens, with the hidden states [L+1] in which they are."""
    p_values = tail_p_values(np.log(np.maximum(peaks.median_share, 1e-12)))
    found = benjamini_hochberg(simes(p_values, axis=0)) <= settings.false_discovery_rate
    active = benjamini_hochberg(p_values, axis=0) <= settings.false_discovery_rate
    return {dim: active[:, dim] for dim in np.flatnonzero(found & active.any(0)).tolist()}
