"""Run files with known truth, for the tests of discovery."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkscope.capture.synthetic import write_synthetic

SAMPLES, LENGTH = 24, 64


def residual_stream(seed: int, width: int, layers: int, heavy: bool = False) -> NDArray[np.float64]:
    """Ordinary hidden states [L+1, N, D]: dimensions of different scale, each layer adding to the one before."""
    generator = np.random.default_rng(seed)
    scale = np.exp(generator.normal(0, 0.3, width))
    count = SAMPLES * LENGTH

    def draw() -> NDArray[np.float64]:
        noise = generator.standard_t(5, (count, width)) if heavy else generator.normal(size=(count, width))
        return noise * scale

    states = [draw()]
    for _ in range(layers):
        states.append(states[-1] + 0.4 * draw())
    return np.array(states)


def positions() -> NDArray[np.int64]:
    return np.tile(np.arange(LENGTH), SAMPLES)


def plant(
    states: NDArray[np.float64],
    dims: Sequence[int],
    value: float,
    tokens: NDArray[np.bool_],
    first: int,
    last: int,
    seed: int = 0,
) -> None:
    """Write massive activations of alternating sign into `dims` on `tokens`, entering layers first..last."""
    generator = np.random.default_rng(seed)
    wobble = 1 + 0.05 * generator.normal(size=(int(tokens.sum()), len(dims)))
    sign = np.where(np.arange(len(dims)) % 2 == 0, 1.0, -1.0)
    for layer in range(first, last + 1):
        states[layer][np.ix_(tokens, list(dims))] = value * sign * wobble


def attention_of(sinks: NDArray[np.bool_], layers: int, drawn: float = 0.4) -> NDArray[np.float64]:
    """Attention drawn [N, L]: `drawn` by `sinks` [N] or [N, L], little by the rest."""
    sinks = np.broadcast_to(sinks if sinks.ndim == 2 else sinks[:, None], (len(sinks), layers))
    background = np.random.default_rng(1).uniform(0.001, 0.01, (len(sinks), layers))
    return np.where(sinks, drawn, background)


def write(path: Path, states: NDArray[np.float64], **options: Any) -> Path:
    sample = np.repeat(np.arange(SAMPLES), LENGTH)
    return write_synthetic(path, states.astype(np.float32), sample, **options)
