"""What is read off the hidden states entering one layer, and the mathematics that every device shares.

`reading_on_cpu` and `reading_on_device` compute the same numbers, each in the way that suits its device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.capture.statistics import LayerStatistics

SMALLEST_RMS = 1e-18
"""A token below it counts as all zero: it has no direction and adds nothing. Squares of inverses stay in float32."""

LEADING_RATIO = 0.05
"""Dimensions with at least this part of the energy of the token's largest are its leading dimensions."""

TINY, HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


@dataclass(frozen=True)
class LayerReading:
    """What is kept of T tokens, on their device.

    Attributes
    ----------
    dim : int64 [T, M]
        Dimensions of the M largest magnitudes, sorted down.
    value : float32 [T, M]
        Their x_d.
    rms : float32 [T]
        RMS(x).
    odds : float32 [T, M]
        Their odds.
    statistics : LayerStatistics
        The accumulators with these tokens.
    """

    dim: Tensor
    value: Tensor
    rms: Tensor
    odds: Tensor
    statistics: LayerStatistics


@dataclass(frozen=True)
class TokenEnergies:
    """The squared norms of T tokens, split so that odds lose nothing when a few dimensions hold nearly all of them.

    Attributes
    ----------
    largest : float32 [T, M]
        x_d^2 of the M largest magnitudes, sorted down.
    rest, total, rms : float32 [T]
        The sum of all other x_d^2, ||x||^2, and RMS(x).
    """

    largest: Tensor
    rest: Tensor
    total: Tensor
    rms: Tensor

    @classmethod
    def of(cls, largest: Tensor, rest: Tensor, width: int) -> "TokenEnergies":
        """From the squares of the largest [T, M] and the sum of all others [T]."""
        total = rest + largest.sum(dim=1)
        return cls(largest, rest, total, (total / width).sqrt())

    def odds(self) -> Tensor:
        """The odds of the M largest dimensions, float32 [T, M]; finite.

        x_d^2 / (||x||^2 - x_d^2); for a leading dimension, one with at least `LEADING_RATIO` of the energy of the
        token's largest, the other leading ones are left out of the denominator. So a dimension is not hidden by fellows
        that are as massive, and one that rides along far below them is.
        """
        leading = self.largest >= LEADING_RATIO * self.largest[:, :1]
        behind = self.rest + self.largest.masked_fill(leading, 0.0).sum(dim=1)
        others = torch.where(leading, behind[:, None], self.total[:, None] - self.largest)
        return (self.largest / others.clamp_min(TINY)).clamp_max(HUGE)
