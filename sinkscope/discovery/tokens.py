"""Magnitudes of chosen dimensions on every calibration token, out of a run file."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sinkscope.significance import Floats
from sinkscope.store.reader import RunReader

CACHED_BYTES = 2**28
"""So much is kept of the run's rows, and once and a half as much of what is computed from them."""
KEPT_BYTES = 68
"""A token's largest coordinates in a layer take so much."""
ROWS = 2**14
"""Tokens looked at together: their rows fit the processor's cache."""

Made = TypeVar("Made")
Coordinates = tuple[NDArray[np.int32], NDArray[np.float32]]
Rows = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]


class Latest(Generic[Made]):
    """What was made last, at most so many of a kind."""

    def __init__(self, most: int, least: int = 1) -> None:
        self._most = max(most, least)
        self._held: dict[Hashable, Made] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The value of `key`, made where it is not held any more."""
        if key in self._held:
            value = self._held.pop(key)
        else:
            # Before the new one is made, so that it finds room.
            while len(self._held) >= self._most:
                del self._held[next(iter(self._held))]
            value = make()
        self._held[key] = value
        return value


class ByLayer(Mapping[int, Made]):
    """Arrays of layers, made when they are asked for: those of all layers would not fit into memory."""

    def __init__(self, layers: Sequence[int], make: Callable[[int], Made]) -> None:
        self._layers, self._make = layers, make

    def __getitem__(self, layer: int) -> Made:
        if layer not in self._layers:
            raise KeyError(layer)
        return self._make(layer)

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class TokenMagnitudes:
    """Signed values and joint magnitudes of dimensions on all tokens, layer by layer.

    A run keeps the few largest coordinates of every token exactly. Where a dimension is not among them its value is
    ordinary: it is taken as the dimension's typical magnitude, never more than the smallest coordinate kept.

    Arrays that it gives are not to be written to.

    Parameters
    ----------
    run : RunReader
        An open run file.
    typical : float64 [L+1, D]
        Typical magnitude of every dimension.
    judged : int64 [A]
        Rows of the tokens whose attention was measured: few, and asked for most often.
    """

    def __init__(self, run: RunReader, typical: Floats, judged: NDArray[np.int64]) -> None:
        self._run = run
        self._typical = typical
        self._judged_rows = judged
        # The same layers and dimensions are asked for again and again; bounds keep memory small on large runs.
        count = max(len(run.tokens), 1)
        self._largest: Latest[Rows] = Latest(CACHED_BYTES // (KEPT_BYTES * count))
        self._values: Latest[Floats] = Latest(CACHED_BYTES // 2 // (8 * count), least=4)
        self._phi: Latest[Floats] = Latest(CACHED_BYTES // 2 // (8 * count))
        self._reaching: Latest[NDArray[np.bool_]] = Latest(CACHED_BYTES // 4 // count)
        self._judged: Latest[Coordinates] = Latest(CACHED_BYTES // 4 // (KEPT_BYTES * max(len(judged), 1)))

    def values(self, layer: int, dim: int, rows: NDArray[np.generic] | None = None) -> Floats:
        """x[d] of every token entering `layer`, float64 [N]; or of the chosen rows [n]."""
        if rows is None:
            return self._values.get((layer, dim), lambda: self._computed(layer, dim))
        if (layer, dim) in self._values:
            return self.values(layer, dim)[rows]
        return self._of(_chosen(self.largest_coordinates(layer), rows), layer, dim)

    def _computed(self, layer: int, dim: int) -> Floats:
        coordinates = self.largest_coordinates(layer)
        found = np.empty(len(coordinates[0]))
        for start in range(0, len(found), ROWS):
            part = slice(start, start + ROWS)
            found[part] = self._of(_chosen(coordinates, part), layer, dim)
        return found

    def _of(self, coordinates: Coordinates, layer: int, dim: int) -> Floats:
        """x[d] of tokens with such largest coordinates, which are of different dimensions."""
        dims, values = coordinates
        found = np.minimum(self._typical[layer, dim], np.abs(values[:, -1]).astype(np.float64))
        for place in range(dims.shape[1]):
            np.copyto(found, values[:, place], where=dims[:, place] == dim)
        return found

    def joint(self, layer: int, dims: Sequence[int], rows: NDArray[np.generic] | None = None) -> Floats:
        """sqrt(sum over `dims` of x[d]^2) of every token, float64 [N]; or of the chosen rows [n]."""
        return np.sqrt(reduce(np.add, (self.values(layer, dim, rows) ** 2 for dim in dims)))

    def leading(self, layer: int, dims: Sequence[int], rows: NDArray[np.generic] | None = None) -> Floats:
        """max over `dims` of abs(x[d]) of every token, float64 [N]; or of the chosen rows [n]."""
        return reduce(np.maximum, (np.abs(self.values(layer, dim, rows)) for dim in dims))

    def phi(self, layer: int, dims: Sequence[int]) -> Floats:
        """max over `dims` of abs(x[d]) / RMS(x) of every token, float64 [N] (Kang et al., ICLR 2025)."""
        return self._phi.get(
            (layer, *dims),
            lambda: self.leading(layer, dims) / np.maximum(self.rms(layer), np.finfo(np.float32).tiny),
        )

    def reaching(self, layer: int, dims: Sequence[int], scale: float, least: float) -> NDArray[np.bool_]:
        """Whether the joint magnitude over `scale` is at least `least`, bool [N]."""
        return self._reaching.get((layer, scale, least, *dims), lambda: self.joint(layer, dims) / scale >= least)

    def rms(self, layer: int) -> Floats:
        """RMS(x) of every token, float64 [N]."""
        return self._rows(layer)[2].astype(np.float64)

    def largest_coordinates(self, layer: int) -> Coordinates:
        """The few largest coordinates of every token: dimensions int32 [N, M] and values float32 [N, M]."""
        return self._rows(layer)[:2]

    def judged_coordinates(self, layer: int) -> Coordinates:
        """Those of the tokens whose attention was measured: int32 [A, M] and float32 [A, M]."""
        return self._judged.get(layer, lambda: _chosen(self.largest_coordinates(layer), self._judged_rows))

    def judged_values(self, layer: int, dim: int) -> Floats:
        """x[d] of the tokens whose attention was measured, float64 [A]."""
        return self._of(self.judged_coordinates(layer), layer, dim)

    def judged_joint(self, layer: int, dims: Sequence[int]) -> Floats:
        """sqrt(sum over `dims` of x[d]^2) of the tokens whose attention was measured, float64 [A]."""
        return np.sqrt(reduce(np.add, (self.judged_values(layer, dim) ** 2 for dim in dims)))

    def _rows(self, layer: int) -> Rows:
        return self._largest.get(layer, lambda: self._run.largest(layer))


def _chosen(coordinates: Coordinates, rows: NDArray[np.generic] | slice) -> Coordinates:
    dims, values = coordinates
    return dims[rows], values[rows]
