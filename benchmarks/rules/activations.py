"""What a published rule sees, and what it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]

TINY = float(np.finfo(np.float32).tiny)
TAU = 20.0


@dataclass(frozen=True)
class Activations:
    """What a published rule may look at.

    Attributes
    ----------
    states : float32 [L+1, T, D]
        Hidden states entering layers 0..L; any sequence of [T, D] arrays will do.
    sample : int64 [T]
        Sample of every token; the tokens of a sample lie together, in order.
    position : int64 [T]
        Place of every token in its sample, from 0.
    visual : bool [T]
    drawn : float32 [T, L] or None
        Attention that a token draws: mean over heads and strictly later queries of its sample; NaN where a layer has no
        softmax attention; None where attention was not measured.
    """

    states: Sequence[NDArray[np.float32]] | NDArray[np.float32]
    sample: NDArray[np.int64]
    position: NDArray[np.int64]
    visual: Mask
    drawn: NDArray[np.float32] | None

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.states) - 1

    def spans(self) -> list[slice]:
        """The tokens of every sample."""
        edges = np.flatnonzero(np.diff(self.sample)) + 1
        starts, ends = [0, *edges.tolist()], [*edges.tolist(), len(self.sample)]
        return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class Rule:
    """A published rule.

    Attributes
    ----------
    name : str
    source : str
        Where the rule was published.
    definition : str
        One sentence.
    dims : callable or None
        The sink dimensions that the rule names, strongest first; None where the rule names none.
    tokens : callable or None
        bool [T]: the tokens entering a layer that the rule calls sinks, given its own dims; None where the rule finds
        none.
    needs_attention : bool
        The rule says nothing where attention was not measured.
    """

    name: str
    source: str
    definition: str
    dims: Callable[[Activations], list[int]] | None
    tokens: Callable[[Activations, int, list[int]], Mask] | None
    needs_attention: bool = False


def root_mean_square(states: Floats) -> Floats:
    """RMS(x) of every token, float32 [T], never 0."""
    return np.maximum(np.sqrt(np.mean(np.square(states), axis=1)), TINY)


def phi_tokens(activations: Activations, layer: int, dims: list[int]) -> Mask:
    """Tokens with max over `dims` of abs(x[d]) / RMS(x) >= 20: the published tau, with a rule's own dimensions."""
    states = activations.states[layer]
    if not dims:
        return np.zeros(len(states), bool)
    return np.abs(states[:, dims]).max(axis=1) >= TAU * root_mean_square(states)


def strongest_first(strength: dict[int, float]) -> list[int]:
    """Dimensions by falling strength, ties by number."""
    return [dim for dim, _ in sorted(strength.items(), key=lambda pair: (-pair[1], pair[0]))]
