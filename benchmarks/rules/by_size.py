"""Rules that go by the size of single activations: Sun, Kang, heretic; PrefixQuant, which finds tokens only."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.rules.activations import TAU, TINY, Activations, Floats, Mask, root_mean_square, strongest_first

# Sun et al.

SUN_MAGNITUDE, SUN_RATIO = 100.0, 1000.0


def sun_massive(states: Floats, spans: Sequence[slice]) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Massive activations of a hidden state [T, D]: their tokens, dimensions and ratios to the median.

    The median is that of the magnitudes of the sample's hidden state, as in both implementations.
    """
    tokens, dims, ratios = [], [], []
    for span in spans:
        magnitude = np.abs(states[span])
        if not (magnitude.max(axis=1) > SUN_MAGNITUDE).any():
            continue
        median = max(float(np.median(magnitude)), TINY)
        token, dim = np.nonzero((magnitude > SUN_MAGNITUDE) & (magnitude >= SUN_RATIO * median))
        tokens.append(token + span.start)
        dims.append(dim)
        ratios.append(magnitude[token, dim] / median)
    if not tokens:
        return np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0)
    return np.concatenate(tokens), np.concatenate(dims), np.concatenate(ratios)


def sun_dims(activations: Activations) -> list[int]:
    """The union over samples and layers, outputs of layers only, by the largest ratio to the median."""
    strength: dict[int, float] = {}
    spans = activations.spans()
    for layer in range(1, activations.num_layers + 1):
        _, dims, ratios = sun_massive(activations.states[layer], spans)
        for dim in np.unique(dims).tolist():
            strength[dim] = max(strength.get(dim, 0.0), float(ratios[dims == dim].max()))
    return strongest_first(strength)


def sun_tokens(activations: Activations, layer: int, dims: list[int]) -> Mask:
    """Tokens that hold a massive activation in this hidden state."""
    mask = np.zeros(len(activations.sample), bool)
    mask[sun_massive(activations.states[layer], activations.spans())[0]] = True
    return mask


# Kang et al.


def kang_dims(activations: Activations) -> list[int]:
    """All dimensions with phi >= 20 on some token of some layer, by their largest phi.

    The paper takes the dimensions as given; without a table, readers of its code take the maximum over all.
    """
    strength: dict[int, float] = {}
    for layer in range(activations.num_layers):
        states = activations.states[layer]
        rms = root_mean_square(states)
        high = np.flatnonzero(np.abs(states).max(axis=1) >= TAU * rms)
        phi = np.abs(states[high]) / rms[high, None]
        for dim in np.flatnonzero((phi >= TAU).any(axis=0)).tolist():
            strength[dim] = max(strength.get(dim, 0.0), float(phi[:, dim].max()))
    return strongest_first(strength)


# Heretic, pull request 154

HERETIC_MAGNITUDE, HERETIC_MEDIANS, HERETIC_DEVIATIONS = 100.0, 1000.0, 1000.0
HERETIC_CLUSTER, HERETIC_LAYERS = 3, 0.25


def heretic_detections(states: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Tokens and dimensions of the detections in a hidden state [T, D], by the first four criteria.

    Median and median absolute deviation are those of the token's own magnitudes; the second never exceeds the first, so
    the third criterion adds next to nothing to the second. "The cluster of largest outliers" is
    cut where neighbours in the descending order of magnitudes differ by the largest factor, searched no deeper than
    just below the last value that passes the first three criteria.
    """
    high = np.flatnonzero(np.abs(states).max(axis=1) > HERETIC_MAGNITUDE)
    if not len(high):
        return np.empty(0, np.intp), np.empty(0, np.intp)
    magnitude = np.abs(states[high]).astype(np.float64)
    median = np.median(magnitude, axis=1, keepdims=True)
    deviation = np.abs(magnitude - median)
    spread = np.median(deviation, axis=1, keepdims=True)
    passing = (
        (magnitude > HERETIC_MAGNITUDE)
        & (magnitude > HERETIC_MEDIANS * median)
        & (deviation > HERETIC_DEVIATIONS * spread)
    )
    tokens, dims = [], []
    for row in np.flatnonzero(passing.any(axis=1)).tolist():
        order = np.argsort(-magnitude[row], kind="stable")
        depth = int(np.flatnonzero(passing[row][order])[-1]) + 1
        ordered = np.maximum(magnitude[row][order[: depth + 1]], TINY)
        size = int(np.argmax(ordered[:-1] / ordered[1:])) + 1 if len(ordered) > 1 else 1
        if size <= HERETIC_CLUSTER:
            found = [dim for dim in order[:size].tolist() if passing[row, dim]]
            tokens += [int(high[row])] * len(found)
            dims += found
    return np.array(tokens, np.intp), np.array(dims, np.intp)


def heretic_dims(activations: Activations) -> list[int]:
    """Dimensions detected on some token in at least a quarter of the layers' outputs, by the number of layers."""
    layers: Counter[int] = Counter()
    for layer in range(1, activations.num_layers + 1):
        layers.update(np.unique(heretic_detections(activations.states[layer])[1]).tolist())
    least = HERETIC_LAYERS * activations.num_layers
    return strongest_first({dim: float(count) for dim, count in layers.items() if count >= least})


def heretic_tokens(activations: Activations, layer: int, dims: list[int]) -> Mask:
    """Tokens with a detection in one of the rule's dimensions."""
    mask = np.zeros(len(activations.sample), bool)
    token, dim = heretic_detections(activations.states[layer])
    mask[token[np.isin(dim, dims)]] = True
    return mask


# PrefixQuant

PREFIX_RATIO = 64.0


def prefix_tokens(activations: Activations, layer: int, dims: list[int]) -> Mask:
    """Tokens whose largest magnitude is more than 64 times the median of their sample's tokens' largest magnitudes."""
    largest = np.abs(activations.states[layer]).max(axis=1)
    mask = np.zeros(len(largest), bool)
    for span in activations.spans():
        mask[span] = largest[span] > PREFIX_RATIO * max(float(np.median(largest[span])), TINY)
    return mask
