"""How a store's profile and the published rules' answers are scored against what was planted. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.known_truth import Truth
from benchmarks.known_truth.case import Mask
from benchmarks.rules import Activations, Rule
from sinkscope.profile.schema import Profile
from sinkscope.profile.score import sink_mask


@dataclass
class TokenScore:
    """Tokens of the judged layers: sinks missed and tokens flagged for nothing.

    Attributes
    ----------
    sinks, tokens : int
        In layers where there are sink tokens.
    missed, false : int
        There.
    outside, outside_false : int
        Tokens of the other judged layers, and how many of them are flagged.
    """

    sinks: int = 0
    tokens: int = 0
    missed: int = 0
    false: int = 0
    outside: int = 0
    outside_false: int = 0

    def add(self, truth: Mask, flagged: Mask) -> None:
        """Count one layer."""
        if truth.any():
            self.sinks += int(truth.sum())
            self.tokens += len(truth)
            self.missed += int((truth & ~flagged).sum())
            self.false += int((flagged & ~truth).sum())
        else:
            self.outside += len(truth)
            self.outside_false += int(flagged.sum())

    @property
    def row(self) -> list[int]:
        """The counts, in the order of the attributes."""
        return list(asdict(self).values())


@dataclass
class Outcome:
    """What one method said about one store.

    Attributes
    ----------
    dims : tuple of int or None
        None where the method cannot say anything: it needs attention and there is none.
    tokens : TokenScore
    """

    dims: tuple[int, ...] | None
    tokens: TokenScore = field(default_factory=TokenScore)


def judged_layers(truth: Truth) -> list[int]:
    """Layers whose sink tokens are certain."""
    return [layer for layer in range(truth.case.layers) if not truth.unsure[layer]]


def profile_tokens(truth: Truth, profile: Profile) -> TokenScore:
    """Sink tokens of the profile against the planted ones, in all judged layers."""
    score = TokenScore()
    for layer in judged_layers(truth):
        flagged = sink_mask(torch.from_numpy(truth.states[layer]), profile, layer).numpy()
        score.add(truth.sinks[layer], flagged)
    return score


def extent_error(truth: Truth, profile: Profile) -> tuple[int, int]:
    """Judged layers in which the profile's bands and the truth disagree on a sink dimension, and how many there are."""
    wrong = total = 0
    for dim in truth.dims:
        acting = {layer for layer in judged_layers(truth) if truth.acting[dim][layer]}
        banded = {
            layer
            for band in profile.bands
            if dim in band.dims
            for layer in range(band.first_layer, band.last_layer + 1)
            if not truth.unsure[layer]
        }
        wrong += len(acting ^ banded)
        total += len(acting)
    return wrong, total


def activations(truth: Truth) -> Activations:
    """What the published rules see of a store."""
    tokens = truth.tokens
    return Activations(
        truth.states, tokens.sample.astype(np.int64), tokens.position.astype(np.int64), tokens.kind == 2, truth.drawn
    )


def rule_outcome(rule: Rule, data: Activations, truth: Truth, tokens: bool) -> Outcome:
    """What a rule finds; its tokens where asked for, in at most four of the judged layers, sinks in half of them."""
    if rule.needs_attention and data.drawn is None:
        return Outcome(None)
    dims = rule.dims(data) if rule.dims else []
    outcome = Outcome(tuple(sorted(dims)))
    if not tokens or rule.tokens is None:
        return outcome
    inside = [layer for layer in judged_layers(truth) if truth.sinks[layer].any()]
    outside = [layer for layer in judged_layers(truth) if not truth.sinks[layer].any()]
    # The attention of tokens with few later queries is too noisy for a rule that goes by nothing else.
    known = truth.tokens.judged if rule.dims is None and rule.needs_attention else slice(None)
    for layer in inside[:: max(1, len(inside) // 2)][:2] + outside[:2]:
        outcome.tokens.add(truth.sinks[layer][known], rule.tokens(data, layer, dims)[known])
    return outcome


def clopper_pearson(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval for a proportion (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    if trials == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return low, high


def rate(hits: int, trials: int) -> dict[str, Any]:
    """A proportion with its interval, ready for JSON."""
    low, high = clopper_pearson(hits, trials)
    share = hits / trials if trials else math.nan
    return {"hits": hits, "of": trials, "rate": _short(share), "interval": [_short(low), _short(high)]}


def accuracy(exact: Sequence[bool | None]) -> dict[str, Any] | None:
    """Exact-set accuracy over the stores that a method has an answer to; None where it has none."""
    known = [value for value in exact if value is not None]
    return rate(sum(known), len(known)) if known else None


def _short(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.5g}")
