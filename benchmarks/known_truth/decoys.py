"""Decoys: what is taken for sink dimensions and is none.

all-token     dimensions large on all tokens, of one sign or simply wide
content       dimensions large on all tokens of one kind that draw no attention
heavy         dimensions with far heavier tails than the others
single        dimensions that spike in one hidden state only
last          the output of the last layer blows up
rotating      the same dimension on other tokens in every layer, or other dimensions on the same tokens
embedding     the first hidden state has another scale
linear        in a hybrid, a spike that lives only before layers without attention
dead          dimensions near 0 on all tokens, of ordinary size on a few: high contrast, no energy
distinct      the first token is unlike the others in many dimensions, in none of them massively
attended      tokens that draw much attention without massive activations
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmarks.known_truth.case import Case, Mask, Tokens
from benchmarks.known_truth.ordinary import root_mean_square
from benchmarks.known_truth.sinks import Planted
from benchmarks.known_truth.tokens import CONTENT, DELIMITERS

UNLINKED_SHARE = 0.08
"""Without attention nothing but energy tells a heavy-tailed dimension from a content dimension, which by contract is
listed. There its values are cut where they hold this share: less than tau = 20 asks for at 4096 dimensions."""


@dataclass(frozen=True)
class Scene:
    """What decoys are planted in.

    Attributes
    ----------
    random : numpy Generator
    case, tokens, planted
        Of the store.
    states : float32 [L+1, T, D]
        Changed in place.
    attended : bool [L]
        Layers with attention.
    """

    random: np.random.Generator
    case: Case
    tokens: Tokens
    states: NDArray[np.float32]
    planted: Planted
    attended: Mask

    @cached_property
    def rms(self) -> NDArray[np.float64]:
        """RMS of ordinary tokens before this decoy, float64 [L+1]."""
        return root_mean_square(self.states)

    @property
    def first(self) -> NDArray[np.int64]:
        """Rows of the first tokens."""
        return np.flatnonzero(self.tokens.position == 0)

    @property
    def ordinary(self) -> NDArray[np.int64]:
        """Rows that are neither first tokens nor sinks."""
        return np.flatnonzero((self.tokens.position > 0) & ~self.planted.sinks.any(axis=0))

    def decoys(self, least: int, most: int) -> list[int]:
        """Between `least` and `most` fresh dimensions, noted as decoys."""
        dims = self.planted.fresh(self.random, self.case.width, int(self.random.integers(least, most + 1)))
        self.planted.decoys += dims
        return dims

    def share(self, energy: float) -> float:
        """abs(x[d]) over RMS that holds this share of the energy beside ordinary dimensions."""
        return float(np.sqrt(energy / (1 - energy) * self.case.width))

    def spike(self, low: float, high: float) -> float:
        """x[d] over RMS, of random sign and of an energy share between the two."""
        return self.share(self.random.uniform(low, high)) * float(self.random.choice([-1.0, 1.0]))

    def wobble(self, spread: float, *shape: int) -> NDArray[np.float64]:
        """Factors around 1, lognormal."""
        return np.exp(self.random.normal(0, spread, shape))


def all_token(scene: Scene) -> None:
    """Of one sign and nearly one size, as dimension 1512 of LLaMA-2-7B, or an ordinary dimension times 5 to 25.

    What a wide dimension holds on BOS, in every sample, is its median: by chance it could be its peak.
    """
    random, count = scene.random, len(scene.tokens)
    start = int(random.integers(0, scene.case.layers))
    norm = scene.wobble(random.uniform(0.08, 0.25), count)
    for dim in scene.decoys(1, 3):
        states = scene.states[start:, :, dim]
        if random.random() < 0.4:
            states *= np.float32(np.exp(random.uniform(np.log(5), np.log(25))))
            if scene.case.bos:
                states[:, scene.first] = np.median(np.abs(states), axis=1, keepdims=True)
            continue
        size = scene.spike(0.05, 0.9) * norm
        for layer, state in enumerate(states, start):
            state[:] = size * scene.rms[layer] * (1 + 0.05 * random.standard_normal(count))


def content(scene: Scene) -> None:
    third = max(1, scene.case.layers // 3)
    for dim in scene.decoys(1, 3):
        named = scene.random.choice([*CONTENT], size=int(scene.random.integers(1, 3)), replace=False)
        rows = scene.ordinary[np.isin(scene.tokens.id[scene.ordinary], named)]
        start, end = int(scene.random.integers(0, third)), scene.case.layers - int(scene.random.integers(0, third))
        size = scene.spike(0.08, 0.9) * scene.wobble(0.2, len(rows))
        for layer in range(start, end + 1):
            scene.states[layer][rows, dim] = size * scene.rms[layer]


def heavy(scene: Scene) -> None:
    dims = scene.decoys(2, 6)
    degrees, scale = scene.random.uniform(1.8, 3.0), scene.random.uniform(1.0, 4.0, len(dims))
    most = scene.share(0.9 if scene.case.attention else UNLINKED_SHARE)
    own = np.clip(scene.random.standard_t(degrees, (len(scene.tokens), len(dims))) * scale, -most, most)
    for layer, state in enumerate(scene.states):
        state[:, dims] = scene.rms[layer] * own * (1 + 0.1 * scene.random.standard_normal(own.shape))


def single(scene: Scene) -> None:
    """Spikes of one hidden state each, two apart; on first tokens or on a hundredth of the others."""
    layers = np.arange(1 + int(scene.random.integers(0, 2)), scene.case.layers, 2)
    dims = scene.decoys(1, min(len(layers), 3))
    for dim, layer in zip(dims, scene.random.permutation(layers)[: len(dims)].tolist(), strict=True):
        rows = scene.first
        if scene.random.random() < 0.5 or scene.planted.sinks.any():
            rows = scene.random.permutation(scene.ordinary)[: max(8, len(scene.tokens) // 100)]
        size = scene.spike(0.4, 0.995) * scene.rms[layer]
        scene.states[layer][rows, dim] = size * scene.wobble(0.1, len(rows))


def last(scene: Scene) -> None:
    """The last output: larger altogether, some dimensions far larger on all tokens, one on first tokens alone."""
    output = scene.states[-1]
    output *= np.float32(scene.random.uniform(1.0, 6.0))
    dims = scene.decoys(1, max(1, min(40, scene.case.width // 16)))
    output[:, dims] *= np.exp(scene.random.uniform(1, 4, len(dims))).astype(np.float32)
    output[scene.first, scene.decoys(1, 1)[0]] = scene.spike(0.5, 0.99) * scene.rms[-1]


def rotating(scene: Scene) -> None:
    size, depth = scene.spike(0.3, 0.95), len(scene.states)
    if scene.random.random() < 0.5 or scene.planted.sinks.any():
        parts = np.array_split(scene.random.permutation(scene.ordinary), depth)
        rows_of = [rows[: max(4, len(scene.tokens) // 150)] for rows in parts]
        dims = scene.decoys(1, 1) * depth
    else:
        rows_of, dims = [scene.first] * depth, scene.decoys(depth, depth)
    for layer, (rows, dim) in enumerate(zip(rows_of, dims, strict=True)):
        scene.states[layer][rows, dim] = size * scene.rms[layer] * scene.wobble(0.1, len(rows))


def embedding(scene: Scene) -> None:
    scene.states[0] *= np.float32(scene.random.choice([1 / 80, 1 / 20, 25.0, 60.0]))


def linear(scene: Scene) -> None:
    for dim in scene.decoys(1, 2):
        named = scene.random.choice([*DELIMITERS], 2)
        rows = scene.ordinary[np.isin(scene.tokens.id[scene.ordinary], named)]
        size = scene.spike(0.4, 0.98)
        for layer in np.flatnonzero(~scene.attended).tolist():
            scene.states[layer][rows, dim] = size * scene.rms[layer] * scene.wobble(0.1, len(rows))


def dead(scene: Scene) -> None:
    """Dead dimensions come to life on first tokens in half of the cases, on a few others in the rest."""
    number = max(2, int(scene.random.uniform(0.01, 0.06) * scene.case.width))
    dims = scene.decoys(number, number)
    rows = scene.first
    if scene.random.random() < 0.5 or scene.planted.sinks.any():
        rows = scene.random.permutation(scene.ordinary)[: max(8, len(scene.tokens) // 50)]
    # However many of them live on a token, none may hold a fair part of its energy.
    size = np.minimum(scene.random.uniform(0.3, 1.4, len(dims)), np.sqrt(UNLINKED_SHARE / 3 * scene.case.width))
    for layer, state in enumerate(scene.states):
        state[:, dims] = 1e-4 * scene.rms[layer] * scene.random.standard_normal((len(scene.tokens), len(dims)))
        state[rows[:, None], dims] = size * scene.rms[layer] * scene.wobble(0.1, len(rows), len(dims))


def distinct(scene: Scene) -> None:
    """Each of its dimensions holds at most a twentieth of the token's energy."""
    number = min(int(scene.random.integers(6, 25)), scene.case.width // 6)
    dims = scene.decoys(number, number)
    largest = min(float(scene.random.uniform(3.0, 6.0)), float(np.sqrt(0.045 * scene.case.width)))
    size = largest * scene.random.uniform(0.5, 1.0, number) * scene.random.choice([-1, 1], number)
    for layer in range(int(scene.random.integers(0, 3)), len(scene.states)):
        values = size * scene.rms[layer] * scene.wobble(0.03, len(scene.first), number)
        scene.states[layer][scene.first[:, None], dims] = values


def attended(scene: Scene) -> None:
    """Tokens draw attention in a stretch of layers: first tokens, in half of the cases the first full stop too.

    Beside sinks it is one ordinary delimiter of every sample instead.
    """
    tokens, beside = scene.tokens, bool(scene.planted.sinks.any())
    rows = (tokens.position == 0) & ~beside
    if beside or scene.random.random() < 0.5:
        possible = np.isin(tokens.id, (2, 4)) & (tokens.position > 4) & ~scene.planted.sinks.any(axis=0)
        chosen = np.flatnonzero(possible)
        rows[chosen[np.unique(tokens.sample[chosen], return_index=True)[1]]] = True
    for layer in range(int(scene.random.integers(0, max(1, scene.case.layers // 2))), scene.case.layers):
        scene.planted.strength[layer, rows] = scene.case.level * scene.wobble(0.25, 1)


PLANTERS: dict[str, Callable[[Scene], None]] = {
    "embedding": embedding,
    "all-token": all_token,
    "content": content,
    "heavy": heavy,
    "single": single,
    "last": last,
    "rotating": rotating,
    "linear": linear,
    "dead": dead,
    "distinct": distinct,
    "attended": attended,
}
"""In the order in which they are planted: the one that scales a whole hidden state first."""


def plant_decoys(
    generator: np.random.Generator,
    case: Case,
    tokens: Tokens,
    states: NDArray[np.float32],
    planted: Planted,
    attended_layers: Mask,
) -> None:
    """Plant the decoys of a case, in place."""
    for name, plant in PLANTERS.items():
        if name in case.decoys:
            plant(Scene(generator, case, tokens, states, planted, attended_layers))
