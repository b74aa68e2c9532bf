"""Seeded choices that do not depend on the order in which tokens are computed."""

import numpy as np
from numpy.typing import NDArray

from sinkscope.store.layout import TokenTable


def choose_tokens(tokens: TokenTable, budget: int, seed: int) -> NDArray[np.int64]:
    """Rows of about `budget` tokens whose hidden states are stored, int64 [S], ascending.

    A token is chosen where a hash of (seed, sample, position) falls below the rate budget / N, so that the choice
    depends neither on batches nor on their order.
    """
    rate = min(1.0, budget / max(1, len(tokens)))
    hashed = _mix(_mix(_number(seed) + tokens.sample.astype(np.uint64)) + tokens.position.astype(np.uint64))
    return np.flatnonzero(hashed / 2.0**64 < rate).astype(np.int64)


def choose_samples(candidates: NDArray[np.int64], number: int, seed: int) -> NDArray[np.int64]:
    """`number` of the candidates, or all where there are fewer: a seeded choice, ascending."""
    hashed = _mix(_mix(_number(seed + 1)) + candidates.astype(np.uint64))
    return np.sort(candidates[np.argsort(hashed, kind="stable")[:number]])


def causal_expectation(length: int) -> NDArray[np.float32]:
    """What uniform causal attention gives a token from its strictly later queries: float32 [length], NaN at the end.

    Query i sees i + 1 keys, so token j draws the mean of 1 / (i + 1) over i > j.
    """
    shares = 1.0 / np.arange(1, length + 1)
    later = np.arange(length)[::-1]
    total = np.cumsum(shares[::-1])[::-1] - shares
    with np.errstate(invalid="ignore"):
        return np.where(later > 0, total / np.maximum(later, 1), np.nan).astype(np.float32)


def _number(seed: int) -> NDArray[np.uint64]:
    return np.array([seed % 2**64], np.uint64)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): spreads neighbouring integers over all 64 bits."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
