"""Verdict, reason and notes: what a profile says in words, and how far it is to be trusted."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.description import drawn_by_content
from sinkscope.discovery.find import Findings
from sinkscope.profile.schema import SinkDimension
from sinkscope.significance import runs
from sinkscope.store.layout import KIND_SPECIAL, KIND_VISUAL
from sinkscope.store.tokens import TokenTable

Verdict = Literal["sinks", "none", "uncertain"]

SATURATION = 0.8
"""phi is called saturated where the median token already reaches this part of its ceiling, sqrt(D)."""
FLOAT16_LARGEST = 65504.0
ALIKE = 0.2
"""Samples of one domain have at least this similarity; between those of several it is below 0.1."""


def verdict(found: Findings, entries: list[SinkDimension], power: Mapping[str, Any]) -> tuple[Verdict, str]:
    """Verdict and reason, one sentence."""
    if not entries:
        return "none", _why_none(found, power)
    names = ", ".join(str(entry.dim) for entry in entries)
    weakest = min(entry.stability or 0.0 for entry in entries)
    if weakest < found.settings.minimum_stability:
        return "uncertain", (
            f"dimensions {names} look like sinks, but only {weakest:.0%} of the bootstraps find them all; profile "
            "with more samples"
        )
    linked = "which draw the attention" if found.link is not None else "attention not measured"
    share = max(entry.energy_share or 0.0 for entry in entries)
    first, last = min(entry.first_layer or 0 for entry in entries), max(entry.last_layer or 0 for entry in entries)
    subject = _subject([entry.dim for entry in entries], "holds", "hold")
    text = f"{subject} up to {share:.0%} of the energy of a few tokens, {linked}, in layers {first}-{last}"
    return "sinks", text + ("; little calibration data, see the notes" if _short_of(found) else "")


def _why_none(found: Findings, power: Mapping[str, Any]) -> str:
    massive = [candidate.dim for candidate in found.candidates + found.content]
    if massive and found.link is not None:
        unknown = {candidate.dim for candidate in found.content if drawn_by_content(found, candidate) is None}
        known = [dim for dim in massive if dim not in unknown]
        said = "these draw no attention" if known else "the attention that these draw was not measured"
        return (
            f"{_subject(known or massive, 'is', 'are')} massive on few tokens, but {said}; no dimension is massive on "
            f"tokens that {'do' if known else 'are known to draw any'}"
        )
    if massive:
        return f"{_subject(massive, 'is', 'are')} massive, but only after the last layer"
    if found.fleeting:
        spikes = _subject(found.fleeting, "spikes", "spike")
        return f"{spikes} in single layers only; none persists over consecutive layers"
    sinks = int(found.link.sink.sum()) if found.link is not None else 0
    also = "; some tokens draw much attention all the same, without massive activations" if sinks else ""
    seen = ""
    if _short_of(found):
        seen = "; little calibration data, see the notes"
    elif power["detectable_share"] < 1:
        seen = f"; from {power['detectable_share']:.0%} of a token's energy on one would have been seen"
    return (
        "no dimension rises above the others further than chance allows at a false-discovery rate of "
        f"{found.settings.false_discovery_rate:g}{seen}{also}"
    )


def notes(found: Findings, power: Mapping[str, Any]) -> list[str]:
    """What a reader should know about the data and the thresholds."""
    return [*_about_attention(found), *_about_data(found), *_about_power(found, power), *_about_phi(found)]


def _about_attention(found: Findings) -> list[str]:
    if found.unlinked:
        return [f"attention: {found.unlinked}; dimensions are judged without the link to it"]
    return []


def _about_data(found: Findings) -> list[str]:
    tokens, attributes = found.run.tokens, found.run.attributes
    said = []
    if short := _short_of(found):
        said.append("; ".join(f"only {count} {what}: give at least {least}" for count, what, least in short))
    if similarity(tokens) >= ALIKE:
        said.append(
            "the calibration texts are much alike: tokens that occur in other kinds of text only cannot have been "
            "found; mix prose, code, dialogue, tables and languages, as the embedded texts do"
        )
    policy = attributes.calibration.get("bos")
    bos = policy.get("token") if isinstance(policy, Mapping) else None
    if bos is not None and not ((tokens.position == 0) & (tokens.kind == KIND_SPECIAL)).any():
        said.append(f"no sample begins with {bos}, which the tokenizer has: a sink on it cannot have been found")
    peak = float(found.run.statistics.peak_magnitude.max())
    if peak > FLOAT16_LARGEST:
        layers = np.flatnonzero(found.run.statistics.peak_magnitude.max(1) > FLOAT16_LARGEST)
        said.append(
            f"activations reach {peak:,.0f} from layer {layers[0]} on, beyond float16's {FLOAT16_LARGEST:,.0f}: run "
            "this model in bfloat16 or float32"
        )
    return said


def _about_power(found: Findings, power: Mapping[str, Any]) -> list[str]:
    if found.sinks and power["tokens_needed"] is None:
        return ["the decision rests on all of the data: parts of it do not repeat it; profile with more samples"]
    if not found.sinks and power["detectable_share"] >= 1:
        return ["too few dimensions or too heavy tails: no sink dimension, however large, would have been significant"]
    return []


def _about_phi(found: Findings) -> list[str]:
    said = []
    ceiling = math.sqrt(found.width)
    usual = {
        layer: float(np.median(found.magnitudes.phi(layer, entry.band.dims)))
        for entry in found.bands
        for layer in entry.flagged
    }
    full = np.array([usual.get(layer, 0.0) >= SATURATION * ceiling for layer in range(found.num_layers)])
    if full.any():
        spans = ", ".join(f"{first}-{last}" for first, last in runs(full))
        typical = np.median([usual[layer] for layer in np.flatnonzero(full).tolist()])
        said.append(
            f"phi saturates in layers {spans}: the median token already has phi {typical:.1f} of at most "
            f"{ceiling:.1f}, so a threshold on phi cannot tell sinks apart there; the calibrated score can"
        )
    for entry in found.bands:
        if len(entry.band.dims) > 1:
            lowest = math.sqrt(found.width / len(entry.band.dims))
            first, last = entry.band.first_layer, entry.band.last_layer
            said.append(
                f"{f'layer {first}' if first == last else f'layers {first}-{last}'}: {len(entry.band.dims)} dimensions "
                f"share the energy, so phi can be as low as {lowest:.1f} on a pure sink token"
            )
    if found.bands and ceiling < 20.0 * (1 + 1e-9):
        said.append(f"phi cannot reach the published tau of 20 here: it ends at sqrt(D) = {ceiling:.1f}")
    return said


def _short_of(found: Findings) -> list[tuple[int, str, int]]:
    """What there is too little of: how many, of what, and how many there should be."""
    asked = (
        (found.num_samples, "samples", found.settings.minimum_samples),
        (len(found.run.tokens), "tokens", found.settings.minimum_tokens),
    )
    return [(count, what, least) for count, what, least in asked if count < least]


def similarity(tokens: TokenTable) -> float:
    """How alike the least alike texts are: the 10th percentile of the cosine between the texts' square-rooted token
    counts, over all pairs; 0 where there are fewer than two texts."""
    text = tokens.kind != KIND_VISUAL
    pictures = np.unique(tokens.sample[~text])
    text &= ~np.isin(tokens.sample, pictures)
    samples = np.unique(tokens.sample[text])
    if len(samples) < 2:
        return 0.0
    chosen = samples[np.unique(np.linspace(0, len(samples) - 1, 128).astype(int))]
    ids = np.unique(tokens.id[text])
    rows = np.flatnonzero(text & np.isin(tokens.sample, chosen))
    counts: NDArray[np.float64] = np.zeros((len(chosen), len(ids)), np.float32)
    np.add.at(counts, (np.searchsorted(chosen, tokens.sample[rows]), np.searchsorted(ids, tokens.id[rows])), 1.0)
    counts = np.sqrt(counts)
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    return float(np.percentile((counts @ counts.T)[np.triu_indices(len(chosen), 1)], 10))


def _subject(dims: list[int], singular: str, plural: str) -> str:
    """ "dimension 30 is" or "dimensions 30, 15 are"; at most five are named."""
    named = ", ".join(map(str, dims[:5])) + (" and others" if len(dims) > 5 else "")
    return f"dimension {named} {singular}" if len(dims) == 1 else f"dimensions {named} {plural}"
