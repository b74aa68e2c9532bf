"""Magnitudes of chosen dimensions on every calibration token, out of a run file."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sinkscope.significance import Floats
from sinkscope.store.reader import RunReader

CACHED_BYTES, KEPT_BYTES = 2**28, 68
"""Of each kind so much is kept at most; a token's largest coordinates in a layer take so much."""


class TokenMagnitudes:
    """Signed values and joint magnitudes of dimensions on all tokens, layer by layer.

    A run keeps the few largest coordinates of every token exactly. Where a dimension is not among them its value is
    ordinary: it is taken as the dimension's typical magnitude, never more than the smallest coordinate kept.

    Parameters
    ----------
    run : RunReader
        An open run file.
    typical : float64 [L+1, D]
        Typical magnitude of every dimension.
    """

    def __init__(self, run: RunReader, typical: Floats) -> None:
        self._run = run
        self._typical = typical
        # The same few layers and dimensions are asked for again and again; bounds keep memory small on large runs.
        count = max(len(run.tokens), 1)
        self._kept_at = lru_cache(maxsize=max(1, CACHED_BYTES // (KEPT_BYTES * count)))(run.largest)
        self._values = lru_cache(maxsize=max(8, CACHED_BYTES // (8 * count)))(self._compute)
        self._rms = lru_cache(maxsize=None)(lambda layer: self._kept_at(layer)[2].astype(np.float64))

    def values(self, layer: int, dim: int) -> Floats:
        """x[d] of every token entering `layer`, float64 [N]; not to be written to."""
        return self._values(layer, dim)

    def _compute(self, layer: int, dim: int) -> Floats:
        kept_dim, kept_value, _ = self._kept_at(layer)
        match = kept_dim == dim
        value = np.where(match, kept_value, 0.0).sum(1, dtype=np.float64)
        bound = np.abs(kept_value[:, -1]).astype(np.float64)
        return np.where(match.any(1), value, np.minimum(self._typical[layer, dim], bound))

    def joint(self, layer: int, dims: Sequence[int]) -> Floats:
        """sqrt(sum over `dims` of x[d]^2) of every token, float64 [N]."""
        return np.sqrt(sum(self.values(layer, dim) ** 2 for dim in dims))

    def phi(self, layer: int, dims: Sequence[int]) -> Floats:
        """max over `dims` of abs(x[d]) / RMS(x) of every token, float64 [N] (Kang et al., ICLR 2025)."""
        peak = np.max([np.abs(self.values(layer, dim)) for dim in dims], axis=0)
        return peak / np.maximum(self.rms(layer), np.finfo(np.float32).tiny)

    def rms(self, layer: int) -> Floats:
        """RMS(x) of every token, float64 [N]; not to be written to."""
        return self._rms(layer)

    def largest_coordinates(self, layer: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The few largest coordinates of every token: dimensions int32 [N, M] and values float32 [N, M]."""
        return self._kept_at(layer)[:2]
