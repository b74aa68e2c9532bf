"""The rule that decides sink tokens in one layer, made once from a profile and cheap to apply at every step."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from sinkscope.profile.schema import Profile
from sinkscope.profile.score import ScoreName, threshold_at


@dataclass(frozen=True)
class SinkRule:
    """Decides as `sinkscope.profile.score.sink_mask` does, without reading the profile again.

    Attributes
    ----------
    dims : tuple of int
        The sink dimensions of the layer.
    magnitude : float or None
        A token is a sink where sqrt(sum over dims of x[d]^2) is at least this (the calibrated score) ...
    tau : float or None
        ... or, without a calibrated score, where phi(x) is at least this.
    """

    dims: tuple[int, ...]
    magnitude: float | None
    tau: float | None

    def __call__(self, hidden_state: Tensor) -> Tensor:
        """Sink tokens: BoolTensor [B, T] for the hidden state entering the layer, Tensor [B, T, D]."""
        # Slices, because indexing with a list would copy it to the device at every step.
        parts = [hidden_state[..., dim : dim + 1] for dim in self.dims]
        values = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self.magnitude is not None:
            if len(parts) == 1:
                return values[..., 0].abs().float() >= self.magnitude
            return torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32) >= self.magnitude
        tau = cast(float, self.tau)
        norm = torch.linalg.vector_norm(hidden_state, dim=-1, dtype=torch.float32)
        largest = values[..., 0].abs() if len(parts) == 1 else values.abs().amax(-1)
        # phi >= tau without the division; at x = 0 nothing is above it.
        least = norm.clamp_min(torch.finfo(torch.float32).tiny) * (tau / math.sqrt(hidden_state.shape[-1]))
        return largest.float() >= least


def rule_at(profile: Profile, layer: int, *, score: ScoreName = "auto", tau: float | None = None) -> SinkRule | None:
    """The rule of `layer`, or None where the profile has no sinks there.

    Parameters
    ----------
    profile : Profile
        Of the model's backbone.
    layer : int
        Decoder layer; the rule is for the hidden state entering it.
    score, tau
        As in `sinkscope.profile.score.sink_mask`.

    Raises
    ------
    InputError
        If "calibrated" is asked of a profile without a calibrated score in this layer.
    """
    found = threshold_at(profile, layer, score=score, tau=tau)
    if found is None:
        return None
    dims, scale, threshold = found
    if scale is None:
        return SinkRule(tuple(dims), None, threshold)
    return SinkRule(tuple(dims), threshold * scale, None)
