"""Discovery: from a run file to a profile. Never touches a model."""

import datetime
import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.attention import read_link
from sinkscope.discovery.dimensions import (
    EXTENSION_P_VALUE,
    Candidate,
    all_token_outliers,
    find_candidates,
    judge_energy,
    judge_link,
    link_to_attention,
    massive_dimensions,
    measure_stability,
    persistent,
)
from sinkscope.discovery.evidence import attention_evidence, triggers
from sinkscope.discovery.null import Floats, benjamini_hochberg, runs, simes
from sinkscope.discovery.peaks import Peaks, measure_peaks
from sinkscope.discovery.settings import DiscoverySettings
from sinkscope.discovery.threshold import BandTokens, calibrate_band, layer_bands, overall_tau
from sinkscope.discovery.tokens import TokenMagnitudes
from sinkscope.errors import StoreError
from sinkscope.profile.schema import (
    Backbone,
    Evidence,
    Profile,
    Provenance,
    RejectedDimension,
    SinkDimension,
    VarDefaults,
)
from sinkscope.store.reader import RunReader

Verdict = Literal["sinks", "none", "uncertain"]

SATURATION = 0.8
"""phi is called saturated where the median token already reaches this part of its ceiling, sqrt(D)."""
LISTED = 16
"""At most so many rejected dimensions of a kind are listed."""


def discover(
    run: str | os.PathLike[str] | RunReader, settings: DiscoverySettings | None = None, *, name: str | None = None
) -> Profile:
    """Find the sink dimensions, bands and thresholds in a run file.

    Parameters
    ----------
    run : path or RunReader
        A run file, finished or not: what is committed is used.
    settings : DiscoverySettings, optional
        Thresholds of the method.
    name : str, optional
        Name of the profile; by default made from the model id.

    Returns
    -------
    Profile
        Its verdict may be "none", with the reason.

    Raises
    ------
    StoreError
        If the run cannot be read or holds no tokens.
    """
    if not isinstance(run, RunReader):
        with RunReader(run) as reader:
            return discover(reader, settings, name=name)
    settings = settings or DiscoverySettings()
    if not len(run.tokens):
        raise StoreError(f"{run.path} holds no tokens yet; resume the run with `sinkscope profile MODEL --resume`")
    return _Discovery(run, settings).profile(name or profile_name(run.attributes.model_id))


def profile_name(model_id: str) -> str:
    """A file name for the profile of a model: the last part of its id, in lower case."""
    stem = Path(model_id.replace(":", "-")).name.removesuffix(".gguf")
    kept = "".join(character if character.isalnum() or character in "._-" else "-" for character in stem.lower())
    return kept.strip("-.") or "model"


def public_id(model_id: str) -> str:
    """The model id without the folders of this machine: the last part of a path, a hub id as it is."""
    path = Path(model_id)
    local = path.is_absolute() or model_id.startswith((".", "~")) or model_id.endswith(".gguf")
    return path.name if local else model_id


class _Discovery:
    """The steps of one discovery over one run, in order, with what they share."""

    def __init__(self, run: RunReader, settings: DiscoverySettings) -> None:
        self.run, self.settings = run, settings
        self.num_layers, self.width = run.attributes.num_layers, run.attributes.hidden_size
        self.num_samples = len(np.unique(run.tokens.sample))
        minimum_run = settings.minimum_run(self.num_layers)
        self.link, self.unlinked = read_link(run, settings)
        self.peaks: Peaks = measure_peaks(run, settings)
        self.magnitudes = TokenMagnitudes(run, self.peaks.typical)
        agreement, counted = None, None
        self.linked_layers: dict[int, NDArray[np.bool_]] = {}
        if self.link is not None:
            agreement = link_to_attention(self.link, self.magnitudes, self.num_layers + 1, self.width)
            strong = np.nan_to_num(agreement) >= settings.link_f1
            held = {dim: persistent(strong[:, dim], minimum_run) for dim in np.flatnonzero(strong.any(0)).tolist()}
            self.linked_layers = {dim: layers for dim, layers in held.items() if layers.any()}
            counted = np.isin(np.arange(self.width), list(self.linked_layers))
        effect = settings.effect_share if self.link is not None else settings.effect_share_without_attention
        massive = massive_dimensions(self.peaks.scores, effect, settings, counted)
        self.candidates, self.fleeting = find_candidates(self.peaks, self.magnitudes, massive, minimum_run)
        judge_link(self.candidates, agreement, self.link, self.peaks, massive.p_values, settings, minimum_run)
        judge_energy(self.candidates, self.link, self.magnitudes, settings, minimum_run)
        self.outliers = all_token_outliers(self.peaks, settings)
        self.sinks = [candidate for candidate in self.candidates if candidate.core[: self.num_layers].any()]
        measure_stability(
            self.sinks, self.peaks, int(run.tokens.sample.max()) + 1, settings, minimum_run, effect, counted
        )
        self.unlinked_dims = self._massive_without_link(massive.p_values, counted, minimum_run)
        self.bands: list[BandTokens] = [
            calibrate_band(
                first,
                last,
                dims,
                self.link,
                self.magnitudes,
                self._scales(first, last, dims),
                settings,
                max(1, int(self.peaks.used // 2)),
            )
            for first, last, dims in layer_bands(self.sinks, self.num_layers)
        ]

    def profile(self, name: str) -> Profile:
        """The finished profile."""
        attributes = self.run.attributes
        entries = sorted(
            (self._sink_dimension(sink) for sink in self.sinks), key=lambda entry: -(entry.energy_share or 0.0)
        )
        verdict, reason = self._verdict(entries)
        return Profile(
            name=name,
            verdict=verdict,
            reason=reason,
            backbone=Backbone.model_validate(dict(attributes.backbone)),
            models=[public_id(attributes.model_id)],
            sink_dimensions=entries,
            companion_dimensions=self._companions(),
            all_token_outliers=self._all_token_outliers(),
            content_dimensions=self._content_dimensions(),
            tau=overall_tau(self.bands, self.magnitudes, self.width),
            bands=[entry.band for entry in self.bands],
            var=VarDefaults(excluded_layers=[self.num_layers - 1]),
            evidence=self._evidence(),
            provenance=Provenance(
                kind="measured",
                source=public_id(attributes.model_id),
                revision=attributes.revision,
                calibration=dict(attributes.calibration) | {"seed": attributes.seed, "dtype": attributes.dtype},
                versions=dict(attributes.versions),
                date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            ),
        )

    def _scales(self, first: int, last: int, dims: tuple[int, ...]) -> dict[int, float]:
        """Median joint magnitude over the sampled tokens, layer by layer."""
        scales = {}
        for layer in range(first, last + 1):
            rows, states = self.run.sampled(layer)
            joint = np.linalg.norm(states[:, list(dims)].astype(np.float64), axis=1)
            scales[layer] = max(float(np.median(joint * self.magnitudes.rms(layer)[rows])), 1e-30)
        return scales

    def _sink_dimension(self, sink: Candidate) -> SinkDimension:
        """Summary over the tokens that the bands of this dimension flag."""
        best: dict[str, Any] = {"energy_share": -1.0}
        union = np.zeros(len(self.run.tokens), bool)
        drawn: list[float] = []
        for entry in self.bands:
            if sink.dim not in entry.band.dims:
                continue
            for layer, mask in entry.flagged.items():
                # In a band of several dimensions, a token belongs to this one where it holds a fair part of it.
                value = self.magnitudes.values(layer, sink.dim)
                joint = self.magnitudes.joint(layer, entry.band.dims)
                own = mask & (value**2 >= self.settings.companion_ratio * joint**2)
                if not own.any():
                    continue
                union |= own
                share = value[own] ** 2 / (self.width * self.magnitudes.rms(layer)[own] ** 2)
                if self.link is not None and self.link.measured(layer) and own[self.link.token].any():
                    drawn.append(float(self.link.drawn[own[self.link.token], layer].mean()))
                usual = max(self.peaks.typical[layer, sink.dim], 1e-30)
                if np.median(share) > best["energy_share"]:
                    best = {
                        "energy_share": min(float(np.median(share)), 1.0),
                        "typical_value": float(np.median(value[own])),
                        "phi": float(np.median(np.sqrt(np.minimum(share, 1.0) * self.width))),
                        "contrast": float(np.median(np.abs(value[own])) / usual),
                        "sign": int(np.sign(np.median(np.sign(value[own])))),
                    }
        kinds, examples, visual = triggers(union, self.run.tokens, self.run.token_text)
        layers = np.flatnonzero(sink.core[: self.num_layers])
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

    def _companions(self) -> list[RejectedDimension]:
        """Dimensions that rise on the same sink tokens, with too little energy to count."""
        sinks = {sink.dim for sink in self.sinks}
        layers = {
            candidate.dim: candidate.linked for candidate in self.candidates if candidate.linked.any()
        } | self.linked_layers
        found = []
        for dim, where in layers.items():
            ratios = [
                np.median(
                    self.magnitudes.values(layer, dim)[mask] ** 2
                    / self.magnitudes.joint(layer, [dim, *band.dims])[mask] ** 2
                )
                for band, flagged in ((entry.band, entry.flagged) for entry in self.bands)
                for layer, mask in flagged.items()
                if where[layer] and mask.any()
            ]
            if dim not in sinks and ratios:
                found.append(
                    (
                        max(ratios),
                        _rejected(dim, where, f"rises on sink tokens, with at most {max(ratios):.2g} of their energy"),
                    )
                )
        return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])][:LISTED]

    def _massive_without_link(
        self, p_values: Floats, counted: NDArray[np.bool_] | None, minimum_run: int
    ) -> list[Candidate]:
        """Dimensions that would be candidates but for the link to attention; unadjusted, for they are rejected."""
        if counted is None:
            return []
        combined = simes(p_values, axis=0)
        active = benjamini_hochberg(p_values, axis=0) <= EXTENSION_P_VALUE
        found = []
        for dim in np.flatnonzero(~counted & (combined <= self.settings.false_discovery_rate)).tolist():
            lasting = persistent(active[:, dim], minimum_run)
            if lasting.any():
                found.append(Candidate(dim, float(combined[dim]), lasting))
        return sorted(found, key=lambda candidate: candidate.p_value)

    def _content_dimensions(self) -> list[RejectedDimension]:
        found = []
        for candidate in self.unlinked_dims:
            assert self.link is not None
            layer = int(np.argmax(np.where(candidate.massive, self.peaks.scores.energy[:, candidate.dim], -np.inf)))
            where = min(layer, self.num_layers - 1)
            top = np.isin(self.link.token, self.peaks.token[layer, candidate.dim])
            said = "none of them was measured"
            if top.any() and self.link.measured(where):
                said = f"these draw {self.link.drawn[top, where].mean():.3f} of the attention"
            found.append(_rejected(candidate.dim, candidate.massive, f"large on few tokens, but {said}"))
        return found[:LISTED]

    def _all_token_outliers(self) -> list[RejectedDimension]:
        sinks = {sink.dim for sink in self.sinks}
        found = [
            RejectedDimension(
                dim=dim,
                reason="large on most tokens" + ("; a sink dimension all the same" if dim in sinks else ""),
                first_layer=int(np.flatnonzero(active)[0]),
                last_layer=int(np.flatnonzero(active)[-1]),
            )
            for dim, active in self.outliers.items()
        ]
        return [entry for entry in found if entry.dim not in sinks][:LISTED]

    def _evidence(self) -> Evidence:
        attention = None
        if self.link is not None:
            attention = attention_evidence(self.bands, self.link, self.magnitudes, self.settings)
        return Evidence.model_validate(
            {
                "attention": attention,
                "notes": self._notes(),
                "fleeting_dimensions": self.fleeting[:LISTED],
                "settings": self.settings.to_dict(),
            }
        )

    def _verdict(self, entries: list[SinkDimension]) -> tuple[Verdict, str]:
        """Verdict and reason, one sentence."""
        if not entries:
            return "none", self._why_none()
        names = ", ".join(str(entry.dim) for entry in entries)
        weakest = min(entry.stability or 0.0 for entry in entries)
        few = self.num_samples < self.settings.minimum_samples or len(self.run.tokens) < self.settings.minimum_tokens
        if weakest < self.settings.minimum_stability:
            return "uncertain", (
                f"dimensions {names} look like sinks, but only {weakest:.0%} of the bootstraps find them all; profile "
                "with more samples"
            )
        linked = "which draw the attention" if self.link is not None else "attention not measured"
        share = max(entry.energy_share or 0.0 for entry in entries)
        first, last = min(entry.first_layer or 0 for entry in entries), max(entry.last_layer or 0 for entry in entries)
        subject = _subject([entry.dim for entry in entries], "holds", "hold")
        text = f"{subject} up to {share:.0%} of the energy of a few tokens, {linked}, in layers {first}-{last}"
        return "sinks", text + ("; little calibration data, see the notes" if few else "")

    def _why_none(self) -> str:
        massive = [candidate.dim for candidate in self.candidates + self.unlinked_dims]
        if massive and self.link is not None:
            return (
                f"{_subject(massive, 'is', 'are')} massive on few tokens, but these draw no attention; no dimension is "
                "massive on tokens that do"
            )
        if massive:
            return f"{_subject(massive, 'is', 'are')} massive, but only after the last layer"
        if self.fleeting:
            spikes = _subject(self.fleeting, "spikes", "spike")
            return f"{spikes} in single layers only; none persists over consecutive layers"
        sinks = int(self.link.sink.sum()) if self.link is not None else 0
        also = "; some tokens draw much attention all the same, without massive activations" if sinks else ""
        return (
            "no dimension rises above the others further than chance allows at a false-discovery rate of "
            f"{self.settings.false_discovery_rate:g}{also}"
        )

    def _notes(self) -> list[str]:
        notes = []
        if self.unlinked:
            notes.append(f"attention: {self.unlinked}; the link to attention was not asked for")
        if self.num_samples < self.settings.minimum_samples or len(self.run.tokens) < self.settings.minimum_tokens:
            notes.append(
                f"only {self.num_samples} samples with {len(self.run.tokens)} tokens: give at least "
                f"{self.settings.minimum_samples} and {self.settings.minimum_tokens}"
            )
        ceiling = math.sqrt(self.width)
        usual = {
            layer: float(np.median(self.magnitudes.phi(layer, entry.band.dims)))
            for entry in self.bands
            for layer in entry.flagged
        }
        full = np.array([usual.get(layer, 0.0) >= SATURATION * ceiling for layer in range(self.num_layers)])
        if full.any():
            spans = ", ".join(f"{first}-{last}" for first, last in runs(full))
            typical = np.median([usual[layer] for layer in np.flatnonzero(full).tolist()])
            notes.append(
                f"phi saturates in layers {spans}: the median token already has phi {typical:.1f} of at most "
                f"{ceiling:.1f}, so a threshold on phi cannot tell sinks apart there; the calibrated score can"
            )
        for entry in self.bands:
            if len(entry.band.dims) > 1:
                lowest = math.sqrt(self.width / len(entry.band.dims))
                notes.append(
                    f"layers {entry.band.first_layer}-{entry.band.last_layer}: {len(entry.band.dims)} dimensions share "
                    f"the energy, so phi can be as low as {lowest:.1f} on a pure sink token"
                )
        return notes


def _subject(dims: list[int], singular: str, plural: str) -> str:
    """ "dimension 30 is" or "dimensions 30, 15 are"; at most five are named."""
    named = ", ".join(map(str, dims[:5])) + (" and others" if len(dims) > 5 else "")
    return f"dimension {named} {singular}" if len(dims) == 1 else f"dimensions {named} {plural}"


def _rejected(dim: int, where: NDArray[np.bool_], reason: str) -> RejectedDimension:
    layers = runs(where)
    return RejectedDimension(dim=dim, reason=reason, first_layer=layers[0][0], last_layer=layers[-1][1])
