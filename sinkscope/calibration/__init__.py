"""Calibration data: embedded texts and generated pictures, and readers for the user's own."""

from sinkscope.calibration.dataset import read_dataset
from sinkscope.calibration.gather import Calibration, gather
from sinkscope.calibration.images import default_images, read_images
from sinkscope.calibration.samples import PictureBytes, Sample, fingerprint
from sinkscope.calibration.texts import default_texts, read_texts

__all__ = [
    "Calibration",
    "PictureBytes",
    "Sample",
    "default_images",
    "default_samples",
    "default_texts",
    "fingerprint",
    "gather",
    "read_dataset",
    "read_images",
    "read_texts",
]


def default_samples(images: bool) -> list[Sample]:
    """The embedded texts, and the generated pictures where the model takes pictures."""
    return Calibration().samples(images)
