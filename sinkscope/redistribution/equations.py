"""Visual Attention Redistribution (VAR), stated as in the paper: pure tensor functions, unoptimised.

Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025
(https://arxiv.org/abs/2503.03321). In a layer with sink tokens S and visual tokens V, for the attention weights a of
one (head, query):

    the head is image-centric   iff   sum_V a >= attention_floor   and   sum_(V \\ S) a / sum_V a >= rho
    donors                      a_j <- (1 - p) a_j                 for j in S;  Omega = p * sum_S a
    receivers                   a_j <- a_j + Omega * a_j / sum_(V \\ S) a           for j in V \\ S

Everything faster in this package is tested against `redistribute`.
"""

from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from sinkscope.errors import InputError

Donors = Literal["all", "visual"]
Receivers = Literal["visual", "text", "all"]

SMALLEST_MASS = torch.finfo(torch.float32).tiny
"""Receivers with less attention than the smallest normal float32 count as having none."""


@dataclass(frozen=True)
class VarConfig:
    """The settings of VAR, in the paper's conventions.

    Attributes
    ----------
    p : float
        The *recycled* fraction of a donor's attention, in [0, 1]. 0 changes nothing, 1 takes all of it.
    rho : float
        Lower bound on the visual *non-sink* ratio of an image-centric head, in [0, 1].
    attention_floor : float
        Least attention on visual tokens of an image-centric head, in [0, 1].
    donors : "all" or "visual"
        Which sink tokens give: all of the layer, text sinks included (paper), or visual sinks only.
    receivers : "visual", "text" or "all"
        Which non-sink tokens receive: visual (paper), text, or both. The other two are the paper's ablations.
    head_selection : bool
        Whether only image-centric heads are edited (paper). Without it, the paper's scores collapse.

    Raises
    ------
    InputError
        If a value is outside its range.
    """

    p: float = 0.6
    rho: float = 0.8
    attention_floor: float = 0.2
    donors: Donors = "all"
    receivers: Receivers = "visual"
    head_selection: bool = True

    def __post_init__(self) -> None:
        for name in ("p", "rho", "attention_floor"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise InputError(f"{name} is {value!r}; give a number from 0 to 1")
        if self.donors not in get_args(Donors):
            raise InputError(f"donors is {self.donors!r}; choose one of {', '.join(get_args(Donors))}")
        if self.receivers not in get_args(Receivers):
            raise InputError(f"receivers is {self.receivers!r}; choose one of {', '.join(get_args(Receivers))}")

    @classmethod
    def from_reference_code(cls, *, rho: float, p: float) -> Self:
        """Settings from the conventions of the authors' code, where p is the *kept* fraction and rho bounds the *sink*
        share from above: both are one minus the paper's.

        Parameters
        ----------
        rho, p : float
            As passed to the reference code (https://github.com/seilk/VisAttnSink).
        """
        return cls(p=1 - p, rho=1 - rho)


def redistribute(
    attention: Tensor,
    sinks: Tensor,
    visual: Tensor,
    queries: Tensor,
    *,
    p: float,
    rho: float,
    attention_floor: float = 0.2,
    donors: Donors = "all",
    receivers: Receivers = "visual",
    head_selection: bool = True,
) -> Tensor:
    """Redistribute attention from sink tokens to visual non-sink tokens in image-centric heads.

    Parameters
    ----------
    attention : Tensor [B, H, Q, K]
        Attention weights of one layer, any floating dtype. Rows sum to 1.
    sinks, visual : BoolTensor [B, K]
        Sink tokens of the layer, and visual tokens. Both false at padding.
    queries : BoolTensor [B, Q]
        The rows that may be edited: text tokens after the image, and generated tokens.
    p, rho, attention_floor, donors, receivers, head_selection
        As in `VarConfig`.

    Returns
    -------
    Tensor [B, H, Q, K]
        In the dtype of `attention`. Every row keeps its sum. Rows that are not edited, among them those without sinks
        or without receivers' attention, are equal to the input bit for bit; so is everything at p = 0.

    Raises
    ------
    InputError
        If a setting is outside its range, or the shapes or dtypes do not fit.
    """
    VarConfig(p, rho, attention_floor, donors, receivers, head_selection)
    _check_shapes(attention, sinks, visual, queries)
    weights = attention.to(torch.promote_types(attention.dtype, torch.float32))
    give, receive = roles(sinks, visual, torch.ones_like(sinks), donors, receivers)

    on_visual_sinks = _mass(weights, visual & sinks)
    on_visual_rest = _mass(weights, visual & ~sinks)
    given, received = _mass(weights, give), _mass(weights, receive)
    chosen = chosen_heads(
        on_visual_sinks, on_visual_rest, given, received, rho=rho, floor=attention_floor, selection=head_selection
    )
    chosen = (chosen & queries[:, None, :])[..., None]

    omega = p * given[..., None]
    share = weights / received.clamp_min(SMALLEST_MASS)[..., None]
    edited = torch.where(give[:, None, None, :], (1 - p) * weights, weights)
    edited = torch.where(receive[:, None, None, :], edited + omega * share, edited)
    return torch.where(chosen, edited, weights).to(attention.dtype)


def roles(sinks: Tensor, visual: Tensor, valid: Tensor, donors: Donors, receivers: Receivers) -> tuple[Tensor, Tensor]:
    """Which tokens give attention and which receive it.

    Parameters
    ----------
    sinks, visual, valid : BoolTensor [...]
        Sink tokens, visual tokens, and tokens that are not padding.

    Returns
    -------
    (BoolTensor [...], BoolTensor [...])
        Donors and receivers; no token is both.
    """
    give = sinks & valid if donors == "all" else sinks & visual & valid
    ordinary = valid & ~sinks
    if receivers == "visual":
        return give, ordinary & visual
    return give, ordinary & ~visual if receivers == "text" else ordinary


def chosen_heads(
    on_visual_sinks: Tensor,
    on_visual_rest: Tensor,
    given: Tensor,
    received: Tensor,
    *,
    rho: float,
    floor: float,
    selection: bool,
) -> Tensor:
    """The (head, query) pairs to edit: image-centric, with attention on donors and on receivers.

    Parameters
    ----------
    on_visual_sinks, on_visual_rest : Tensor [...]
        Attention on visual sink tokens and on visual non-sink tokens.
    given, received : Tensor [...]
        Attention on donors and on receivers, before anything moves.

    Returns
    -------
    BoolTensor [...]
    """
    possible = (received >= SMALLEST_MASS) & (given > 0)
    if not selection:
        return possible
    # The two parts are added, not summed anew, so that a row without visual sinks has a ratio of exactly 1.
    on_visual = on_visual_sinks + on_visual_rest
    ratio = on_visual_rest / on_visual.clamp_min(SMALLEST_MASS)
    # A head that looks at no visual token has no ratio and is not image-centric, not even at a floor of 0.
    return possible & (on_visual >= max(floor, SMALLEST_MASS)) & (ratio >= rho)


def _mass(weights: Tensor, tokens: Tensor) -> Tensor:
    """Attention of every (sample, head, query) on `tokens` [B, K]: Tensor [B, H, Q]."""
    return torch.where(tokens[:, None, None, :], weights, 0).sum(-1)


def _check_shapes(attention: Tensor, sinks: Tensor, visual: Tensor, queries: Tensor) -> None:
    if attention.ndim != 4 or not attention.is_floating_point():
        raise InputError(
            f"attention has shape {list(attention.shape)} and dtype {attention.dtype}; give floating-point weights "
            "[batch, heads, queries, keys]"
        )
    batch, _, rows, columns = attention.shape
    for name, mask, shape in (
        ("sinks", sinks, (batch, columns)),
        ("visual", visual, (batch, columns)),
        ("queries", queries, (batch, rows)),
    ):
        if mask.dtype != torch.bool or tuple(mask.shape) != shape:
            raise InputError(f"{name} is {mask.dtype} {list(mask.shape)}; attention needs a bool mask {list(shape)}")
