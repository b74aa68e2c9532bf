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
EXAMINED = 64
"""For so many rows, those with the largest entries, fellow leading entries are told apart; others have none."""
ENTRIES = 4
"""So many of a row's largest entries are looked at: the neuron that writes least else counts."""
BLOCK = 2**22
"""Entries at a time: what is computed besides the matrix stays small."""


@dataclass(frozen=True)
class RowScores:
    """The rows of one matrix [D, I], each at the one of its few largest entries that stands out most.

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
    entries = min(ENTRIES, neurons)
    largest, place = torch.zeros(width, entries), torch.zeros(width, entries, dtype=torch.int64)
    row_energy = torch.zeros(width, dtype=torch.float64)
    column_energy = torch.empty(neurons, dtype=torch.float64)
    step = max(entries, BLOCK // width)
    factor = None if scale is None else scale.float().abs()[:, None]
    for start in range(0, neurons, step):
        block = matrix[:, start : start + step].float()
        block = block.abs() if factor is None else block.abs() * factor
        value, column = block.topk(min(entries, block.shape[1]), dim=1)
        together, columns = torch.cat([largest, value], dim=1), torch.cat([place, column + start], dim=1)
        largest, chosen = together.topk(entries, dim=1)
        place = columns.gather(1, chosen)
        block.square_()
        row_energy += block.sum(dim=1, dtype=torch.float64)
        column_energy[start : start + step] = block.sum(dim=0, dtype=torch.float64)
    energy = largest.double().square()
    odds = energy / (column_energy[place] - energy).clamp_min(torch.finfo(torch.float32).tiny)
    examined = largest[:, 0].topk(min(EXAMINED, width)).indices
    for entry in range(entries):
        columns = matrix[:, place[examined, entry]].float()
        columns = columns.abs() if factor is None else columns.abs() * factor
        odds[examined, entry] = _beside_fellows(columns.double().square(), examined)
    median = max(float(np.median(largest[:, 0].double().numpy())), float(np.finfo(np.float64).tiny))
    tiny = torch.finfo(torch.float64).tiny
    scores, best = (odds.clamp_min(tiny).log() + 2 * (largest.double() / median).clamp_min(tiny).log()).max(dim=1)
    score = scores.numpy()
    ratio = largest[:, 0].double().numpy() / median
    views = [tail_p_values(view) for view in (score, np.log(np.maximum(ratio, tiny)))]
    return RowScores(
        ratio,
        _over_median(row_energy.sqrt().numpy()),
        odds.gather(1, best[:, None])[:, 0].numpy(),
        score,
        np.minimum(2 * np.min(views, axis=0), 1.0),
    )


def _beside_fellows(energy: Tensor, row: Tensor) -> Tensor:
    """Odds of entry `row[n]` of column n, float64 [n], with the column's other leading entries left out."""
    fellows = energy.topk(min(FELLOWS, len(energy)), dim=0).values
    leading = fellows * (fellows >= LEADING_RATIO * fellows[:1])
    own = energy.gather(0, row[None])[0]
    is_leading = own >= torch.maximum(LEADING_RATIO * fellows[0], fellows[-1])
    others = energy.sum(dim=0) - torch.where(is_leading, leading.sum(dim=0), own)
    return own / others.clamp_min(torch.finfo(torch.float32).tiny)


def _over_median(values: Floats) -> Floats:
    return values / max(float(np.median(values)), float(np.finfo(np.float64).tiny))
