"""The steps of the method over one run, in order: peaks, dimensions, bands with their thresholds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.attention import AttentionLink, attended_layers, read_link
from sinkscope.discovery.dimensions import (
    Candidate,
    Persistence,
    accompanying_layers,
    all_token_outliers,
    drawn_by_massive,
    find_candidates,
    judge_energy,
    judge_link,
    massive_dimensions,
    measure_stability,
)
from sinkscope.discovery.peaks import Peaks, measure_peaks
from sinkscope.discovery.settings import DiscoverySettings
from sinkscope.discovery.threshold import BandTokens, calibrate_band, layer_bands
from sinkscope.discovery.tokens import TokenMagnitudes
from sinkscope.significance import Floats, benjamini_hochberg, simes
from sinkscope.store.reader import RunReader


@dataclass(frozen=True)
class Findings:
    """What the method found in a run.

    Attributes
    ----------
    run, settings
        What it looked at, and with which thresholds.
    link : AttentionLink or None
    unlinked : str or None
        Why there is no link.
    peaks, magnitudes, persistence
        As measured.
    weights : int64 [B, samples]
        Resamplings of the samples.
    counted : bool [D] or None
        The dimensions that were tested: those whose massive tokens draw the attention in enough layers. None, for all,
        where attention was not measured.
    effect_share : float
        What was asked of a massive peak.
    candidates : list of Candidate
        Massive dimensions that persist, judged.
    content : list of Candidate
        Dimensions that would be candidates, but their tokens draw no attention; their p-values are not adjusted.
    fleeting : list of int
        Massive dimensions that do not persist.
    sinks : list of Candidate
        The sink dimensions among the candidates.
    accompanying : dict of dimension to bool [L+1]
        Layers in which a dimension's largest tokens are the attention sinks, massive or not.
    outliers : dict of dimension to bool [L+1]
        All-token outliers.
    bands : list of BandTokens
    """

    run: RunReader
    settings: DiscoverySettings
    link: AttentionLink | None
    unlinked: str | None
    peaks: Peaks
    magnitudes: TokenMagnitudes
    persistence: Persistence
    weights: NDArray[np.int64]
    counted: NDArray[np.bool_] | None
    effect_share: float
    candidates: list[Candidate]
    content: list[Candidate]
    fleeting: list[int]
    sinks: list[Candidate]
    accompanying: dict[int, NDArray[np.bool_]]
    outliers: dict[int, NDArray[np.bool_]]
    bands: list[BandTokens]

    @property
    def num_layers(self) -> int:
        return self.run.attributes.num_layers

    @property
    def width(self) -> int:
        return self.run.attributes.hidden_size

    @property
    def num_samples(self) -> int:
        return len(np.unique(self.run.tokens.sample))


def find(run: RunReader, settings: DiscoverySettings) -> Findings:
    """Find sink dimensions, bands and thresholds in a run that holds tokens."""
    depth = run.attributes.num_layers + 1
    link, unlinked = read_link(run, settings)
    softmax = attended_layers(run, link)
    among = depth - 1 if softmax is None else len(softmax)
    persistence = Persistence(settings.run_length(depth - 1), softmax, settings.run_length(among))
    peaks = measure_peaks(run, settings, gaps=link is None)
    magnitudes = TokenMagnitudes(run, peaks.typical, np.zeros(0, np.int64) if link is None else link.token)
    drawing, counted = None, None
    accompanying: dict[int, NDArray[np.bool_]] = {}
    if link is not None:
        drawing = drawn_by_massive(link, magnitudes, peaks, settings.least_massive)
        strong = np.nan_to_num(drawing.share) >= settings.link_share
        counted = np.array([persistence.held(layers).any() for layers in strong.T])
        largest = accompanying_layers(link, magnitudes, depth, settings)
        accompanying = {dim: layers for dim, layers in largest.items() if persistence.held(layers).any()}
    effect = settings.effect_share if link is not None else settings.effect_share_without_attention
    massive = massive_dimensions(peaks.scores, effect, settings, counted, peaks.gaps)
    candidates, fleeting = find_candidates(peaks, magnitudes, massive, settings, persistence)
    attended = np.array([link is not None and link.measured(layer) for layer in range(depth)])
    judge_link(candidates, drawing, attended, massive.p_values, settings, persistence)
    judge_energy(candidates, peaks, magnitudes, settings, persistence)
    sinks = [candidate for candidate in candidates if candidate.core[: depth - 1].any()]
    weights = resamplings(int(run.tokens.sample.max()) + 1, settings)
    measure_stability(sinks, peaks, weights, settings, persistence, effect, counted)
    bands = [
        calibrate_band(
            first,
            last,
            dims,
            link,
            magnitudes,
            peaks.massive_from,
            _scales(run, magnitudes, range(first, last + 1), dims),
            run.tokens.sample,
            weights,
            settings,
            max(1, peaks.used // 2),
        )
        for first, last, dims in layer_bands(sinks, depth - 1)
    ]
    return Findings(
        run=run,
        settings=settings,
        link=link,
        unlinked=unlinked,
        peaks=peaks,
        magnitudes=magnitudes,
        persistence=persistence,
        weights=weights,
        counted=counted,
        effect_share=effect,
        candidates=candidates,
        content=_massive_without_link(massive.p_values, counted, set(accompanying), settings, persistence),
        fleeting=fleeting,
        sinks=sinks,
        accompanying=accompanying,
        outliers=all_token_outliers(peaks, settings),
        bands=bands,
    )


def resamplings(num_samples: int, settings: DiscoverySettings) -> NDArray[np.int64]:
    """How often every sample counts in every bootstrap, int64 [B, samples]."""
    drawn = np.random.default_rng(settings.seed).integers(0, num_samples, (settings.bootstraps, num_samples))
    return np.stack([np.bincount(row, minlength=num_samples) for row in drawn])


def _scales(run: RunReader, magnitudes: TokenMagnitudes, layers: range, dims: tuple[int, ...]) -> dict[int, float]:
    """Median joint magnitude over the sampled tokens, layer by layer."""
    scales = {}
    for layer in layers:
        rows, states = run.sampled(layer)
        joint = np.linalg.norm(states[:, list(dims)].astype(np.float64), axis=1)
        scales[layer] = max(float(np.median(joint * magnitudes.rms(layer)[rows])), 1e-30)
    return scales


def _massive_without_link(
    p_values: Floats,
    counted: NDArray[np.bool_] | None,
    accompanying: set[int],
    settings: DiscoverySettings,
    persistence: Persistence,
) -> list[Candidate]:
    if counted is None:
        return []
    combined = simes(p_values, axis=0)
    active = benjamini_hochberg(p_values, axis=0) <= settings.extension_p_value
    found = []
    for dim in np.flatnonzero(~counted & (combined <= settings.false_discovery_rate)).tolist():
        lasting = persistence.held(active[:, dim])
        if lasting.any() and dim not in accompanying:
            found.append(Candidate(dim, float(combined[dim]), lasting))
    return sorted(found, key=lambda candidate: candidate.p_value)
