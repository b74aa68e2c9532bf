"""Sink dimensions named from the weights alone: no data, no forward pass, one matrix in memory at a time."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import chi2
from torch import Tensor, nn

from sinkscope.backbone.anatomy import Anatomy, find_anatomy
from sinkscope.errors import InputError
from sinkscope.significance import Floats, benjamini_hochberg, runs, shortest_run, simes
from sinkscope.weights.checkpoint import Checkpoint, open_checkpoint
from sinkscope.weights.memory import LoadedParameters
from sinkscope.weights.statistic import RowScores, score_rows
from sinkscope.weights.structure import Writer, find_writers

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


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
        Later layers that write as purely into the dimension, with less than half of the largest entry.
    removed_layers : tuple of int
        Layers at the end that write as strongly, too late for the spike to last: it is taken away.
    bands : tuple of (int, int)
        Hidden states entering these layers are predicted to hold the spike.
    share : float
        The largest part of its energy that one neuron writes into the dimension, fellow leading ones aside.
    rank : int
        1 for the leading dimension.
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
        }


@dataclass(frozen=True)
class Prediction:
    """What the weights of a model say.

    Attributes
    ----------
    verdict : str
        "sinks" or "none".
    reason : str
        One sentence.
    sink_dimensions : tuple of PredictedDimension
        Strongest first.
    backbone : dict
        Fingerprint, as in a profile.
    mlp, attention : dict of layer to RowScores
        Scores of the rows of what each layer's MLP and attention write.
    matrices, bytes_read : int
        What was read.
    """

    verdict: Literal["sinks", "none"]
    reason: str
    sink_dimensions: tuple[PredictedDimension, ...]
    backbone: dict[str, Any]
    mlp: dict[int, RowScores] = field(repr=False)
    attention: dict[int, RowScores] = field(repr=False)
    matrices: int = 0
    bytes_read: int = 0

    @property
    def dims(self) -> tuple[int, ...]:
        """The predicted sink dimensions, strongest first."""
        return tuple(entry.dim for entry in self.sink_dimensions)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "sink_dimensions": [entry.to_dict() for entry in self.sink_dimensions],
            "backbone": self.backbone,
            "matrices": self.matrices,
            "bytes_read": self.bytes_read,
        }

    def evidence(self, dim: int) -> dict[str, Any]:
        """What the weights say of one dimension: its rank in every layer's MLP, ready for JSON."""
        layers = [
            {
                "layer": layer,
                "rank": int((scores.ratio > scores.ratio[dim]).sum()) + 1,
                "ratio": float(f"{scores.ratio[dim]:.4g}"),
            }
            for layer, scores in self.mlp.items()
        ]
        best = max(layers, key=lambda entry: entry["ratio"]) if layers else {"rank": None, "ratio": None}
        return {
            "dim": dim,
            "predicted": dim in self.dims,
            "rank": best["rank"],
            "ratio": best["ratio"],
            "layers": [entry["layer"] for entry in layers if entry["rank"] == 1],
        }


def predict(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    adapter: str | os.PathLike[str] | None = None,
    settings: PredictionSettings | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Name the sink dimensions of a model from its weights.

    Parameters
    ----------
    model : str or path
        Hub id, local folder or ``.gguf`` file. Of the weights only the matrices that write into the residual stream are
        read, one at a time.
    revision, trust_remote_code
        As for `load`.
    adapter : path, optional
        A LoRA adapter, added before looking.
    settings : PredictionSettings, optional
    progress : callable, optional
        Called with (bytes done, bytes in all).

    Raises
    ------
    InputError
        If the checkpoint cannot be found or read.
    UnsupportedModelError
        If it is no decoder model, or its residual stream cannot be followed.
    """
    with open_checkpoint(model, revision=revision, trust_remote_code=trust_remote_code, adapter=adapter) as checkpoint:
        return _predict(checkpoint.model, checkpoint, settings, progress)


def predict_loaded(model: nn.Module, *, settings: PredictionSettings | None = None) -> Prediction:
    """The same for a model that is in memory already, from its parameters.

    Raises
    ------
    UnsupportedModelError
        If its structure cannot be followed, or its parameters are quantised.
    """
    parameters = LoadedParameters(model)
    return _predict(parameters.skeleton(), parameters, settings, None)


def _predict(
    skeleton: nn.Module,
    source: Checkpoint | LoadedParameters,
    settings: PredictionSettings | None,
    progress: Progress | None,
) -> Prediction:
    anatomy = find_anatomy(skeleton)
    writers = find_writers(skeleton, anatomy)
    by_kind, matrices = _read_scores(source, writers, progress)
    return _decide(anatomy, by_kind, settings or PredictionSettings(), matrices, source.bytes_read)


def _read_scores(
    checkpoint: Checkpoint | LoadedParameters, writers: Sequence[Writer], progress: Progress | None
) -> tuple[dict[str, dict[int, list[RowScores]]], int]:
    jobs = [(writer, stored) for writer in writers for stored in checkpoint.find(writer.parameter)]
    total, done = sum(stored.nbytes for _, stored in jobs), 0
    scores: dict[str, dict[int, list[RowScores]]] = {"mlp": {}, "attention": {}}
    for index, (writer, stored) in enumerate(jobs):
        if index + 1 < len(jobs):
            checkpoint.prefetch(jobs[index + 1][1])
        scale = _scale(checkpoint, writer)
        matrix = checkpoint.read(stored)
        axis = writer.axis - (1 if stored.part is not None else 0)
        for part in matrix if matrix.dim() == 3 else [matrix]:
            oriented = part if (axis if matrix.dim() == 2 else axis - 1) == 0 else part.T
            scores[writer.kind].setdefault(writer.layer, []).append(score_rows(oriented, scale))
        done += stored.nbytes
        if progress is not None:
            progress(done, total)
    return scores, len(jobs)


def _scale(checkpoint: Checkpoint | LoadedParameters, writer: Writer) -> Tensor | None:
    scale: Tensor | None = None
    for entry in writer.scales:
        weight = checkpoint.read(checkpoint.find(entry.parameter)[0]).float() + entry.offset
        scale = weight if scale is None else scale * weight
    return scale


def _decide(
    anatomy: Anatomy,
    by_kind: dict[str, dict[int, list[RowScores]]],
    settings: PredictionSettings,
    matrices: int,
    bytes_read: int,
) -> Prediction:
    mlp, attention = (
        {layer: _joined(parts) for layer, parts in by_kind[kind].items()} for kind in ("mlp", "attention")
    )
    whole = Prediction(
        "none", "", (), anatomy.fingerprint(), mlp=mlp, attention=attention, matrices=matrices, bytes_read=bytes_read
    )
    if not mlp:
        return replace(
            whole, reason="no layer has an MLP that writes into the residual stream; profile the model instead"
        )
    layers = np.array(sorted(mlp))
    score, ratio, odds, p_value = (
        np.stack([getattr(mlp[layer], name) for layer in layers.tolist()])
        for name in ("score", "ratio", "odds", "p_value")
    )
    # A spike is written by one layer, or by many a little: whichever says more, doubled (Bonferroni).
    combined = np.minimum(2 * np.minimum(fisher(p_value), simes(p_value, axis=0)), 1.0)
    adjusted = benjamini_hochberg(combined)
    # What is written later than this cannot last over enough layers to be a sink.
    timely = layers < anatomy.num_layers - settings.run_length(anatomy.num_layers)
    if not timely.any():
        return replace(whole, reason="the model has too few layers for a spike to last")
    best = score[timely].max(axis=0)
    strong = (adjusted <= settings.false_discovery_rate) & (ratio[timely].max(axis=0) >= settings.least_ratio)
    if not strong.any():
        return replace(
            whole,
            reason="no row of the MLP output matrices stands out: the largest entry is "
            f"{ratio[timely].max():.1f} times the median of its matrix's rows ({settings.least_ratio:g} is asked for)",
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
    return replace(whole, verdict="sinks", reason=reason, sink_dimensions=tuple(found))


def _joined(parts: list[RowScores]) -> RowScores:
    """The matrices of one layer as one: of every row the one with the highest score; p-values by Simes."""
    if len(parts) == 1:
        return parts[0]
    chosen = np.argmax([part.score for part in parts], axis=0)[None]
    picked = {
        name: np.take_along_axis(np.stack([getattr(part, name) for part in parts]), chosen, 0)[0]
        for name in ("ratio", "norm_ratio", "odds", "score")
    }
    return RowScores(**picked, p_value=simes(np.stack([part.p_value for part in parts]), axis=0))


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
    created = [place for first, last in regimes for place in range(first, last + 1)]
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
