"""Which dimensions the scores name, and where their spikes are created, reinforced and removed. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2

from sinkscope.errors import InputError
from sinkscope.significance import Floats, benjamini_hochberg, runs, shortest_run, simes
from sinkscope.weights.layer_scores import LayerScores, p_values

CREATING_PART = 0.1
"""Layers in a row create a spike as long as they write at least this part of the largest entry among them."""


@dataclass(frozen=True)
class PredictionSettings:
    """Thresholds of the prediction.

    Attributes
    ----------
    false_discovery_rate : float
        q over the dimensions.
    least_ratio : float
        The largest entry of a sink dimension's row is at least so many times the median of the rows' largest.
    companion_ratio : float
        A dimension with less than this part of the leading dimension's odds times squared ratio rides along.
    written_share : float
        A spike is created where one neuron writes at least this part of its energy into the dimension, or, where no
        layer does, at least half of the best odds.
    minimum_run : int
        Hidden states over which a spike must be able to last; 0: 2, and 3 from 24 layers on.
    """

    false_discovery_rate: float = 0.05
    least_ratio: float = 4.0
    companion_ratio: float = 0.1
    written_share: float = 7 / 8
    minimum_run: int = 0

    def __post_init__(self) -> None:
        for name in ("false_discovery_rate", "companion_ratio", "written_share"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")

    def run_length(self, num_layers: int) -> int:
        """Hidden states over which a spike must be able to last."""
        return self.minimum_run or shortest_run(num_layers)


@dataclass(frozen=True)
class PredictedDimension:
    """A dimension into which the weights write spikes.

    Attributes
    ----------
    dim : int
    ratio : float
        Its largest, over the layers that count: the row's largest entry over the median of the rows' largest.
    p_value : float
        Over all layers (Fisher's and Simes' combinations), adjusted over dimensions.
    created_layers : tuple of int
        Layers whose MLP writes the spike: it is there in the hidden state entering the next.
    reinforced_layers : tuple of int
        Layers that write as purely into the dimension, with less than half of the largest entry after a pause, or less
        than a tenth of it without one.
    removed_layers : tuple of int
        Layers at the end that write as strongly, too late for the spike to last: it is taken away.
    bands : tuple of (int, int)
        Hidden states entering these layers are predicted to hold the spike.
    share : float
        The largest part of its energy that one neuron writes into the dimension, fellow leading ones aside.
    rank : int
        1 for the leading dimension.
    input_norm : float or None
        The weight of the norms that read the stream inside the bands, over the median of their weights (median over
        norms, absolute): well below 1 where the model keeps the spike from what its layers compute. None without norm
        weights. It is evidence beside the decision.
    """

    dim: int
    ratio: float
    p_value: float
    created_layers: tuple[int, ...]
    reinforced_layers: tuple[int, ...]
    removed_layers: tuple[int, ...]
    bands: tuple[tuple[int, int], ...]
    share: float
    rank: int
    input_norm: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "dim": self.dim,
            "created_layers": list(self.created_layers),
            "reinforced_layers": list(self.reinforced_layers),
            "removed_layers": list(self.removed_layers),
            "bands": [list(band) for band in self.bands],
            "ratio": float(f"{self.ratio:.6g}"),
            "share": float(f"{self.share:.6g}"),
            "p_value": self.p_value,
            "rank": self.rank,
            "input_norm": None if self.input_norm is None else float(f"{self.input_norm:.4g}"),
        }


def decide(
    mlp: Mapping[int, LayerScores], num_layers: int, settings: PredictionSettings
) -> tuple[tuple[PredictedDimension, ...], str]:
    """The sink dimensions, strongest first, and the reason in one sentence.

    Parameters
    ----------
    mlp : dict of layer to LayerScores
        Of what each layer's MLP writes.
    num_layers : int
        Of the whole model.
    """
    if not mlp:
        return (), "no layer has an MLP that writes into the residual stream; profile the model instead"
    layers = np.array(sorted(mlp))
    score, ratio, odds = (
        np.stack([getattr(mlp[layer], name) for layer in layers.tolist()]) for name in ("score", "ratio", "odds")
    )
    p_value = p_values([mlp[layer] for layer in layers.tolist()])
    # A spike is written by one layer, or by many a little: whichever says more, doubled (Bonferroni).
    combined = np.minimum(2 * np.minimum(fisher(p_value), simes(p_value, axis=0)), 1.0)
    adjusted = benjamini_hochberg(combined)
    # What is written later than this cannot last over enough layers to be a sink.
    timely = layers < num_layers - settings.run_length(num_layers)
    if not timely.any():
        return (), "the model has too few layers for a spike to last"
    best = score[timely].max(axis=0)
    strong = (adjusted <= settings.false_discovery_rate) & (ratio[timely].max(axis=0) >= settings.least_ratio)
    if not strong.any():
        return (), (
            "no row of the MLP output matrices stands out: the largest entry is "
            f"{ratio[timely].max():.1f} times the median of its matrix's rows ({settings.least_ratio:g} is asked for)"
        )
    strong &= best >= best[strong].max() + np.log(settings.companion_ratio)
    found = [
        _dimension(dim, rank, layers, timely, score, ratio, odds, adjusted, settings)
        for rank, dim in enumerate(sorted(np.flatnonzero(strong).tolist(), key=lambda dim: -best[dim]), 1)
    ]
    named = ", ".join(str(entry.dim) for entry in found)
    created = ", ".join(map(str, found[0].created_layers))
    reason = (
        f"{'dimension' if len(found) == 1 else 'dimensions'} {named}: single MLP neurons write up to "
        f"{max(entry.ratio for entry in found):.1f} times the median of their matrix's rows, in {found[0].dim} at "
        f"layers {created}"
    )
    return tuple(found), reason


def fisher(p_values: Floats) -> Floats:
    """One p-value per column for the hypothesis that no row of p-values [layers, D] has an effect (Fisher 1932).

    The rows of different matrices are independent where no dimension is special.
    """
    statistic = -2.0 * np.log(np.maximum(p_values, 1e-300)).sum(axis=0)
    return np.asarray(chi2.sf(statistic, 2 * len(p_values)), np.float64)


def _dimension(
    dim: int,
    rank: int,
    layers: np.ndarray,
    timely: np.ndarray,
    score: Floats,
    ratio: Floats,
    odds: Floats,
    adjusted: Floats,
    settings: PredictionSettings,
) -> PredictedDimension:
    own, size = odds[:, dim], ratio[:, dim]
    least = min(settings.written_share / (1 - settings.written_share), own[timely].max() / 2)
    writing = (own >= least) & (score[:, dim] >= score.max(axis=1))
    if not (writing & timely).any():
        writing[np.argmax(np.where(timely, score[:, dim], -np.inf))] = True
    groups = [(first, last) for first, last in runs(writing & timely)]
    regimes = [group for group in groups if size[group[0] : group[1] + 1].max() >= size[timely].max() / 2]
    created = [
        place
        for first, last in regimes
        for place in range(first, last + 1)
        if size[place] >= CREATING_PART * size[first : last + 1].max()
    ]
    reinforced = [place for place in np.flatnonzero(writing & timely).tolist() if place not in created]
    removed = layers[writing & ~timely]
    # A regime begins after the layer that writes most, and ends where the next one begins or the spike is removed.
    ends = [int(layers[first]) for first, _ in regimes[1:]] + [int(removed[0]) if len(removed) else int(layers[-1])]
    starts = [int(layers[first + np.argmax(size[first : last + 1])]) + 1 for first, last in regimes]
    share = own[timely].max()
    return PredictedDimension(
        dim=dim,
        ratio=float(size[timely].max()),
        p_value=float(adjusted[dim]),
        created_layers=tuple(layers[created].tolist()),
        reinforced_layers=tuple(layers[reinforced].tolist()),
        removed_layers=tuple(removed.tolist()),
        bands=tuple((start, end) for start, end in zip(starts, ends, strict=True) if start <= end),
        share=float(share / (1 + share)),
        rank=rank,
    )
