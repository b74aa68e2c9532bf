"""Reading a layer on an accelerator: whole tensors at a time, and nothing that the host has to wait for."""

import torch
from torch import Tensor

from sinkscope.capture.reading import SMALLEST_RMS, TINY, LayerReading, TokenEnergies
from sinkscope.capture.statistics import LayerStatistics, level_odds, numbers_of
from sinkscope.store.layout import TOKEN_LIMIT

GROUP = 16
"""Tokens of a group: the top K of a dimension lie in the K groups with the largest maxima."""


def read_on_device(
    states: Tensor, index: Tensor | None, rows: Tensor, before: LayerStatistics, count: int
) -> LayerReading:
    """Read T tokens and add them to the accumulators; parameters as for `read_on_cpu`, with `rows` ascending."""
    if index is not None:
        states = states.index_select(0, index)
    width, levels = states.shape[1], before.levels
    magnitude = states.abs()
    dim = largest_dims(magnitude, count)
    states, magnitude = states.float(), magnitude.float()
    value = states.gather(1, dim)
    largest = value * value
    square = states * states
    rest = square.scatter_(1, dim, 0.0).sum(dim=1)
    square.scatter_(1, dim, largest)
    energies = TokenEnergies.of(largest, rest, width)
    of_largest = energies.odds()
    inverse = torch.where(energies.rms > SMALLEST_RMS, 1 / energies.rms, 0.0)
    fields = {
        "peak_magnitude": magnitude.amax(dim=0),
        "sum_normed": (inverse @ states).double(),
        "sum_abs_normed": (inverse @ magnitude).double(),
        "sum_square_normed": (inverse.square() @ square).double(),
        "sum_rms": energies.rms.sum(dtype=torch.float64),
    }
    others = torch.sub(energies.total[:, None], square, out=magnitude).clamp_min_(TINY)
    odds = square.div_(others).scatter_(1, dim, of_largest)
    counts = []
    for share, least in zip(levels, level_odds(levels), strict=True):
        if share * (count + 1) <= 1:
            counts.append((odds >= least).sum(dim=0))
        else:  # Only the largest can get there.
            reached = (of_largest >= least).reshape(-1).to(torch.int64)
            counts.append(reached.new_zeros(width).scatter_add_(0, dim.reshape(-1), reached))
    fields["exceedance"] = torch.stack(counts, dim=1)
    keys = merge_columns(before.fields["top_keys"], odds, rows)
    statistics = before.extended(len(rows), fields, keys)
    return LayerReading(dim, value, energies.rms, of_largest, statistics)


def largest_dims(magnitude: Tensor, count: int) -> Tensor:
    """Dimensions of the `count` largest magnitudes of every row, sorted down: [R, D] gives int64 [R, count].

    They lie in the `count` blocks of dimensions with the largest maxima. Ties go to the lower dimension.
    """
    width = magnitude.shape[1]
    blocks = 8 * count
    size = width // blocks
    dims = torch.arange(width, device=magnitude.device)
    if size < 2:
        return _ordered(magnitude, dims, count)
    maxima = magnitude[:, : size * blocks].unflatten(1, (blocks, size)).amax(dim=2)
    best = _ordered(maxima, dims[:blocks], count)
    inside = (best[:, :, None] * size + dims[:size]).flatten(1)
    candidates = torch.cat([inside, dims[size * blocks :].expand(len(inside), -1)], dim=1)
    return _ordered(magnitude.gather(1, candidates), candidates, count)


def _ordered(values: Tensor, numbers: Tensor, count: int) -> Tensor:
    """The numbers of the `count` largest values of every row, ties by lower number; both [R, n]."""
    return numbers_of(keys_of(values.float(), numbers).topk(count, dim=1).values)


def merge_columns(keys: Tensor, odds: Tensor, rows: Tensor) -> Tensor:
    """The top keys int64 [D, K] with those of odds float32 [T, D], whose tokens have ascending rows int64 [T].

    Of groups of tokens only the K with the largest maxima are looked into, ties by lower row.
    """
    kept, whole = keys.shape[1], len(rows) // GROUP * GROUP
    candidates = [keys]
    if whole:
        grouped, numbers = odds[:whole].unflatten(0, (-1, GROUP)), rows[:whole].unflatten(0, (-1, GROUP))
        maxima = grouped.amax(dim=1).T
        order = torch.arange(len(grouped), device=odds.device)
        best = keys_of(maxima, order).topk(min(kept, len(grouped)), dim=1).values
        chosen = numbers_of(best)  # [D, K]
        inside = grouped.gather(0, chosen.T[:, None, :].expand(-1, GROUP, -1))
        candidates.append(keys_of(inside.permute(2, 0, 1), numbers[chosen]).flatten(1))
    candidates.append(keys_of(odds[whole:].T, rows[whole:]))
    return torch.cat(candidates, dim=1).topk(kept, dim=1).values


def keys_of(odds: Tensor, rows: Tensor) -> Tensor:
    """`top_keys` of tensors."""
    return odds.contiguous().view(torch.int32).to(torch.int64) * TOKEN_LIMIT + (TOKEN_LIMIT - 1 - rows)
