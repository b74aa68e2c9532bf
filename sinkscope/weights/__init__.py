"""Sink dimensions from the weights alone: which matrices write the residual stream, and which rows stand out."""

from sinkscope.weights.checkpoint import Checkpoint, Stored, open_checkpoint
from sinkscope.weights.decision import PredictedDimension, PredictionSettings
from sinkscope.weights.prediction import Prediction, predict, predict_checkpoint, predict_loaded
from sinkscope.weights.witness import compare, with_weights

__all__ = [
    "Checkpoint",
    "PredictedDimension",
    "Prediction",
    "PredictionSettings",
    "Stored",
    "compare",
    "open_checkpoint",
    "predict",
    "predict_checkpoint",
    "predict_loaded",
    "with_weights",
]
