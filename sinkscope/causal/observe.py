"""Which sink tokens are edited: samples read without edits, until every layer has enough of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample
from sinkscope.capture.encode import KIND_TEXT, KIND_VISUAL, EncodedSample, encode
from sinkscope.capture.settings import CaptureSettings
from sinkscope.causal.measure import Prepared, Probe, Reading
from sinkscope.causal.settings import CausalSettings
from sinkscope.profile import Profile
from sinkscope.profile.score import sink_mask

TRIES = 4
"""So many times the samples wanted are read, in search of sink tokens."""


@dataclass(frozen=True)
class SinkTokens:
    """The sink tokens of one sample at one layer.

    Attributes
    ----------
    rows : int64 [n]
        All that the profile flags; they are edited together.
    measured : int64 [m]
        Those of `rows` with enough later queries.
    states : float32 [n, D]
        Hidden states at `rows`.
    ordinary : int64 [k]
        Text tokens that are not flagged, at least one.
    others : float32 [k, P]
        The values of the profile's dimensions, in the profile's order, on `ordinary`.
    """

    rows: NDArray[np.int64]
    measured: NDArray[np.int64]
    states: NDArray[np.float32]
    ordinary: NDArray[np.int64]
    others: NDArray[np.float32]


@dataclass(frozen=True)
class Observed:
    """A sample read without edits."""

    number: int
    sample: Prepared
    reading: Reading
    sinks: dict[int, SinkTokens] = field(repr=False)


def observe(
    probe: Probe, profile: Profile, samples: Sequence[Sample], layers: Sequence[int], settings: CausalSettings
) -> list[Observed]:
    """Read a seeded choice of samples, texts before pictures, until every layer has as many with sinks as are wanted.

    Samples without a measured sink token in any of the layers are left out.
    """
    found: list[Observed] = []
    number = 0
    for candidates, wanted in (
        (_texts(probe.loaded, samples, settings), settings.texts),
        (_pictures(probe.loaded, samples, settings), settings.pictures),
    ):
        missing = dict.fromkeys(layers, wanted)
        for encoded in candidates:
            if max(missing.values(), default=0) <= 0:
                break
            number += 1
            seen = _read(probe, profile, encoded, layers, settings, number)
            if seen.sinks:
                found.append(seen)
            for layer in seen.sinks:
                missing[layer] -= 1
    return found


def chosen_at(observed: Sequence[Observed], layer: int, settings: CausalSettings) -> list[Observed]:
    """The samples edited at `layer`: the first ones with a sink token there, at most `texts` and `pictures` of them."""
    there = [entry for entry in observed if layer in entry.sinks]
    texts = [entry for entry in there if not entry.sample.encoded.has_images]
    pictures = [entry for entry in there if entry.sample.encoded.has_images]
    return texts[: settings.texts] + pictures[: settings.pictures]


def _texts(loaded: LoadedModel, samples: Sequence[Sample], settings: CausalSettings) -> Iterator[EncodedSample]:
    texts = [sample for sample in samples if sample.text is not None]
    if not texts or not settings.texts:
        return
    # Pieces as a capture run cuts them, and only their beginnings: cut to this length they might all be too short.
    pieces = encode(loaded, texts, max(settings.max_length, CaptureSettings().max_length), settings.chat_template)
    long = [piece for piece in pieces if len(piece) > settings.later_queries]
    order = np.random.default_rng([settings.seed, 0]).permutation(len(long))
    for place in order[: settings.texts * TRIES]:
        ids, kinds = long[place].ids, long[place].kinds
        yield EncodedSample(ids[: settings.max_length], kinds[: settings.max_length])


def _pictures(loaded: LoadedModel, samples: Sequence[Sample], settings: CausalSettings) -> Iterator[EncodedSample]:
    pictures = [sample for sample in samples if sample.images]
    if not pictures or loaded.processor is None:
        return
    order = np.random.default_rng([settings.seed, 1]).permutation(len(pictures))
    for place in order[: settings.pictures * TRIES]:
        yield from encode(loaded, [pictures[place]], settings.max_length, settings.chat_template)


def _read(
    probe: Probe,
    profile: Profile,
    encoded: EncodedSample,
    layers: Sequence[int],
    settings: CausalSettings,
    number: int,
) -> Observed:
    sinks: dict[int, SinkTokens] = {}
    text, visual = encoded.kinds == KIND_TEXT, encoded.kinds == KIND_VISUAL
    needed = np.where(visual, settings.later_queries_visual, settings.later_queries)

    def look(layer: int, state: Tensor) -> None:
        if layer not in layers:
            return
        flagged = sink_mask(state[0], profile, layer).cpu().numpy()
        rows = np.flatnonzero(flagged)
        measured = rows[len(encoded) - 1 - rows >= needed[rows]]
        ordinary = np.flatnonzero(text & ~flagged)
        if not len(measured) or not len(ordinary):
            return
        states = state[0].float().cpu().numpy()
        sinks[layer] = SinkTokens(rows, measured, states[rows], ordinary, states[ordinary][:, list(profile.dims)])

    sample = probe.prepare(encoded)
    reading = probe.plain(sample, look)
    return Observed(number, sample, reading, sinks)
