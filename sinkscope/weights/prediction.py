"""Sink dimensions named from the weights alone: no data, no forward pass, a few matrices in memory."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.weights.checkpoint import Checkpoint, Stored, open_checkpoint
from sinkscope.weights.decision import PredictedDimension, PredictionSettings, decide
from sinkscope.weights.layer_scores import LayerScores
from sinkscope.weights.memory import LoadedParameters
from sinkscope.weights.statistic import TINY, RowScores, score_rows
from sinkscope.weights.structure import Scale, Writer, find_writers

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""
MEMORY = 600 * 2**20
"""Up to three matrices are read and looked at side by side, as long as they take no more bytes in float32."""


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
    mlp, attention : dict of layer to LayerScores
        Scores of the rows of what each layer's MLP and attention write.
    matrices, bytes_read : int
        What was read.
    seconds : float
        How long reading and scoring the matrices took.
    """

    verdict: Literal["sinks", "none"]
    reason: str
    sink_dimensions: tuple[PredictedDimension, ...]
    backbone: dict[str, Any]
    mlp: dict[int, LayerScores] = field(repr=False)
    attention: dict[int, LayerScores] = field(repr=False)
    matrices: int = 0
    bytes_read: int = 0
    seconds: float = field(default=0.0, compare=False)

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
        read, a few at a time.
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
    with open_checkpoint(
        model, revision=revision, trust_remote_code=trust_remote_code, adapter=adapter, reuse_memory=True
    ) as checkpoint:
        return predict_checkpoint(checkpoint, settings=settings, progress=progress)


def predict_checkpoint(
    checkpoint: Checkpoint, *, settings: PredictionSettings | None = None, progress: Progress | None = None
) -> Prediction:
    """The same for a checkpoint that is open already.

    Raises
    ------
    InputError
        If something of it is missing or damaged.
    UnsupportedModelError
        If the residual stream cannot be followed.
    """
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
    began = time.perf_counter()
    by_kind, matrices = _read_scores(source, writers, progress)
    seconds = time.perf_counter() - began
    dimensions, reason = decide(by_kind["mlp"], anatomy.num_layers, settings or PredictionSettings())
    return Prediction(
        verdict="sinks" if dimensions else "none",
        reason=reason,
        sink_dimensions=_with_input_norms(source, writers, dimensions),
        backbone=anatomy.fingerprint(),
        mlp=by_kind["mlp"],
        attention=by_kind["attention"],
        matrices=matrices,
        bytes_read=source.bytes_read,
        seconds=seconds,
    )


def _read_scores(
    checkpoint: Checkpoint | LoadedParameters, writers: Sequence[Writer], progress: Progress | None
) -> tuple[dict[str, dict[int, LayerScores]], int]:
    jobs = [(writer, stored) for writer in writers for stored in checkpoint.find(writer.parameter)]
    scales = {writer: _scale(checkpoint, writer) for writer in writers}

    def look(job: tuple[Writer, Stored]) -> list[RowScores]:
        writer, stored = job
        matrix = checkpoint.read(stored)
        axis = writer.axis - (1 if stored.part is not None else 0)
        stacked = matrix.dim() == 3
        parts = matrix if stacked else [matrix]
        return [score_rows(part if axis == int(stacked) else part.T, scales[writer]) for part in parts]

    total, done = sum(stored.nbytes for _, stored in jobs), 0
    scores: dict[str, dict[int, LayerScores]] = {"mlp": {}, "attention": {}}
    largest = max(4 * prod(stored.shape) for _, stored in jobs)
    side_by_side = 1 if checkpoint.in_order else min(max(MEMORY // largest, 1), 3)
    with _one_torch_thread(), ThreadPoolExecutor(side_by_side) as workers:
        for (writer, stored), found in zip(jobs, workers.map(look, jobs), strict=True):
            for row_scores in found:
                layer = scores[writer.kind].get(writer.layer)
                if layer is None:
                    scores[writer.kind][writer.layer] = LayerScores(row_scores)
                else:
                    layer.add(row_scores)
            done += stored.nbytes
            if progress is not None:
                progress(done, total)
    return scores, len(jobs)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Blocks of a matrix are too small for torch to share out; its threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _scale(checkpoint: Checkpoint | LoadedParameters, writer: Writer) -> Tensor | None:
    scale: Tensor | None = None
    for entry in writer.scales:
        weight = _vector(checkpoint, entry)
        scale = weight if scale is None else scale * weight
    return scale


def _vector(checkpoint: Checkpoint | LoadedParameters, scale: Scale) -> Tensor:
    return checkpoint.read(checkpoint.find(scale.parameter)[0]).float() + scale.offset


def _with_input_norms(
    checkpoint: Checkpoint | LoadedParameters, writers: Sequence[Writer], found: Sequence[PredictedDimension]
) -> tuple[PredictedDimension, ...]:
    """The same dimensions with their weight in the norms that read the stream while it holds the spike."""
    weights: dict[Scale, Tensor] = {}
    completed = []
    for entry in found:
        inside = [writer for writer in writers if any(first <= writer.layer <= last for first, last in entry.bands)]
        parts = []
        for scale in dict.fromkeys(scale for writer in inside for scale in writer.reads):
            if scale not in weights:
                # Nothing rests on it, so that what is not there does not end a prediction.
                with suppress(InputError, UnsupportedModelError):
                    weights[scale] = _vector(checkpoint, scale).abs()
            if scale in weights:
                parts.append(float(weights[scale][entry.dim] / weights[scale].median().clamp_min(TINY)))
        completed.append(replace(entry, input_norm=float(np.median(parts)) if parts else None))
    return tuple(completed)
