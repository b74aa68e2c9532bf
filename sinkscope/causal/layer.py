"""All edits at one layer: which dimensions, which partners, and what comes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkscope.capture.planning import KIND_NAMES
from sinkscope.causal.design import LARGEST_PART, LEAST_LARGEST, Choice, Comparison, compare
from sinkscope.causal.edits import largest_dims, moved_energy, ordinary_dims
from sinkscope.causal.measure import Probe, Reading
from sinkscope.causal.observe import Observed, SinkTokens
from sinkscope.causal.outcome import Effect, describe, number
from sinkscope.errors import InputError
from sinkscope.profile import Profile


@dataclass(frozen=True)
class Span:
    """A band of the profile, or of layers with the same dimensions where it has no bands."""

    first: int
    last: int
    dims: tuple[int, ...]


class LayerCheck:
    """All comparisons at one layer.

    Parameters
    ----------
    probe : Probe
    profile : Profile
    span : Span
    layer : int
    samples : sequence of Observed
        With sink tokens at this layer.
    """

    def __init__(self, probe: Probe, profile: Profile, span: Span, layer: int, samples: Sequence[Observed]) -> None:
        self.probe, self.span, self.layer, self.samples = probe, span, layer, samples
        settings = probe.settings
        sinks = [entry.sinks[layer] for entry in samples]
        count = max(len(span.dims), settings.next_largest)
        next_largest = largest_dims(np.concatenate([entry.states for entry in sinks]), profile.dims, count)
        self.lines = compare(profile, span.dims, next_largest)
        medians = np.median(np.concatenate([entry.others for entry in sinks]), axis=0)
        self.typical = {dim: float(value) for dim, value in zip(profile.dims, medians, strict=True)}
        rejected = profile.companion_dimensions + profile.all_token_outliers + profile.content_dimensions
        self.known = sorted({*profile.dims, *(entry.dim for entry in rejected)})
        self.effects: dict[Comparison, list[Effect]] = {line: [] for line in self.lines}
        per_sample = sum(settings.draws if line.kind == "exchange" else 1 for line in self.lines)
        self.edits = per_sample * len(samples)

    def measure(self, observed: Observed) -> None:
        """Edit one sample in every way."""
        sinks, settings = observed.sinks[self.layer], self.probe.settings
        width = sinks.states.shape[1]
        ordinary = ordinary_dims(sinks.states, self.known, max(LEAST_LARGEST, width // LARGEST_PART))
        if len(ordinary) < 2 * len(self.span.dims):
            raise InputError(
                f"layer {self.layer} has {len(ordinary)} ordinary dimensions of {width}, too few to exchange "
                f"{len(self.span.dims)} with; leave out --causal"
            )
        choice = Choice(ordinary, sinks.ordinary, self.typical, (settings.seed, observed.number, self.layer))
        places = [choice.draw(line, settings.draws) for line in self.lines]
        flat = [edit for edits in places for edit in edits]
        reading = self.probe.edited(observed.sample, self.layer, sinks.rows.tolist(), flat, observed.reading)
        start = 0
        for line, edits in zip(self.lines, places, strict=True):
            chosen = slice(start, start + len(edits))
            moved = float(np.median([moved_energy(sinks.states, edit.dims) for edit in edits]))
            self.effects[line].append(self._effect(observed, sinks, reading, chosen, moved))
            start = chosen.stop

    def result(self) -> dict[str, Any]:
        """The layer's figures, ready for JSON."""
        settings = self.probe.settings
        kinds = np.concatenate([effect.kinds for effect in self.effects[self.lines[0]]])
        first = sum(int((entry.sinks[self.layer].measured == 0).sum()) for entry in self.samples)
        names = {int(kind): KIND_NAMES[int(kind)] for kind in np.unique(kinds)}
        comparisons = []
        for line, effects in self.effects.items():
            # Text and visual sinks may differ in what makes them, so the main edit tells them apart.
            apart = sorted(names) if line == self.lines[0] and len(names) > 1 else []
            figures = describe(effects, settings, apart)
            if apart:
                figures["kinds"] = {names[int(kind)]: value for kind, value in figures["kinds"].items()}
            comparisons.append(
                {
                    "group": line.group,
                    "edit": line.kind,
                    "dims": None if line.dims is None else list(line.dims),
                    "count": line.count,
                    "edits": sum(len(effect.after) for effect in effects),
                    **figures,
                }
            )
        return {
            "layer": self.layer,
            "samples": len(self.samples),
            "tokens": {
                "measured": len(kinds),
                "at_start": first,
                "kinds": {name: int((kinds == kind).sum()) for kind, name in names.items()},
            },
            "typical_values": {str(dim): number(self.typical[dim]) for dim in self.span.dims},
            "comparisons": comparisons,
        }

    def _effect(self, observed: Observed, sinks: SinkTokens, reading: Reading, chosen: slice, moved: float) -> Effect:
        draws = chosen.stop - chosen.start
        loss = None
        # What is predicted at an edited token changes with its own state, whoever attends to it.
        later = (observed.sample.queries > sinks.rows[0]) & ~np.isin(observed.sample.queries, sinks.rows)
        if reading.losses is not None and observed.reading.losses is not None and later.any():
            change = reading.losses[chosen][:, later].astype(np.float64) - observed.reading.losses[:, later]
            loss = change.mean(axis=1)
        before = np.full((2, len(sinks.measured)), np.nan)
        after = np.full((draws, 2, len(sinks.measured)), np.nan)
        if reading.drawn is not None and observed.reading.drawn is not None:
            depth = self.probe.loaded.anatomy.num_layers
            for part, end in enumerate((min(self.span.last, depth - 1), depth - 1)):
                layers = slice(self.layer, end + 1)
                before[part] = _over_layers(observed.reading.drawn[0, sinks.measured, layers])
                after[:, part] = _over_layers(reading.drawn[chosen][:, sinks.measured, layers])
        kinds = observed.sample.encoded.kinds[sinks.measured]
        return Effect(before, after, loss, kinds, moved)


def _over_layers(drawn: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean over the last axis, without the layers that have no softmax attention; NaN where none has."""
    known = np.isfinite(drawn)
    total = np.where(known, drawn, 0.0).sum(axis=-1, dtype=np.float64)
    return np.where(known.any(axis=-1), total / np.maximum(known.sum(axis=-1), 1), np.nan)
