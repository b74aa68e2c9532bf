"""The calibration data of a run: the user's own where given, the embedded ones elsewhere."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sinkscope.calibration.dataset import read_dataset
from sinkscope.calibration.images import default_images, read_images
from sinkscope.calibration.samples import Sample
from sinkscope.calibration.texts import default_texts, read_texts
from sinkscope.errors import InputError


@dataclass(frozen=True)
class Calibration:
    """Texts and pictures with their sources in words; None stands for the embedded texts and the generated pictures."""

    texts: Sequence[Sample] | None = None
    pictures: Sequence[Sample] | None = None
    texts_source: str = "embedded texts"
    pictures_source: str = "generated pictures"

    def samples(self, pictures: bool) -> list[Sample]:
        """The samples of a run; with pictures where the model takes them."""
        texts = default_texts() if self.texts is None else list(self.texts)
        if not pictures:
            return texts
        return texts + (default_images() if self.pictures is None else list(self.pictures))

    def source(self, pictures: bool) -> str:
        """Where the samples come from, for the provenance."""
        return f"{self.texts_source} and {self.pictures_source}" if pictures else self.texts_source


def gather(
    texts: str | os.PathLike[str] | Sequence[str] | None = None,
    images: str | os.PathLike[str] | Sequence[Sample] | None = None,
    dataset: str | None = None,
    *,
    samples: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
) -> Calibration:
    """Read calibration data before any model is loaded.

    Parameters
    ----------
    texts : path or sequence of str, optional
        See `read_texts`.
    images : path or sequence of Sample, optional
        See `read_images`.
    dataset : str, optional
        Takes the place of one of them; see `read_dataset`.
    samples, tokens : int, optional
        How much of the dataset is read; files are read whole, and a run then takes so much of them.
    seed : int
        Of the choice from the dataset.

    Raises
    ------
    InputError
        If something cannot be read, or the dataset holds what is given otherwise as well.
    """
    given = Calibration()
    if texts is not None:
        given = _with_texts(given, texts)
    if images is not None:
        given = _with_pictures(given, images)
    if dataset is None:
        return given
    found = read_dataset(dataset, samples=samples, tokens=tokens, seed=seed)
    kind, option, taken = ("pictures", "--images", images) if found.pictures else ("texts", "--texts", texts)
    if taken is not None:
        raise InputError(f"the dataset {dataset} holds {kind}, and {option} gives others; leave one of them out")
    if found.pictures:
        return replace(given, pictures=found.samples, pictures_source=found.source)
    return replace(given, texts=found.samples, texts_source=found.source)


def _with_texts(given: Calibration, texts: str | os.PathLike[str] | Sequence[str]) -> Calibration:
    if isinstance(texts, (str, os.PathLike)):
        return replace(given, texts=read_texts(texts), texts_source=f"texts from {Path(texts).name}")
    return replace(given, texts=[Sample(text=text) for text in texts], texts_source="given texts")


def _with_pictures(given: Calibration, images: str | os.PathLike[str] | Sequence[Sample]) -> Calibration:
    if isinstance(images, (str, os.PathLike)):
        return replace(given, pictures=read_images(images), pictures_source=f"pictures from {Path(images).name}")
    return replace(given, pictures=list(images), pictures_source="given pictures")
