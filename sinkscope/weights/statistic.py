"""How far the rows of a matrix that writes the residual stream stand out. Pure functions of a matrix.

A column is what one neuron writes. A spike is born where a column holds one huge entry, or a few, and little else: a
token on which that neuron fires becomes massive in these dimensions and in no other.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

LEADING_RATIO = 0.05
"""Entries with at least this part of the energy of the column's largest lead beside it, and do not hide each other."""
FELLOWS = 8
"""At most so many entries of a column lead."""
EXAMINED = 24
"""For so many rows, those with the largest entries, fellow leading entries are told apart; others have none."""
ENTRIES = 4
"""So many of their largest entries are looked at: the neuron that writes least else counts."""
BLOCK = 2**18
"""Entries at a time: what is computed besides the matrix stays small, and in the cache."""
STRIDED_ROWS = 64
"""At least so many rows at a time of a matrix whose rows do not lie side by side, to use what a cache line brings."""
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class RowScores:
    """The rows of one matrix [D, I], each at its largest entry; rows that may stand out at the one of their few largest
    entries that stands out most.

    Attributes
    ----------
    ratio : float64 [D]
        The largest absolute entry of the row over the median of the rows' largest.
    norm_ratio : float64 [D]
        Norm of the row over the median of the rows' norms.
    odds : float64 [D]
        Energy of that entry over that of its column's other entries, fellow leading ones aside: how little else
        the neuron writes.
    score : float64 [D]
        log(odds * r^2), with r as `ratio`, of that entry.
    """

    ratio: Floats
    norm_ratio: Floats
    odds: Floats
    score: Floats


def score_rows(matrix: Tensor, scale: Tensor | None = None) -> RowScores:
    """Score the rows of a matrix.

    Parameters
    ----------
    matrix : Tensor [D, I]
        One row for every dimension written, one column for every neuron. Any floating dtype.
    scale : Tensor [D], optional
        Multiplied on every row: the weight of a norm that follows.
    """
    width, neurons = matrix.shape
    factor = torch.ones(width) if scale is None else scale.float().abs()
    largest, place, row_energy = np.empty(width), np.empty(width, dtype=np.int64), np.empty(width)
    column_energy = torch.zeros(neurons, dtype=torch.float64)
    step = max(BLOCK // neurons, 1 if matrix.stride(-1) == 1 else STRIDED_ROWS)
    memory = torch.empty(min(step, width), neurons)
    for start in range(0, width, step):
        rows = slice(start, start + step)
        block = matrix[rows]
        energy = memory[: len(block)].copy_(block).square_()
        # numpy finds places several times faster than torch.
        place[rows] = energy.numpy().argmax(1)
        row_energy[rows] = energy.sum(dim=1)
        column_energy += factor[rows].square() @ energy
    own = factor.numpy().astype(np.float64)
    largest = matrix[torch.arange(width), torch.from_numpy(place)].double().abs().numpy() * own
    median = max(float(np.median(largest)), TINY)
    square = largest**2
    odds = square / np.maximum(column_energy.numpy()[place] - square, TINY)
    score = _log(odds) + 2 * _log(largest / median)
    examined = np.argsort(-largest, kind="stable")[:EXAMINED]
    odds[examined], score[examined] = _examined(matrix, factor, torch.from_numpy(examined.copy()), median)
    return RowScores(largest / median, _over_median(np.sqrt(row_energy) * own), odds, score)


def _examined(matrix: Tensor, factor: Tensor, rows: Tensor, median: float) -> tuple[Floats, Floats]:
    """Odds and scores of rows that may stand out: of their few largest entries, with fellow leading ones told apart."""
    entries = matrix[rows].float().abs().topk(min(ENTRIES, matrix.shape[1]), dim=1)
    neurons, where = entries.indices.unique(return_inverse=True)
    energy = (matrix[:, neurons].float() * factor[:, None]).double().square()
    odds = _beside_fellows(energy[:, where.flatten()], rows.repeat_interleave(where.shape[1])).view(where.shape)
    sizes = entries.values.double() * factor[rows, None].double()
    score, best = (odds.clamp_min(TINY).log() + 2 * (sizes / median).clamp_min(TINY).log()).max(dim=1)
    return odds.gather(1, best[:, None])[:, 0].numpy(), score.numpy()


def _beside_fellows(energy: Tensor, row: Tensor) -> Tensor:
    """Odds of entry `row[n]` of column n, float64 [n], with the column's other leading entries left out."""
    fellows = energy.topk(min(FELLOWS, len(energy)), dim=0).values
    leading = fellows * (fellows >= LEADING_RATIO * fellows[:1])
    own = energy.gather(0, row[None])[0]
    is_leading = own >= torch.maximum(LEADING_RATIO * fellows[0], fellows[-1])
    others = energy.sum(dim=0) - torch.where(is_leading, leading.sum(dim=0), own)
    return own / others.clamp_min(TINY)


def _log(values: Floats) -> Floats:
    return np.log(np.maximum(values, TINY))


def _over_median(values: Floats) -> Floats:
    return values / max(float(np.median(values)), TINY)
