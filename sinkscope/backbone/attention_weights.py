"""The softmax weights of chosen rows of an attention call, computed beside the kernel. Pure functions of a call."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.backbone.attention import AttentionCall


def attention_weights(call: AttentionCall, heads: slice = slice(None), queries: Tensor | slice = slice(None)) -> Tensor:
    """Softmax attention weights of chosen query rows, computed beside the kernel.

    Counts in what transformers' kernels know: grouped key-value heads, causality over a cache, padding and sliding
    windows through the mask, soft-capped logits, position biases, and learned sink logits, whose column is dropped
    after the softmax.

    Parameters
    ----------
    call : AttentionCall
        The call to look into.
    heads : slice
        Query heads.
    queries : LongTensor [q] or slice
        Query rows of this call, the same for every sample. Memory grows with their number times K: go in chunks.

    Returns
    -------
    Tensor [B, h, q, K], float32
        Rows sum to 1, less where a learned sink takes its part. Rows that may attend to nothing (padding) are uniform.
    """
    query = call.query[:, heads] if heads != slice(None) else call.query
    if not isinstance(queries, slice) or queries != slice(None):
        query = query[:, :, queries]
    with exact_products(query.device):
        logits = _logits(call, query, heads)
    softcap = call.kwargs.get("softcap")
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    bias = call.kwargs.get("position_bias")
    if bias is not None:
        logits = logits + _rows(bias, heads, queries)[..., : logits.shape[-1]]
    mask = _mask(call, heads, queries)
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
    elif mask is not None:
        logits = logits + mask
    learned = _learned_sinks(call)
    if learned is None:
        return logits.softmax(-1)
    column = _rows(learned.float(), heads, queries).expand(*logits.shape[:3], 1)
    return torch.cat([logits, column], dim=-1).softmax(-1)[..., :-1]


def exact_products(device: torch.device) -> AbstractContextManager[Any]:
    """Products in the dtype of their factors inside the context, whatever autocast says."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def grouped_matmul(rows: Tensor, shared: Tensor) -> Tensor:
    """rows [B, H, q, X] times shared [B, Hkv, X, Y], head h with h // (H / Hkv), without repeating `shared`."""
    batch, heads, count, width = rows.shape
    groups = shared.shape[1]
    if heads == groups:
        return rows @ shared
    product = rows.reshape(batch, groups, heads // groups * count, width) @ shared
    return product.reshape(batch, heads, count, -1)


def _logits(call: AttentionCall, query: Tensor, heads: slice) -> Tensor:
    """Scaled logits in float32; half-precision products would be rounded before the softmax, which no kernel does."""
    key = call.exact_key
    if heads != slice(None):
        group = call.query.shape[1] // key.shape[1]
        key = key[:, torch.arange(call.query.shape[1])[heads] // group]
    return grouped_matmul(query.float() * call.scaling, key.mT)


def _learned_sinks(call: AttentionCall) -> Tensor | None:
    """The logits of learned sinks, [B or 1, H, Q or 1, 1], or None.

    They are what else the kernel is given that has one entry per head, or per head and row: no other argument does.
    """
    batch, heads, rows, _ = call.query.shape
    for name, value in call.kwargs.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or name == "position_bias":
            continue
        if value.shape == (heads,):
            return value.view(1, heads, 1, 1)
        if value.shape == (batch, heads, rows, 1):
            return value
    return None


def _mask(call: AttentionCall, heads: slice, queries: Tensor | slice) -> Tensor | None:
    """The mask of the chosen rows, [B or 1, h or 1, q, K], bool or added; None where they see every key."""
    mask, (rows, columns) = call.attention_mask, (call.query.shape[2], call.key.shape[2])
    if isinstance(mask, Tensor) and mask.ndim == 4:
        return _rows(mask, heads, queries)[..., :columns]
    causal = call.kwargs.get("is_causal")
    causal = getattr(call.module, "is_causal", True) if causal is None else causal
    flash = "flash" in call.kernel
    if mask is None and not flash and (rows == 1 or not causal or call.kernel == "eager"):
        # The eager kernel masks nothing without a mask, sdpa nothing for a single row.
        return None
    device = call.query.device
    row = torch.arange(rows, device=device)[queries][:, None]
    column = torch.arange(columns, device=device)[None, :]
    if mask is None and not flash:
        # sdpa counts rows from the first key on, which is what a prompt on an empty static cache needs.
        return (column <= row)[None, None]
    if isinstance(mask, Tensor) or mask is None:
        # A static cache has an empty end, which only the mask's length tells.
        row = row + (columns if mask is None else min(columns, mask.shape[1])) - rows
        visible = (column <= row) if causal else torch.ones_like(column <= row)
        window = call.kwargs.get("sliding_window")
        if window is not None and columns > window:
            visible = visible & (column > row - window)
        positions = call.kwargs.get("position_ids")
        if mask is None and positions is not None and positions.ndim == 2 and len(call.query) == 1 and rows == columns:
            sample = (positions[0].diff(prepend=positions[0, :1]) < 0).cumsum(0)
            visible = visible & (sample[queries][:, None] == sample[None, :])
        if mask is None:
            return visible[None, None]
        padding = nn.functional.pad(mask.bool(), (0, columns - mask.shape[1]))
        return visible & padding[:, None, None, :]
    batch = torch.arange(call.query.shape[0], device=device)[:, None, None, None]
    head = torch.arange(call.query.shape[1], device=device)[heads][None, :, None, None]
    return mask.mask_mod(batch, head, row[None, None], column[None, None])


def _rows(tensor: Tensor, heads: slice, queries: Tensor | slice) -> Tensor:
    """The chosen heads and rows of a mask or bias [B or 1, 1 or H, Q or 1, >= K]."""
    if tensor.shape[1] > 1:
        tensor = tensor[:, heads]
    return tensor[:, :, queries] if tensor.shape[2] > 1 else tensor
