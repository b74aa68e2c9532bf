"""The rule that decides sink tokens in one layer, made once from a profile and cheap to apply at every step."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from sinkscope.profile.schema import Profile
from sinkscope.profile.score import ScoreName, threshold_at

SMALLEST = torch.finfo(torch.float32).tiny


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
        # One by one, because indexing with a list would copy it to the device at every step.
        values = torch.stack([hidden_state.select(-1, dim) for dim in self.dims])
        if self.magnitude is not None:
            return torch.linalg.vector_norm(values, dim=0, dtype=torch.float32) >= self.magnitude
        # phi >= tau without the division; at x = 0 nothing is above it.
        least = _norm(hidden_state).clamp_min(SMALLEST) * self._least_share(hidden_state)
        return values.abs().amax(0).float() >= least

    def of_one_token(self, hidden_state: Tensor) -> list[bool]:
        """Which samples' one token is a sink, Tensor [B, 1, D]: by the same rule, and with few operations on tensors.

        At every decoding step and layer these would cost more than the arithmetic. Waits for the device.
        """
        columns = [hidden_state.select(-1, dim).tolist() for dim in self.dims]
        tokens = [[value for (value,) in token] for token in zip(*columns, strict=True)]
        if self.magnitude is not None:
            return [math.hypot(*values) >= self.magnitude for values in tokens]
        share = self._least_share(hidden_state)
        norms = _norm(hidden_state).tolist()
        return [
            max(map(abs, values)) >= max(norm, SMALLEST) * share for values, (norm,) in zip(tokens, norms, strict=True)
        ]

    def _least_share(self, hidden_state: Tensor) -> float:
        """Least |x[d]| of a sink token over the norm of x."""
        return cast(float, self.tau) / math.sqrt(hidden_state.shape[-1])


def _norm(hidden_state: Tensor) -> Tensor:
    return torch.linalg.vector_norm(hidden_state, dim=-1, dtype=torch.float32)


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
