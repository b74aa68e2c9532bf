"""What an edit changes, with intervals from a bootstrap on two levels: samples, and draws of partners within them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkscope.causal.settings import CausalSettings

BAND, NETWORK = 0, 1
LEAST_DRAWN = 1e-6
"""Below this much attention there is nothing that could fall."""


@dataclass(frozen=True)
class Effect:
    """What the edits of one comparison change in one sample.

    Attributes
    ----------
    before : float64 [2, n]
        Attention that each of the n measured sink tokens draws without edit: the mean over the layers from the edited
        one to the end of its band, and to the end of the network. NaN where it cannot be measured.
    after : float64 [d, 2, n]
        The same under each of the d edits.
    loss : float64 [d] or None
        Change of the loss on later text tokens, in nats; None where there are none.
    kinds : uint8 [n]
        Kinds of the measured tokens.
    moved : float
        Share of the tokens' energy that the edits move or remove.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    loss: NDArray[np.float64] | None
    kinds: NDArray[np.uint8]
    moved: float


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float

    def to_json(self, name: str) -> dict[str, Any]:
        """As two fields of a result."""
        return {name: number(self.value), f"{name}_interval": [number(self.low), number(self.high)]}


def describe(effects: Sequence[Effect], settings: CausalSettings, kinds: Sequence[int] = ()) -> dict[str, Any]:
    """One comparison, ready for JSON.

    Parameters
    ----------
    effects : sequence of Effect
        One for each sample.
    settings : CausalSettings
    kinds : sequence of int
        Kinds of tokens to tell apart.

    Returns
    -------
    dict
        `moved_energy`; `band` and `network` with `before`, `after`, `fall` and its interval (null where attention is
        not measured or nothing is drawn); `loss_change` with its interval (null where there is no later text); for
        kinds, `kinds` with the band's fall by kind.
    """
    found: dict[str, Any] = {"moved_energy": number(float(np.median([effect.moved for effect in effects])))}
    for name, part in (("band", BAND), ("network", NETWORK)):
        found[name] = _attention(effects, part, settings)
    losses = [effect.loss for effect in effects if effect.loss is not None]
    if losses:
        found |= mean_change(np.stack(losses), settings).to_json("loss_change")
    else:
        found |= {"loss_change": None, "loss_change_interval": None}
    if kinds:
        found["kinds"] = {str(kind): _attention(effects, BAND, settings, kind) for kind in kinds}
    return found


def _attention(
    effects: Sequence[Effect], part: int, settings: CausalSettings, kind: int | None = None
) -> dict[str, Any] | None:
    pairs = []
    for effect in effects:
        chosen = np.ones(len(effect.kinds), bool) if kind is None else effect.kinds == kind
        if chosen.any():
            pairs.append((effect.before[part, chosen].mean(), effect.after[:, part, chosen].mean(axis=1)))
    if not pairs:
        return None
    before, after = np.array([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])
    if not np.isfinite(before).all() or not np.isfinite(after).all() or before.mean() < LEAST_DRAWN:
        return None
    means = {"before": number(before.mean()), "after": number(after.mean())}
    return means | relative_fall(before, after, settings).to_json("fall")


def relative_fall(before: NDArray[np.float64], after: NDArray[np.float64], settings: CausalSettings) -> Estimate:
    """1 - mean(after) / mean(before): a ratio of means, so that samples that draw little do not decide.

    Parameters
    ----------
    before : float64 [S]
        Attention drawn in each sample.
    after : float64 [S, d]
        The same under each of its d edits.
    settings : CausalSettings
    """
    samples, draws = _resampled(after.shape, settings)
    means = after[samples[..., None], draws].mean(axis=(1, 2))
    falls = 1.0 - means / np.maximum(before[samples].mean(axis=1), LEAST_DRAWN)
    return _estimate(1.0 - after.mean() / before.mean(), falls, settings)


def mean_change(change: NDArray[np.float64], settings: CausalSettings) -> Estimate:
    """The mean of float64 [S, d], over samples and draws."""
    samples, draws = _resampled(change.shape, settings)
    return _estimate(change.mean(), change[samples[..., None], draws].mean(axis=(1, 2)), settings)


def _resampled(shape: tuple[int, ...], settings: CausalSettings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the samples [R, S], and of the draws within each of them [R, S, d], for values [S, d]."""
    samples, draws = shape
    generator = np.random.default_rng([settings.seed, samples, draws])
    chosen = generator.integers(samples, size=(settings.resamples, samples))
    return chosen, generator.integers(draws, size=(settings.resamples, samples, draws))


def _estimate(value: float, resampled: NDArray[np.float64], settings: CausalSettings) -> Estimate:
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    # A percentile interval may miss the estimate itself where one sample decides.
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))


def number(value: float) -> float | None:
    """Four significant digits, and null for what JSON cannot hold."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
