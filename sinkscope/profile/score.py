"""Sink scores of hidden states: the paper's phi, and the calibrated score of a profile."""

import math
from typing import Literal

import torch
from torch import Tensor

from sinkscope.errors import InputError, ProfileError
from sinkscope.profile.schema import Profile

PUBLISHED_TAU = 20.0
"""tau of Kang et al. (ICLR 2025), for LLaMA-2-7B with its 4096 dimensions."""

ScoreName = Literal["auto", "phi", "calibrated"]


def phi(hidden_state: Tensor, dims: list[int]) -> Tensor:
    """phi(x) = max over `dims` of abs(x[d]) / RMS(x), without norm weight (Kang et al., ICLR 2025).

    Parameters
    ----------
    hidden_state : Tensor [..., D]
        Hidden states of any floating dtype.
    dims : list of int
        Sink dimensions, at least one.

    Returns
    -------
    Tensor [...], float32
        Between 0 and sqrt(D); 0 where the hidden state is zero.
    """
    magnitude = hidden_state[..., dims].abs().amax(-1).float()
    # In float32 because squares of massive activations overflow float16, and vector_norm accumulates there
    # without a float32 copy of the whole hidden state.
    norm = torch.linalg.vector_norm(hidden_state, dim=-1, dtype=torch.float32)
    return magnitude * math.sqrt(hidden_state.shape[-1]) / norm.clamp_min(torch.finfo(torch.float32).tiny)


def joint_magnitude(hidden_state: Tensor, dims: list[int]) -> Tensor:
    """sqrt(sum over `dims` of x[d]^2) in float32, Tensor [...]: what the calibrated score is a multiple of."""
    return torch.linalg.vector_norm(hidden_state[..., dims], dim=-1, dtype=torch.float32)


def sink_mask(
    hidden_state: Tensor,
    profile: Profile,
    layer: int,
    *,
    score: ScoreName = "auto",
    tau: float | None = None,
) -> Tensor:
    """Which tokens are sink tokens in `layer`.

    Parameters
    ----------
    hidden_state : Tensor [..., D]
        The hidden state entering decoder layer `layer`: the raw residual stream, before any norm.
    profile : Profile
        The profile of the backbone. Outside the layers in which its dimensions act, no token is a sink.
    layer : int
        Index as in transformers' ``hidden_states[layer]``.
    score : "auto", "phi" or "calibrated"
        "phi" is the paper's rule, phi(x) >= tau. "calibrated" compares the joint magnitude of the band's dimensions
        with the layer's own scale. "auto" takes the calibrated score where the profile carries one, else phi.
    tau : float, optional
        Threshold on the chosen score in place of the profile's.

    Returns
    -------
    BoolTensor [...]

    Raises
    ------
    ProfileError
        If the hidden size is not the profile's.
    InputError
        If "calibrated" is asked of a profile without a calibrated score.
    """
    width = profile.backbone.hidden_size
    if hidden_state.shape[-1] != width:
        raise ProfileError(
            f"profile {profile.name} is for hidden size {width}, the hidden state has {hidden_state.shape[-1]}; "
            "use the profile of this backbone"
        )
    rule = threshold_at(profile, layer, score=score, tau=tau)
    if rule is None:
        return torch.zeros(hidden_state.shape[:-1], dtype=torch.bool, device=hidden_state.device)
    dims, scale, threshold = rule
    if scale is None:
        return phi(hidden_state, dims) >= threshold
    return joint_magnitude(hidden_state, dims) >= threshold * scale


def threshold_at(
    profile: Profile, layer: int, *, score: ScoreName = "auto", tau: float | None = None
) -> tuple[list[int], float | None, float] | None:
    """The rule that decides sink tokens in `layer`: (dims, scale, threshold), or None where none are.

    With a scale the score is the joint magnitude of the dims over that scale; with scale None it is phi.
    """
    if not profile.sink_dimensions:
        return None
    band = profile.band_at(layer)
    if profile.bands and band is None:
        return None
    if band is None:
        dims = [entry.dim for entry in profile.sink_dimensions if _acts(entry.first_layer, entry.last_layer, layer)]
        if not dims:
            return None
        band_tau = None
    else:
        dims, band_tau = band.dims, band.tau_phi
    calibration = band.calibration_at(layer) if band is not None and score != "phi" else None
    if calibration is not None:
        scale, threshold = calibration
        return dims, scale, threshold if tau is None else tau
    if score == "calibrated":
        raise InputError(f"profile {profile.name} has no calibrated score at layer {layer}; use score='phi'")
    if tau is None:
        tau = band_tau
    if tau is None and profile.tau is not None:
        tau = profile.tau.phi
    return dims, None, PUBLISHED_TAU if tau is None else tau


def _acts(first: int | None, last: int | None, layer: int) -> bool:
    return (first is None or layer >= first) and (last is None or layer <= last)
