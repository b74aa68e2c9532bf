"""Seeded choices of samples and tokens that depend on contents alone.

A choice over several sets together can be made again from the choices over each, whatever their order: what is chosen
of all is a part of what was chosen of each. So merged runs keep the same samples and tokens as one run over all data.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkscope.store.tokens import TokenTable

ALL_TOKENS = 2**62


def kept_budget(settings: Mapping[str, Any]) -> int:
    """The budget of `choose_tokens` with which a run of these settings keeps hidden states."""
    budgets = {"all": ALL_TOKENS, "none": 0}
    return int(budgets.get(settings.get("keep", ""), settings["sampled_tokens"]))


def content_fingerprint(content: bytes) -> int:
    """A number of 64 bits that tells contents apart: BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def choose_tokens(tokens: TokenTable, fingerprints: NDArray[np.uint64], budget: int, seed: int) -> NDArray[np.int64]:
    """Rows of about `budget` tokens whose hidden states are stored, int64 [S], ascending.

    A token is chosen where a hash of (seed, fingerprint of its sample, position) falls below the rate budget / N.

    Parameters
    ----------
    tokens : TokenTable
        N tokens.
    fingerprints : uint64 [samples]
        Of the samples' contents.
    budget, seed : int
    """
    rate = min(1.0, budget / max(1, len(tokens)))
    samples = _mix(_number(seed) + fingerprints)
    chosen = [np.zeros(0, np.int64)]
    for (rows, sample), (_, position) in zip(tokens.blocks("sample"), tokens.blocks("position"), strict=True):
        hashed = _mix(samples[sample] + position.astype(np.uint64))
        chosen.append(rows.start + np.flatnonzero(hashed / 2.0**64 < rate))
    return np.concatenate(chosen)


def choose_samples(
    candidates: NDArray[np.int64], fingerprints: NDArray[np.uint64], number: int, seed: int
) -> NDArray[np.int64]:
    """`number` of the candidates, or all where there are fewer: a seeded choice, ascending.

    Parameters
    ----------
    candidates : int64 [C]
        Sample numbers.
    fingerprints : uint64 [samples]
        Of the samples' contents; the candidates with the lowest hashes of (seed, fingerprint) are chosen.
    number, seed : int
    """
    hashed = _mix(_mix(_number(seed + 1)) + fingerprints[candidates])
    return np.sort(candidates[np.argsort(hashed, kind="stable")[:number]])


def _number(seed: int) -> NDArray[np.uint64]:
    return np.array([seed % 2**64], np.uint64)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): spreads neighbouring integers over all 64 bits."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
