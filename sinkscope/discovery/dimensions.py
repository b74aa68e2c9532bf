"""Which dimensions are sink dimensions, and in which layers.

peaks ──> p-values per layer ──> Simes over layers, Benjamini-Hochberg over dimensions ──> massive dimensions
      ──> persistence ──> link to attention ──> energy beside the leading dimension ──> sink | companion | content
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.attention import AttentionLink
from sinkscope.discovery.peaks import Peaks, PeakScores
from sinkscope.discovery.settings import DiscoverySettings
from sinkscope.discovery.split import best_split
from sinkscope.discovery.tokens import TokenMagnitudes
from sinkscope.significance import Floats, benjamini_hochberg, runs, simes, tail_p_values

LEAST_PRESENCE = 0.25
"""Share of a layer's attention sinks on which a companion is among the largest coordinates."""


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
    energy_ratio: Floats = field(default_factory=lambda: np.zeros(0))
    stability: float = 1.0


@dataclass(frozen=True)
class Massive:
    """Which dimensions are massive.

    Attributes
    ----------
    dims : int64 [n]
        At false-discovery rate q over the dimensions that are tested, most significant first.
    adjusted : float64 [D]
        Adjusted p-values; 1 for dimensions that are not tested.
    active : bool [L+1, D]
        Hidden states in which a dimension is massive, at false-discovery rate q over its own.
    p_values : float64 [L+1, D]
        Unadjusted.
    """

    dims: NDArray[np.int64]
    adjusted: Floats
    active: NDArray[np.bool_]
    p_values: Floats


def peak_p_values(scores: Sequence[PeakScores], gaps: Floats | None = None) -> Floats:
    """P-value of every dimension and layer, float64 [L+1, D]: the smallest of all views', times their number
    (Bonferroni). With the gaps of the dimensions no smaller than that of the gaps: both must be out of the ordinary."""
    views = [tail_p_values(view) for score in scores for view in score]
    p_values = np.minimum(len(views) * np.min(views, axis=0), 1.0)
    if gaps is None:
        return p_values
    return np.maximum(p_values, np.minimum(len(gaps) * tail_p_values(gaps).min(axis=0), 1.0))


def massive_dimensions(
    scores: Sequence[PeakScores],
    effect_share: float,
    settings: DiscoverySettings,
    counted: NDArray[np.bool_] | None = None,
    gaps: Floats | None = None,
) -> Massive:
    """Dimensions with a peak that ordinary dimensions do not reach, and that holds a fair share of its tokens' energy.

    Parameters
    ----------
    scores : sequence of PeakScores
        Of all dimensions; the first decides on the energy.
    effect_share : float
        The least energy share, among the token's dimensions that are not fellow leading ones, of a massive peak.
    settings : DiscoverySettings
        `false_discovery_rate` is used.
    counted : bool [D], optional
        The dimensions that are tested; all by default.
    gaps : float64 [R, L+1, D], optional
        With it, two populations are asked for in every massive dimension.

    Notes
    -----
    Testing only dimensions that passed a filter keeps the error rate where the filter says nothing about the p-values
    of ordinary dimensions: Bourgon, Gentleman and Huber, PNAS 107 (2010).
    """
    p_values = peak_p_values(scores, gaps)
    counted = np.ones(p_values.shape[1], bool) if counted is None else counted
    adjusted = np.ones(p_values.shape[1])
    if counted.any():
        adjusted[counted] = benjamini_hochberg(simes(p_values, axis=0)[counted])
    active = benjamini_hochberg(p_values, axis=0) <= settings.false_discovery_rate
    active &= scores[0].energy >= np.log(effect_share / (1 - effect_share))
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
    attended_minimum : int
        Over so many of these: as in a model of so few layers.
    """

    minimum: int
    attended: NDArray[np.int64] | None = None
    attended_minimum: int = 2

    def held(self, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """`active` [L+1] without its stretches that are too short."""
        kept = np.zeros_like(active)
        for order, minimum in self.orders(len(active)):
            for first, last in runs(active[order]):
                if last - first + 1 >= minimum:
                    kept[order[first : last + 1]] = True
        return kept

    def orders(self, depth: int) -> list[tuple[NDArray[np.int64], int]]:
        """The sequences of hidden states along which to look, and how long it must last in each."""
        everywhere = [(np.arange(depth), self.minimum)]
        return everywhere if self.attended is None else [*everywhere, (self.attended, self.attended_minimum)]


class Drawing(NamedTuple):
    """Attention drawn by the massive tokens of every dimension; NaN where too few of them were measured.

    Attributes
    ----------
    share : float64 [L+1, D]
        Share of them that are attention sinks.
    mean : float64 [L+1, D]
        Mean attention that they draw.
    """

    share: Floats
    mean: Floats


def drawn_by_massive(link: AttentionLink, magnitudes: TokenMagnitudes, peaks: Peaks, least: int) -> Drawing:
    """Do the tokens on which a dimension is massive draw the attention?

    What else draws attention is not asked: other dimensions may have sinks of their own.

    Parameters
    ----------
    link, magnitudes, peaks
        Of the run.
    least : int
        With fewer massive tokens among the measured ones, a layer says nothing about a dimension.
    """
    depth, width = peaks.massive_from.shape
    share, mean = np.full((depth, width), np.nan), np.full((depth, width), np.nan)
    for layer in range(depth):
        if not link.measured(layer):
            continue
        dims, values = magnitudes.judged_coordinates(layer)
        massive = np.abs(values) >= peaks.massive_from[layer][dims]
        token, place = np.nonzero(massive)
        of = dims[token, place]
        count = np.bincount(of, minlength=width)
        with np.errstate(invalid="ignore"):
            enough = np.where(count >= least, count, np.nan)
            share[layer] = np.bincount(of, link.sink[token, layer], width) / enough
            mean[layer] = np.bincount(of, link.drawn[token, layer], width) / enough
    return Drawing(share, mean)


def accompanying_layers(
    link: AttentionLink, magnitudes: TokenMagnitudes, depth: int, settings: DiscoverySettings
) -> dict[int, NDArray[np.bool_]]:
    """Dimensions whose largest tokens are the attention sinks, massive or not, and the hidden states [L+1] of that.

    At the split of the tokens by abs(x[d]) that agrees best with the attention sinks, F1 is at least `companion_f1`.
    Looked at are those among the few largest coordinates of at least a quarter of a layer's attention sinks.
    """
    found: dict[int, NDArray[np.bool_]] = {}
    for layer in range(depth):
        if not link.measured(layer) or not link.sink[:, layer].any():
            continue
        kept, _ = magnitudes.judged_coordinates(layer)
        dims, counts = np.unique(kept[link.sink[:, layer]], return_counts=True)
        for dim in dims[counts >= LEAST_PRESENCE * link.sink[:, layer].sum()].tolist():
            split = best_split(np.abs(magnitudes.judged_values(layer, dim)), link.sink[:, layer])
            if split is not None and split.f1 >= settings.companion_f1:
                found.setdefault(dim, np.zeros(depth, bool))[layer] = True
    return found


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
    orders = persistence.orders(len(massive.active))
    rotated = {
        pair: _rotated(massive, pair, peaks, magnitudes, settings)
        for pair in sorted({pair for order, _ in orders for pair in pairwise(order.tolist())}, key=lambda pair: pair[1])
    }
    for dim in massive.dims.tolist():
        held = np.zeros(len(massive.active), bool)
        for order, minimum in orders:
            for stretch in _without_rotation(massive.active[:, dim], order, dim, rotated):
                if len(stretch) >= minimum:
                    held[stretch] = True
        if held.any():
            lasting.append(Candidate(dim, float(massive.adjusted[dim]), held))
        else:
            fleeting.append(dim)
    return lasting, fleeting


def _rotated(
    massive: Massive, pair: tuple[int, int], peaks: Peaks, magnitudes: TokenMagnitudes, settings: DiscoverySettings
) -> set[int]:
    """The dimensions that are massive in both of two layers, but in the later one on other tokens."""
    earlier, layer = pair
    found = set()
    for dim in massive.dims[massive.active[earlier, massive.dims] & massive.active[layer, massive.dims]].tolist():
        before = peaks.token[earlier, dim, : peaks.used]
        now = np.abs(magnitudes.values(layer, dim, before[before >= 0])) >= peaks.massive_from[layer, dim]
        if not len(now) or now.mean() < settings.kept_tokens:
            found.add(dim)
    return found


def _without_rotation(
    active: NDArray[np.bool_], order: NDArray[np.int64], dim: int, rotated: Mapping[tuple[int, int], set[int]]
) -> list[list[int]]:
    """Stretches of layers, consecutive in `order`, over which the same tokens stay large in the dimension."""
    stretches: list[list[int]] = []
    for first, last in runs(active[order]):
        layers = order[first : last + 1].tolist()
        stretch = [layers[0]]
        for pair in pairwise(layers):
            if dim in rotated[pair]:
                stretches.append(stretch)
                stretch = []
            stretch.append(pair[1])
        stretches.append(stretch)
    return stretches


def judge_link(
    candidates: list[Candidate],
    drawing: Drawing | None,
    attended: NDArray[np.bool_],
    p_values: Floats,
    settings: DiscoverySettings,
    persistence: Persistence,
) -> None:
    """Fill in `linked`: in which layers do a candidate's massive tokens draw the attention?

    Most of them must be attention sinks. Layers next to linked ones are added where the dimension passes the link and
    is large there too: within a found dimension its extent is no new discovery. A layer between linked ones stays where
    the dimension is massive and its tokens draw a fair part of what makes an attention sink, or where there is no
    attention to draw: `attended` bool [L+1] is False there.
    """
    for candidate in candidates:
        if drawing is None:
            candidate.linked = candidate.massive.copy()
            continue
        strong = np.nan_to_num(drawing.share[:, candidate.dim]) >= settings.link_share
        large = candidate.massive | (p_values[:, candidate.dim] <= settings.extension_p_value)
        linked = candidate.massive & strong
        for first, last in runs(large & strong):
            if linked[first : last + 1].any():
                linked[first : last + 1] = True
        fair = np.nan_to_num(drawing.mean[:, candidate.dim]) >= settings.fair_part * settings.attention_sink
        for first, last in runs((candidate.massive & (fair | ~attended)) | linked):
            inside = np.flatnonzero(linked[first : last + 1])
            if len(inside):
                linked[first + inside[0] : first + inside[-1] + 1] = True
        candidate.linked = persistence.held(linked)


def judge_energy(
    candidates: list[Candidate],
    peaks: Peaks,
    magnitudes: TokenMagnitudes,
    settings: DiscoverySettings,
    persistence: Persistence,
) -> None:
    """Fill in `core` and `energy_ratio`.

    A core dimension holds, on its own sink tokens, at least `companion_ratio` of the energy of the leading linked
    dimension; below that it rides along: a companion. The energy that counts is that of the excess over the
    dimension's ordinary magnitude, so that an all-token outlier is not core by what it holds everywhere.
    """
    depth = len(candidates[0].linked) if candidates else 0
    for candidate in candidates:
        candidate.energy_ratio = np.full(depth, np.nan)
    for layer in range(depth):
        present = {candidate.dim: candidate for candidate in candidates if candidate.linked[layer]}
        if not present:
            continue
        # One dimension after another: their number has no bound, and they have as many values as there are tokens.
        excess = (np.abs(magnitudes.values(layer, dim)) - peaks.ordinary[layer, dim] for dim in present)
        leading = reduce(np.maximum, (np.maximum(value, 0.0) ** 2 for value in excess))
        for dim, candidate in present.items():
            value = np.abs(magnitudes.values(layer, dim))
            sinks = value >= peaks.massive_from[layer, dim]
            own = np.maximum(value[sinks] - peaks.ordinary[layer, dim], 0.0) ** 2
            ratio = own / np.maximum(leading[sinks], np.finfo(np.float64).tiny)
            candidate.energy_ratio[layer] = float(np.median(ratio)) if len(ratio) else 0.0
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
        again = massive_dimensions(peaks.resampled(weight), effect_share, settings, counted, peaks.gaps)
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
