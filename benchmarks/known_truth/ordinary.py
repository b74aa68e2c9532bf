"""Ordinary activations: a residual stream without anything massive in it."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.known_truth.case import Case, Tokens

POOL = 1 << 18
FEATURES = 24
CLIP = 4.0
"""What many tokens share (the embedding of an id, the hidden states of BOS) is one draw repeated many times; nothing
massive may come of chance there."""


class HeavyTails:
    """t-distributed noise of unit variance; the chi-square factors come from a pool, read from random places."""

    def __init__(self, generator: np.random.Generator, degrees: int) -> None:
        self._generator, self._degrees = generator, degrees
        if degrees:
            factor = np.sqrt(degrees / generator.chisquare(degrees, POOL)) * np.sqrt((degrees - 2) / degrees)
            self._pool = factor.astype(np.float32)

    def draw(self, rows: int, width: int) -> NDArray[np.float32]:
        """float32 [rows, width]."""
        noise = self._generator.standard_normal((rows, width), dtype=np.float32)
        if self._degrees:
            flat = noise.reshape(-1)
            done = 0
            while done < flat.size:
                start = int(self._generator.integers(POOL))
                part = self._pool[start : start + flat.size - done]
                flat[done : done + len(part)] *= part
                done += len(part)
        return noise


def ordinary_states(generator: np.random.Generator, case: Case, tokens: Tokens) -> NDArray[np.float32]:
    """Hidden states [L+1, T, D].

    Dimensions differ in scale (lognormal) and have means of their own; tokens differ in norm; tokens of one id share a
    part of their embedding; sparse features fire on a few tokens each, in directions that spread over many dimensions;
    each layer adds to the one before, so that neighbours are correlated, and the RMS grows by `growth` from the first
    to the last; samples of another domain have some dimensions shifted.
    """
    count, width, depth = len(tokens), case.width, case.layers + 1
    tails = HeavyTails(generator, case.tail)
    scale = np.exp(generator.normal(0, case.spread, width))
    scale = (scale / np.sqrt(np.mean(scale**2))).astype(np.float32)
    norm = np.exp(generator.normal(0, generator.uniform(0.08, 0.3), count)).astype(np.float32)
    norm[tokens.id < 10] *= np.float32(generator.uniform(0.7, 1.1))
    shift = np.where(generator.random(width) < 0.03, generator.choice([-1, 1], width) * 3.0, 0.0).astype(np.float32)
    step = case.growth ** (1 / case.layers)
    kinds = int(tokens.id.max()) + 1
    # Bounded, because a heavy-tailed value that all tokens of an id share would be a content dimension.
    shared = np.clip(generator.standard_normal((kinds, width), dtype=np.float32), -CLIP, CLIP)
    features = _sparse_features(generator, count, width)

    states = np.empty((depth, count, width), np.float32)
    rms = np.float32(case.scale)
    for layer in range(depth):
        own_scale = scale * np.exp(generator.normal(0, 0.15, width)).astype(np.float32)
        noise = tails.draw(count, width)
        noise *= np.sqrt(0.6)
        noise += np.sqrt(0.4) * shared[tokens.id]
        noise += generator.normal(0, 0.35, width).astype(np.float32)
        noise += features
        noise[tokens.domain] += 0.6 * shift
        noise *= own_scale
        noise *= norm[:, None]
        if layer == 0:
            np.multiply(noise, rms, out=states[0])
        else:
            part = np.float32(np.sqrt(max(step**2 - 1, 0.05)))
            np.multiply(noise, rms * part, out=states[layer])
            states[layer] += states[layer - 1]
            rms = np.float32(rms * step)
    if case.bos:
        _constant_first(generator, tokens, states, scale)
    return states


def _sparse_features(generator: np.random.Generator, count: int, width: int) -> NDArray[np.float32]:
    """Each of `FEATURES` fires on 0.3 to 5 % of the tokens, in a random tenth to all of the dimensions: [T, D]."""
    rare = np.exp(generator.uniform(np.log(0.003), np.log(0.05), FEATURES))
    fires = generator.random((count, FEATURES)) < rare
    size = np.where(fires, np.exp(generator.normal(0, 0.4, (count, FEATURES))), 0.0).astype(np.float32)
    part = generator.uniform(0.1, 1.0, FEATURES)[:, None]
    held = generator.random((FEATURES, width)) < part
    direction = np.where(held, generator.normal(0, 0.8, (FEATURES, width)), 0.0).astype(np.float32)
    return size @ direction


def _constant_first(
    generator: np.random.Generator, tokens: Tokens, states: NDArray[np.float32], scale: NDArray[np.float32]
) -> None:
    """BOS sees only itself, so its hidden states are the same in every sample; 1 % of noise stands for rounding."""
    first = np.flatnonzero(tokens.position == 0)
    size = float(generator.uniform(0.6, 1.3))
    state = np.zeros(states.shape[2])
    for layer in range(len(states)):
        usual = float(np.sqrt(np.mean(np.square(states[layer, : min(256, len(tokens))]))))
        draw = np.clip(generator.normal(size=states.shape[2]), -CLIP, CLIP) * scale
        state = draw if layer == 0 else 0.85 * state + 0.53 * draw
        noise = 1 + 0.01 * generator.standard_normal((len(first), states.shape[2]))
        states[layer, first] = (size * usual * state * noise).astype(np.float32)


def median_magnitude(states: NDArray[np.float32]) -> NDArray[np.float64]:
    """Median abs(x[d]) of every hidden state, over up to 256 tokens spread over the store: float64 [L+1]."""
    rows = np.linspace(0, states.shape[1] - 1, min(256, states.shape[1])).astype(int)
    return np.array([np.median(np.abs(state[rows])) for state in states])


def root_mean_square(states: NDArray[np.float32]) -> NDArray[np.float64]:
    """Median over the same tokens of RMS(x): float64 [L+1]."""
    rows = np.linspace(0, states.shape[1] - 1, min(256, states.shape[1])).astype(int)
    return np.array([np.median(np.sqrt(np.mean(np.square(state[rows]), axis=1))) for state in states])


def round_bfloat16(states: NDArray[np.float32]) -> None:
    """Round to bfloat16, to nearest even, in place and layer by layer."""
    for state in states:
        bits = state.view(np.uint32)
        bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        bits &= np.uint32(0xFFFF0000)
