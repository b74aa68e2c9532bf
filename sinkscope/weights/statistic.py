"""How far the rows of a matrix that writes the residual stream stand out. Pure functions of a matrix.

A column is what one neuron writes. A spike is born where a column holds one huge entry, or a few, and little else: a
token on which that neuron fires becomes massive in these dimensions and in no other.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sinkscope.significance import tail_p_values

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
    p_value : float64 [D]
        Of the score and of the ratio against the tails of the matrix's other rows: the smaller one, doubled. The first
        tells spikes among heavy-tailed rows, the second is sharp where rows are alike.
    """

    ratio: Floats
    norm_ratio: Floats
    odds: Floats
    score: Floats
    p_value: Floats


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
    factor = None if scale is None else scale.float().abs()
    largest, place = torch.zeros(width), torch.zeros(width, dtype=torch.int64)
    row_energy, column_energy = torch.zeros(width), torch.zeros(neurons, dtype=torch.float64)
    step = max(1, BLOCK // neurons)
    for start in range(0, width, step):
        rows = slice(start, start + step)
        block = matrix[rows].to(torch.float32, copy=True).abs_()
        if factor is not None:
            block *= factor[rows, None]
        largest[rows], place[rows] = block.max(dim=1)
        block.square_()
        row_energy[rows] = block.sum(dim=1)
        column_energy += block.sum(dim=0)
    energy = largest.double().square()
    odds = energy / (column_energy[place] - energy).clamp_min(TINY)
    median = max(float(np.median(largest.double().numpy())), TINY)
    score = odds.clamp_min(TINY).log() + 2 * (largest.double() / median).clamp_min(TINY).log()
    # Of the rows that may stand out, the few largest entries, with fellow leading ones told apart.
    examined = largest.topk(min(EXAMINED, width)).indices
    kept = matrix[examined].float().abs()
    entries = kept.topk(min(ENTRIES, neurons), dim=1)
    own = torch.empty(len(examined), entries.indices.shape[1], dtype=torch.float64)
    for entry, neuron in enumerate(entries.indices.T):
        columns = matrix[:, neuron].float()
        columns = columns if factor is None else columns * factor[:, None]
        own[:, entry] = _beside_fellows(columns.double().square(), examined)
    sizes = entries.values.double() * (1.0 if factor is None else factor[examined, None].double())
    scores, best = (own.clamp_min(TINY).log() + 2 * (sizes / median).clamp_min(TINY).log()).max(dim=1)
    odds[examined], score[examined] = own.gather(1, best[:, None])[:, 0], scores
    ratio = largest.double().numpy() / median
    views = [tail_p_values(view) for view in (score.numpy(), np.log(np.maximum(ratio, TINY)))]
    return RowScores(
        ratio,
        _over_median(row_energy.double().sqrt().numpy()),
        odds.numpy(),
        score.numpy(),
        np.minimum(2 * np.min(views, axis=0), 1.0),
    )


def _beside_fellows(energy: Tensor, row: Tensor) -> Tensor:
    """Odds of entry `row[n]` of column n, float64 [n], with the column's other leading entries left out."""
    fellows = energy.topk(min(FELLOWS, len(energy)), dim=0).values
    leading = fellows * (fellows >= LEADING_RATIO * fellows[:1])
    own = energy.gather(0, row[None])[0]
    is_leading = own >= torch.maximum(LEADING_RATIO * fellows[0], fellows[-1])
    others = energy.sum(dim=0) - torch.where(is_leading, leading.sum(dim=0), own)
    return own / others.clamp_min(TINY)


def _over_median(values: Floats) -> Floats:
    return values / max(float(np.median(values)), TINY)
