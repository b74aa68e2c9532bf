"""Planting sink dimensions, with their regimes, companions and size on ordinary tokens."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.known_truth.case import Case, Mask, Tokens
from benchmarks.known_truth.ordinary import median_magnitude
from benchmarks.known_truth.tokens import sink_tokens

SMALLEST_FELLOW = 0.38
"""A sink dimension's magnitude over the leading one's; its energy is then at least 0.14 of it."""
LARGEST_COMPANION = 0.1


@dataclass
class Planted:
    """What was planted so far.

    Attributes
    ----------
    acting : dict of int to bool [L+1]
        Hidden states in which a sink dimension is massive.
    own : dict of int to bool [T]
        Tokens in which a sink dimension was planted, in one regime or another.
    sinks : bool [L+1, T]
    strength : float64 [L+1, T]
        Attention that a token draws in the layer, before noise.
    unsure : bool [L+1]
    companions, decoys : list of int
    """

    acting: dict[int, Mask]
    own: dict[int, Mask]
    sinks: Mask
    strength: NDArray[np.float64]
    unsure: Mask
    companions: list[int] = field(default_factory=list)
    decoys: list[int] = field(default_factory=list)

    @property
    def taken(self) -> set[int]:
        """Dimensions that are ordinary no more."""
        return {*self.acting, *self.companions, *self.decoys}

    def fresh(self, generator: np.random.Generator, width: int, number: int) -> list[int]:
        """Dimensions that nothing was planted in; the outermost two more often than chance would have them."""
        free = np.setdiff1d(np.arange(width), sorted(self.taken))
        weight = np.where(np.isin(free, (0, width - 1)), max(1.0, 0.03 * width), 1.0)
        return [int(dim) for dim in generator.choice(free, size=number, replace=False, p=weight / weight.sum())]


def attention_layers(case: Case, generator: np.random.Generator) -> Mask:
    """Which layers have attention, bool [L]."""
    layers = np.arange(case.layers)
    if case.hybrid == "no":
        return np.ones(case.layers, bool)
    every = int(generator.integers(3, 5))
    return layers % every == every - 1


def regime_layers(case: Case, generator: np.random.Generator) -> list[tuple[int, int]]:
    """First and last hidden state of every regime; at least three of them enter a layer."""
    last_layer = case.layers - 1
    end = int(generator.choice([case.layers, last_layer, last_layer, case.layers - 2]))
    if case.regimes == 2:
        first = int(generator.integers(1, 3))
        middle = max(first + 2, round(generator.uniform(0.35, 0.5) * case.layers))
        # Regimes of different dimensions may overlap, as in Gemma 2.
        second = middle + int(generator.integers(-1 if case.moving else 1, 4))
        return [(first, middle), (min(second, end - 2), max(end, last_layer))]
    first = {
        "early": int(generator.choice([0, 1, 1, 2])),
        "middle": round(generator.uniform(0.35, 0.5) * case.layers),
        "late": case.layers - 3,
    }[case.onset]
    first = min(first, last_layer - 2)
    return [(first, max(end, first + 2))]


def plant_sinks(
    generator: np.random.Generator,
    case: Case,
    tokens: Tokens,
    states: NDArray[np.float32],
    attended: Mask,
) -> Planted:
    """Write the sink dimensions of all regimes into `states`, in place.

    A value is the same in all layers of its regime, but for a drift of 2 % and the token's own factor, as in models,
    where the residual stream carries it on. The second regime is triggered by the first kind of trigger only.
    """
    depth, count, width = states.shape
    planted = Planted({}, {}, np.zeros((depth, count), bool), np.zeros((depth, count)), np.zeros(depth, bool))
    if case.free:
        return planted
    rows_of = sink_tokens(generator, case, tokens)
    factor = np.ones(count)
    for trigger, rows in rows_of.items():
        if trigger != case.triggers[0]:
            factor[rows] *= generator.uniform(0.7, 2.0)
    factor *= np.exp(generator.normal(0, generator.uniform(0.02, 0.12), count))
    every = np.sort(np.concatenate(list(rows_of.values())))
    layers = regime_layers(case, generator)
    if case.split:
        for rows in rows_of.values():
            dims = planted.fresh(generator, width, case.dims)
            boost = float(generator.uniform(1.0, 3.0))
            _plant_regime(generator, case, states, planted, dims, rows, factor, layers[0], boost, attended)
    else:
        dims = planted.fresh(generator, width, case.dims)
        _plant_regime(generator, case, states, planted, dims, every, factor, layers[0], 1.0, attended)
    if case.regimes == 2:
        dims = planted.fresh(generator, width, case.dims) if case.moving else sorted(planted.acting)
        boost = 10 ** generator.uniform(-0.2, 1.2)
        rows = rows_of[case.triggers[0]]
        _plant_regime(generator, case, states, planted, dims, rows, factor, layers[1], boost, attended)
        overlap = np.arange(layers[1][0], layers[0][1] + 1)
        planted.unsure[overlap] = True
    return planted


def _plant_regime(
    generator: np.random.Generator,
    case: Case,
    states: NDArray[np.float32],
    planted: Planted,
    dims: list[int],
    rows: NDArray[np.int64],
    factor: NDArray[np.float64],
    layers: tuple[int, int],
    boost: float,
    attended: Mask,
) -> None:
    depth, count, width = states.shape
    first, last = layers
    band = active_states(case, layers, attended)
    value = boost * leading_value(case, states, band, rows)
    for dim in dims:
        planted.acting.setdefault(dim, np.zeros(depth, bool))
        planted.own.setdefault(dim, np.zeros(count, bool))[rows] = True
        planted.acting[dim] |= band
    sizes = np.ones(len(dims))
    if case.sizes == "falling" and len(dims) > 1:
        sizes = np.geomspace(1.0, generator.uniform(SMALLEST_FELLOW, 0.8), len(dims))
    signs = generator.choice([-1.0, 1.0], len(dims))
    own = factor[rows, None] * np.exp(generator.normal(0, 0.02, (len(rows), len(dims))))
    companions = planted.fresh(generator, width, case.companions)
    planted.companions += companions
    lesser = generator.uniform(0.03, LARGEST_COMPANION, len(companions)) * generator.choice([-1, 1], len(companions))
    if case.everywhere != "no":
        _everywhere(generator, case, states, dims, signs, value, (first, last))
    dips = _dips(generator, case, band)
    for layer in np.flatnonzero(band).tolist():
        drift = 1 + 0.02 * generator.standard_normal((len(rows), 1))
        states[layer][rows[:, None], dims] = value * sizes * signs * own * drift
        states[layer][rows[:, None], companions] = value * lesser * own[:, :1] * drift
        planted.sinks[layer, rows] = True
        level = generator.uniform(0.005, 0.09) if layer in dips else case.level * np.exp(0.15 * generator.normal())
        planted.strength[layer, rows] = level
    planted.unsure[dips] = True
    if case.hybrid != "no" or case.everywhere != "no" or case.split:
        return
    for layer, chance in ((first - 1, 0.25), (last + 1, 0.35)):
        inside = 0 <= layer < depth and not planted.sinks[layer].any()
        if inside and generator.random() < chance:
            part = generator.uniform(0.15, 0.4)
            states[layer][rows[:, None], dims] = part * value * sizes * signs * own
            planted.strength[layer, rows] = 0.3 * case.level
            planted.unsure[layer] = True


def _dips(generator: np.random.Generator, case: Case, band: Mask) -> list[int]:
    """Layers whose sink tokens draw little: at the beginning, where attention sets in late, or in the middle."""
    inside = np.flatnonzero(band[:-1])
    number = min(case.dips, (len(inside) - 3) // 2)
    if number < 1 or case.hybrid != "no":
        return []
    start = 0 if generator.random() < 0.5 else int(generator.integers(3, len(inside) - number + 1))
    return [int(layer) for layer in inside[start : start + number]]


def active_states(case: Case, layers: tuple[int, int], attended: Mask) -> Mask:
    """Hidden states in which a regime's spike lives, bool [L+1]."""
    first, last = layers
    inside = np.zeros(case.layers + 1, bool)
    inside[first : last + 1] = True
    if case.hybrid in {"no", "throughout"}:
        return inside
    right_before = np.append(attended, False)
    if case.hybrid == "pair":
        right_before[:-1] |= right_before[1:]
    return inside & right_before


def leading_value(case: Case, states: NDArray[np.float32], band: Mask, rows: NDArray[np.int64]) -> float:
    """Magnitude of the leading dimension of the first regime, from the factor `magnitude`.

    A positive factor counts medians of the layer, a negative one is the energy share of each sink dimension beside the
    ordinary ones. The layer of the band with the largest ordinary activations decides.
    """
    inside = np.flatnonzero(band)
    if case.magnitude > 0:
        return float(case.magnitude * median_magnitude(states[inside]).max())
    share = -case.magnitude
    energy = max(float(np.median(np.sum(np.square(states[layer][rows]), axis=1))) for layer in inside.tolist())
    return float(np.sqrt(share / (1 - share) * energy))


def _everywhere(
    generator: np.random.Generator,
    case: Case,
    states: NDArray[np.float32],
    dims: list[int],
    signs: NDArray[np.float64],
    value: float,
    layers: tuple[int, int],
) -> None:
    """Make the sink dimensions large on ordinary tokens too, as in SmolLM2 ("large") and Gemma 3 ("saturated").

    The magnitude on sink tokens stays, and so does a gap of 1.6 below it.
    """
    first, last = layers
    count = states.shape[1]
    low, high = (12.0, 200.0) if case.everywhere == "large" else (3.5, 8.0)
    contrast = float(np.exp(generator.uniform(np.log(low), np.log(high))))
    token = np.exp(generator.normal(0, 0.25 if case.everywhere == "large" else 0.3, count))
    smallest = value * SMALLEST_FELLOW if case.sizes == "falling" else value
    for layer in range(first, min(last, len(states) - 1) + 1):
        size = smallest / contrast * token[:, None] * np.exp(generator.normal(0, 0.05, (count, len(dims))))
        states[layer][:, dims] = np.minimum(size, smallest * 0.5 / 1.6) * signs
