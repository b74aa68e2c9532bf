"""Quantised weights as numbers again: pure functions on the stored tensors, row block by row block.

Only the result is as large as the matrix; what is needed on the way is a block of rows.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sinkscope.errors import InputError

BLOCK_ENTRIES = 2**21
# E2M1: sign, two exponent bits, one mantissa bit (OCP Microscaling Formats 1.0, table 3).
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
DEFAULT_BLOCK = 128


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows that hold about `BLOCK_ENTRIES` entries each."""
    step = max(1, BLOCK_ENTRIES // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def as_scale(stored: Tensor) -> Tensor:
    """Scales as float32. Bytes hold the exponent alone (E8M0): 2 ** (byte - 127)."""
    if stored.dtype == torch.uint8:
        return torch.exp2(stored.to(torch.float32) - 127.0)
    return stored.to(torch.float32)


def scaled(weight: Tensor, scale: Tensor, zero: Tensor | None = None, block: tuple[int, int] | None = None) -> Tensor:
    """(weight - zero) * scale, where one scale may stand for the matrix, a row, a column or a block.

    Parameters
    ----------
    weight : Tensor [O, I] or [E, O, I]
        Integers or 8-bit floats.
    scale : Tensor
        One number, [O], [O, 1], [1, I], or a grid [ceil(O / b), ceil(I / b')]; with the same axis in front for experts.
    zero : Tensor, optional
        Of the shape of `scale`.
    block : (int, int), optional
        Rows and columns that share a scale, where a grid's last blocks are not full.

    Returns
    -------
    Tensor float32, shaped as `weight`

    Raises
    ------
    InputError
        If the scales do not fit the weight.
    """
    if weight.dim() == 3:
        stacked = [entry is not None and entry.dim() > 0 and len(entry) == len(weight) for entry in (scale, zero)]
        parts = [
            scaled(part, scale[i] if stacked[0] else scale, zero[i] if zero is not None and stacked[1] else zero, block)
            for i, part in enumerate(weight)
        ]
        return torch.stack(parts)
    rows, columns = (weight.shape[0], weight.shape[1]) if weight.dim() == 2 else (weight.numel(), 1)
    grid = _grid(as_scale(scale), rows, columns)
    shift = _grid(zero.to(torch.float32), rows, columns) if zero is not None else None
    tall = _block_size(rows, grid.shape[0], block[0] if block else None)
    wide = _block_size(columns, grid.shape[1], block[1] if block else None)
    matrix = weight.reshape(rows, columns)
    result = torch.empty(rows, columns, dtype=torch.float32)
    for chosen in row_blocks(rows, columns):
        which = torch.arange(chosen.start, chosen.stop) // tall
        values = result[chosen].copy_(matrix[chosen].to(torch.float32))
        if shift is not None:
            values -= _widen(shift[which], wide, columns)
        values *= _widen(grid[which], wide, columns)
    return result.reshape(weight.shape)


def _grid(scale: Tensor, rows: int, columns: int) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(1, 1)
    if scale.dim() == 1:
        return scale.reshape(1, -1) if len(scale) != rows and len(scale) == columns else scale.reshape(-1, 1)
    return scale.reshape(-1, scale.shape[-1])


def _block_size(size: int, count: int, told: int | None) -> int:
    candidates = [told] if told else []
    candidates += [size // count] if count and size % count == 0 else [DEFAULT_BLOCK]
    for candidate in candidates:
        if candidate and math.ceil(size / candidate) == count:
            return candidate
    raise InputError(f"{count} scales do not fit {size} rows or columns; the quantised checkpoint is damaged")


def _widen(grid: Tensor, wide: int, columns: int) -> Tensor:
    return grid if grid.shape[1] == 1 else grid.repeat_interleave(wide, dim=1)[:, :columns]


def unpack_fp4(packed: Tensor) -> Tensor:
    """Two 4-bit floats a byte, the low half first: [..., N] bytes to float32 [..., 2N]."""
    values = torch.tensor(FP4_VALUES, dtype=torch.float32)
    bytes_ = packed.contiguous().view(torch.uint8)
    pairs = torch.stack((values[(bytes_ & 15).long()], values[(bytes_ >> 4).long()]), dim=-1)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def fp4(packed: Tensor, scale: Tensor, factor: float = 1.0) -> Tensor:
    """4-bit floats with one scale for a run of entries of a row (MXFP4: 32 and powers of two; NVFP4: 16 and FP8).

    Parameters
    ----------
    packed : Tensor uint8 [O, I / 2]
        Entries.
    scale : Tensor [O, G]
        Scales.
    factor : float
        Of all scales.

    Returns
    -------
    Tensor float32 [O, I]
    """
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    grid = as_scale(scale) * factor
    result = torch.empty(rows, columns, dtype=torch.float32)
    for chosen in row_blocks(rows, columns):
        values = unpack_fp4(packed[chosen]).reshape(chosen.stop - chosen.start, grid.shape[1], -1)
        result[chosen] = (values * grid[chosen].unsqueeze(-1)).reshape(-1, columns)
    return result


def mxfp4_experts(blocks: Tensor, scales: Tensor) -> Tensor:
    """Experts in the layout of GPT-OSS: entries [E, O, G, 16] with scales [E, O, G] to float32 [E, 32 G, O].

    The axes end up swapped, as transformers swaps them for its parameter.
    """
    if blocks.dim() == 4:
        return torch.stack([mxfp4_experts(part, scales[i]) for i, part in enumerate(blocks)])
    return fp4(blocks.reshape(blocks.shape[0], -1), scales).T.contiguous()


def bitsandbytes_4bit(packed: Tensor, state: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """NF4 and FP4 of bitsandbytes: each entry indexes a map of 16 values, scaled by the block's largest magnitude.

    Parameters
    ----------
    packed : Tensor uint8
        Two entries a byte, the high half first.
    state : dict
        The quantisation state: shape, blocksize, and for doubly quantised scales nested_blocksize and nested_offset.
    tensors : dict
        absmax, quant_map, and for doubly quantised scales nested_absmax and nested_quant_map.

    Returns
    -------
    Tensor float32, of the state's shape
    """
    shape = tuple(int(size) for size in state["shape"])
    count, size = math.prod(shape), int(state["blocksize"])
    largest = tensors["absmax"]
    if "nested_absmax" in tensors:
        outer = tensors["nested_absmax"].float().repeat_interleave(int(state["nested_blocksize"]))
        largest = tensors["nested_quant_map"].float()[largest.long()] * outer[: len(largest)]
        largest = largest + float(state["nested_offset"])
    values, bytes_ = tensors["quant_map"].float(), packed.reshape(-1).view(torch.uint8)
    if 2 * len(bytes_) < count or len(largest) * size < count:
        raise InputError(f"{2 * len(bytes_)} entries do not fill {shape}; the quantised checkpoint is damaged")
    result = torch.empty(count, dtype=torch.float32)
    step = max(1, BLOCK_ENTRIES // (2 * size)) * 2 * size
    for start in range(0, count, step):
        stop = min(start + step, count)
        some = bytes_[start // 2 : (stop + 1) // 2]
        entries = torch.stack((values[(some >> 4).long()], values[(some & 15).long()]), dim=-1).reshape(-1)
        scale = largest[start // size : math.ceil(stop / size)].float().repeat_interleave(size)
        result[start:stop] = entries[: stop - start] * scale[: stop - start]
    return result.reshape(shape)


def unpack_integers(packed: Tensor, bits: int) -> Tensor:
    """Unsigned integers of `bits` bits from 32-bit words, lowest first: int32 [R, C] to [R, C * 32 / bits]."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((packed.to(torch.int32).unsqueeze(-1) >> shifts) & (2**bits - 1)).reshape(packed.shape[0], -1)


def gptq(tensors: dict[str, Tensor], bits: int, zero_offset: int) -> Tensor:
    """GPTQ: words along the inputs, zeros stored less `zero_offset`; float32 [O, I]."""
    words, per_word = tensors["qweight"], 32 // bits
    zeros = unpack_integers(tensors["qzeros"], bits) + zero_offset
    group_of = _groups(tensors.get("g_idx"), words.shape[0] * per_word, len(tensors["scales"]))
    result = torch.empty(words.shape[1], words.shape[0] * per_word, dtype=torch.float32)
    for chosen in row_blocks(words.shape[0], words.shape[1] * per_word):
        inputs = slice(chosen.start * per_word, chosen.stop * per_word)
        entries = unpack_integers(words[chosen].T.contiguous(), bits)
        group = group_of[inputs]
        result[:, inputs] = (entries - zeros[group].T).float() * tensors["scales"][group].float().T
    return result


def awq(tensors: dict[str, Tensor], bits: int) -> Tensor:
    """AWQ in its GEMM layout: words along the outputs, with their entries interleaved; float32 [O, I]."""
    if bits != 4:
        raise InputError(f"AWQ with {bits} bits is not read; only 4 bits are")
    words, scales = tensors["qweight"], tensors["scales"]
    order = torch.arange(scales.shape[1]).reshape(-1, 8)[:, list(AWQ_ORDER)].reshape(-1)
    zeros = unpack_integers(tensors["qzeros"], bits)[:, order]
    group_of = _groups(None, words.shape[0], len(scales))
    result = torch.empty(scales.shape[1], words.shape[0], dtype=torch.float32)
    for chosen in row_blocks(words.shape[0], scales.shape[1]):
        group = group_of[chosen]
        entries = unpack_integers(words[chosen], bits)[:, order]
        result[:, chosen] = ((entries - zeros[group]).float() * scales[group].float()).T
    return result


def packed_integers(tensors: dict[str, Tensor]) -> Tensor:
    """The pack-quantized format of compressed-tensors: words along the inputs, entries around zero; float32 [O, I]."""
    words, scales = tensors["weight_packed"], tensors["weight_scale"]
    rows, columns = (int(size) for size in tensors["weight_shape"])
    bits = next((bits for bits in (4, 8, 2, 1) if math.ceil(columns * bits / 32) == words.shape[1]), None)
    if bits is None or words.shape[0] != rows:
        raise InputError(f"{tuple(words.shape)} words do not hold {rows} x {columns} entries of 1, 2, 4 or 8 bits")
    half = 2 ** (bits - 1)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    if "weight_zero_point" in tensors:
        zeros = tensors["weight_zero_point"].to(torch.int32)
        if zeros.shape != scales.shape:
            zeros = unpack_integers(zeros.T.contiguous(), bits).T[:rows] - half
    group_of = _groups(tensors.get("weight_g_idx"), columns, scales.shape[1])
    result = torch.empty(rows, columns, dtype=torch.float32)
    for chosen in row_blocks(rows, columns):
        entries = unpack_integers(words[chosen], bits)[:, :columns] - half
        result[chosen] = (entries - zeros[chosen][:, group_of]).float() * scales[chosen].float()[:, group_of]
    return result


def _groups(stored: Tensor | None, inputs: int, count: int) -> Tensor:
    """The group of each input, whose members share zero and scale; stored where they were ordered by activation."""
    if stored is not None and not bool((stored < 0).any()):
        return stored.long()
    return torch.arange(inputs) // math.ceil(inputs / count)
