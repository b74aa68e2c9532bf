"""VAR on the output of an attention kernel, without attention maps.

For an edited row with weights a, donors S, receivers N and Omega = p * sum_S a, the redistributed output is

    out' = out - p * sum_S a_j v_j + (Omega / sum_N a) * sum_N a_j v_j

because no other weight changes. So the kernel runs as it is, and only rows that may be edited are looked at. What
decides about a row, and how far it changes, is linear in a: one product of the weights with four numbers per token.
"""

import torch
from torch import Tensor

from sinkscope.backbone.attention import AttentionCall
from sinkscope.backbone.attention_weights import attention_weights, exact_products, grouped_matmul
from sinkscope.errors import UnsupportedModelError
from sinkscope.redistribution.equations import SMALLEST_MASS, VarConfig

WEIGHTS_AT_ONCE = 2**23
"""Attention weights held at a time in a prompt's pass: 32 MiB of float32, a few times over."""

Moved = tuple[Tensor, Tensor]
"""Per sample, and per head and row: whether it is chosen, BoolTensor, and -Omega, Tensor."""


def token_parts(sinks: Tensor, visual: Tensor, give: Tensor, receive: Tensor, config: VarConfig) -> Tensor:
    """Four numbers per token, whose attention-weighted sums decide about a row.

    Parameters
    ----------
    sinks, visual, give, receive : BoolTensor [B, T]
        Sink tokens, visual tokens, donors, receivers.

    Returns
    -------
    Tensor [B, 4, T], float32
        Their sums over a row are: visual non-sink attention minus rho times visual attention, which is at least 0 where
        the ratio is at least rho; visual attention; receivers' attention; and -Omega.
    """
    image, rest = visual.float(), (visual & ~sinks).float()
    return torch.stack([rest - config.rho * image, image, receive.float(), -config.p * give.float()], dim=1)


def lower_limits(config: VarConfig) -> Tensor:
    """What the sums of `token_parts` must reach in a chosen row: Tensor [4]."""
    if not config.head_selection:
        return torch.tensor([-torch.inf, -torch.inf, SMALLEST_MASS, -torch.inf])
    return torch.tensor([0.0, max(config.attention_floor, SMALLEST_MASS), SMALLEST_MASS, -torch.inf])


def relative_changes(weights: Tensor, table: Tensor, queries: Tensor | None, limits: Tensor) -> tuple[Tensor, Moved]:
    """By which factor each attention weight grows or shrinks in a chosen row.

    Decoding spends more on the number of small operations here than on their size.

    Parameters
    ----------
    weights : Tensor [B, H * q, K]
        Attention weights, float32: the rows of all heads.
    table : Tensor [B, 4, K]
        `token_parts` of the keys.
    queries : BoolTensor [B, q] or None
        Rows that may be edited; None for all.
    limits : Tensor [4]
        `lower_limits`.

    Returns
    -------
    Tensor [B, H * q, K] and Moved, of Tensors [B, H * q, 1]
        r, such that a chosen row becomes a + r a. Finite, but without meaning, in the other rows.
    """
    with exact_products(weights.device):
        sums = weights @ table.mT
    chosen = (sums >= limits).all(-1, keepdim=True)
    if queries is not None:
        chosen = chosen & queries.repeat(1, weights.shape[1] // queries.shape[1])[..., None]
    _, _, received, negative_omega = sums.split(1, -1)
    gain = negative_omega / received.clamp_min(SMALLEST_MASS)
    _, _, receive, give = table.split(1, 1)
    return torch.addcmul(give, gain, receive, value=-1), (chosen, negative_omega)


def edit_generated(
    call: AttentionCall, table: Tensor, queries: Tensor | None, limits: Tensor, *, checked: bool
) -> tuple[Tensor, Moved]:
    """Attention output of one generated token per sample, redistributed.

    Parameters
    ----------
    call : AttentionCall
        With a single query row.
    table, queries, limits
        As in `relative_changes`.
    checked : bool
        Whether this layer's kernel is known to compute plain softmax attention. Then it need not run: the one row has
        been computed already.

    Returns
    -------
    Tensor [B, 1, H, Dv] and Moved
    """
    weights = attention_weights(call).squeeze(2)
    changes, moved = relative_changes(weights, table, queries, limits)
    if checked and call.direct and not call.kwargs.get("dropout"):
        weights = torch.where(moved[0], torch.addcmul(weights, weights, changes), weights).unsqueeze(2)
        weights = weights.to(call.value.dtype)
        if call.kernel == "eager":
            call.weights = weights
        return grouped_matmul(weights, call.value).transpose(1, 2), moved
    output = call.base()
    changes = torch.where(moved[0], weights * changes, 0).unsqueeze(2)
    if call.weights is not None:
        call.weights = call.weights + changes.to(call.weights.dtype)
    return output + grouped_matmul(changes.to(call.value.dtype), call.value).transpose(1, 2), moved


def edit_rows(
    call: AttentionCall, table: Tensor, queries: Tensor, rows: Tensor, limits: Tensor, *, checked: bool
) -> tuple[Tensor, list[Moved]]:
    """Attention output of a prompt, redistributed in chosen rows.

    Parameters
    ----------
    call : AttentionCall
        Of the prompt.
    table, limits
        As in `relative_changes`.
    queries : BoolTensor [B, Q]
        Rows that may be edited.
    rows : LongTensor [q]
        Rows that may be edited in some sample.
    checked : bool
        Whether this layer's kernel is known to compute plain softmax attention; else it is compared first.

    Returns
    -------
    Tensor [B, Q, H, Dv] and list of Moved
        One per chunk of rows.

    Raises
    ------
    UnsupportedModelError
        If the model's kernel computes something other than softmax attention as it is understood here.
    """
    output = call.base()
    if output.requires_grad:
        output = output.clone()
    # Keys without any part keep their weight in every sample. What lies before and after all others is never read;
    # to pick the others one by one would cost more than it spares.
    touched = (table[:, 1:] != 0).any(1).any(0).nonzero()[:, 0]
    if not len(touched):
        return output, []
    span = slice(int(touched[0]), int(touched[-1]) + 1)
    table, value = table[:, :, span], call.value[:, :, span]
    batch, heads, _, _ = call.query.shape
    at_once = max(1, WEIGHTS_AT_ONCE // (batch * heads * call.key.shape[2]))
    moved = []
    for chunk in rows.split(at_once):
        weights = attention_weights(call, queries=chunk)
        if not checked:
            _check_kernel(call, output, weights[:, :, :1], chunk[:1], queries)
            checked = True
        weights = weights[..., span]
        changes, chunk_moved = relative_changes(weights.flatten(1, 2), table, queries[:, chunk], limits)
        moved.append(chunk_moved)
        changes = torch.where(chunk_moved[0], weights.flatten(1, 2) * changes, 0).view_as(weights)
        change = grouped_matmul(changes.to(value.dtype), value)
        output.index_add_(1, chunk, change.transpose(1, 2).to(output.dtype))
        if call.weights is not None:
            call.weights = call.weights.clone()
            call.weights[..., span].index_add_(2, chunk, changes.to(call.weights.dtype))
    return output, moved


def _check_kernel(call: AttentionCall, output: Tensor, weights: Tensor, row: Tensor, queries: Tensor) -> None:
    """Compare one row of the kernel's output with the same row from recomputed weights."""
    if call.kwargs.get("dropout"):
        return
    mine = grouped_matmul(weights.to(call.value.dtype), call.value).transpose(1, 2)
    used = queries[:, row][..., None, None]
    theirs = output[:, row]
    difference = torch.where(used, mine - theirs, 0).abs().amax()
    scale = torch.where(used, theirs, 0).abs().amax().clamp_min(1e-6)
    tolerance = 1e-3 if output.dtype in (torch.float32, torch.float64) else 5e-2
    if not bool(difference <= tolerance * scale):
        raise UnsupportedModelError(
            f"the {call.kernel} attention of layer {call.layer} ({type(call.module).__name__}) is not plain softmax "
            f"attention (its output differs by {float(difference / scale):.1%}), so VAR cannot edit it"
        )
