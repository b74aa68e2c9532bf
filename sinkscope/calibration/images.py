"""Calibration pictures: generated ones, and a reader for the user's own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from sinkscope.calibration.folders import files_in
from sinkscope.calibration.lines import parse_objects, read_lines
from sinkscope.calibration.samples import Sample, open_picture
from sinkscope.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
DEFAULT_PROMPT = "Describe the picture."
PROMPTS = (
    DEFAULT_PROMPT,
    "What colour is the background?",
    "How many objects are there?",
    "What is in the middle of the picture, and what is around it?",
    "Is there a circle in the picture? Answer yes or no.",
    "List the colours that you see, from the most to the least common.",
)

# Files with prompts that a folder of pictures may hold, with their fields: the form of `sinkscope apply --batch`, and
# that of an image folder for the `datasets` library.
PROMPT_FILES = (("metadata.jsonl", "file_name", "text"), ("prompts.jsonl", "image", "prompt"))

Pixels = NDArray[np.float64]


def default_images(count: int = 24, seed: int = 0) -> list[Sample]:
    """Generated pictures of 96 to 224 pixels with short prompts; the same ones for the same seed.

    Plain, shaded, striped, chequered, noisy and cloudy backgrounds, with shapes or blocks like text on most of them.
    """
    generator = np.random.default_rng(seed)
    return [
        Sample(images=(_picture(generator, index),), prompt=PROMPTS[index % len(PROMPTS)]) for index in range(count)
    ]


def read_images(path: str | os.PathLike[str]) -> list[Sample]:
    """Pictures from a folder, or one picture.

    Prompts are optional: ``NAME.txt`` beside ``NAME.png``, or in the folder a ``prompts.jsonl`` with lines of
    ``{"image": "NAME.png", "prompt": "..."}``, or a ``metadata.jsonl`` with lines of ``{"file_name": "NAME.png",
    "text": "..."}``. Pictures without one are to be described.

    Returns
    -------
    list of Sample
        At least one, by file name.

    Raises
    ------
    InputError
        If the path is missing, holds no pictures, a picture cannot be read, or a prompt is malformed.
    """
    path = Path(path)
    if path.is_dir():
        found = files_in(path, SUFFIXES)
        if not found:
            raise InputError(
                f"the folder {path} holds no pictures ({', '.join(SUFFIXES)}); give one with pictures directly in it"
            )
        prompts = _read_prompts(path, {entry.name for entry in found})
    elif path.is_file():
        found, prompts = [path], {}
    else:
        raise InputError(f"there are no pictures at {path}; give a folder of pictures or one picture")
    for entry in found:
        open_picture(entry)  # A damaged picture is named now, not after an hour of profiling.
    return [Sample(images=(entry,), prompt=prompts.get(entry.name) or _beside(entry)) for entry in found]


def _read_prompts(folder: Path, pictures: set[str]) -> dict[str, str]:
    prompts: dict[str, str] = {}
    for file, image_field, prompt_field in PROMPT_FILES:
        path = folder / file
        for number, entry in parse_objects(path) if path.exists() else ():
            if file == "metadata.jsonl" and prompt_field not in entry:
                continue  # It may have been made for labels or boxes.
            image, prompt = entry.get(image_field), entry.get(prompt_field)
            if not (isinstance(image, str) and isinstance(prompt, str) and image and prompt.strip()):
                raise InputError(f'line {number} of {path} needs strings "{image_field}" and "{prompt_field}"')
            if image not in pictures:
                raise InputError(f"line {number} of {path} names {image}, which is not in the folder")
            prompts[image] = prompt
    return prompts


def _beside(picture: Path) -> str:
    text = picture.with_suffix(".txt")
    return ("".join(line for _, line in read_lines(text)).strip() if text.is_file() else "") or DEFAULT_PROMPT


def _picture(generator: np.random.Generator, index: int) -> Image.Image:
    height, width = (int(size) for size in generator.integers(96, 225, size=2))
    background = BACKGROUNDS[index % len(BACKGROUNDS)](generator, height, width)
    image = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8), mode="RGB")
    # Every sixth picture is background alone; every fourth of the others carries lines like text.
    if index % 6 == 5:
        return image
    if index % 4 == 3:
        _draw_lines(generator, image)
    else:
        _draw_shapes(generator, image)
    return image


def _grid(height: int, width: int) -> tuple[Pixels, Pixels]:
    rows, columns = np.mgrid[0:height, 0:width]
    return rows[..., None] / height, columns[..., None] / width


def _colour(generator: np.random.Generator) -> Pixels:
    return generator.uniform(0, 255, size=3)


def _plain(generator: np.random.Generator, height: int, width: int) -> Pixels:
    return np.broadcast_to(_colour(generator), (height, width, 3))


def _gradient(generator: np.random.Generator, height: int, width: int) -> Pixels:
    rows, columns = _grid(height, width)
    slope = generator.uniform(0, 1)
    position = slope * rows + (1 - slope) * columns
    return (1 - position) * _colour(generator) + position * _colour(generator)


def _stripes(generator: np.random.Generator, height: int, width: int) -> Pixels:
    rows, columns = _grid(height, width)
    angle, number = generator.uniform(0, np.pi), generator.integers(3, 12)
    wave = np.sin(2 * np.pi * number * (np.cos(angle) * rows + np.sin(angle) * columns)) > 0
    return np.where(wave, _colour(generator), _colour(generator))


def _checks(generator: np.random.Generator, height: int, width: int) -> Pixels:
    rows, columns = _grid(height, width)
    number = generator.integers(3, 10)
    return np.where(
        (np.floor(rows * number) + np.floor(columns * number)) % 2 > 0, _colour(generator), _colour(generator)
    )


def _noise(generator: np.random.Generator, height: int, width: int) -> Pixels:
    return _colour(generator) + generator.normal(0, 45, size=(height, width, 3))


def _clouds(generator: np.random.Generator, height: int, width: int) -> Pixels:
    coarse = generator.uniform(0, 255, size=(6, 6, 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse, mode="RGB").resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth.filter(ImageFilter.GaussianBlur(4)), np.float64)


BACKGROUNDS: tuple[Callable[[np.random.Generator, int, int], Any], ...] = (
    _plain,
    _gradient,
    _stripes,
    _checks,
    _noise,
    _clouds,
    _plain,
)


def _draw_shapes(generator: np.random.Generator, image: Image.Image) -> None:
    draw, size = ImageDraw.Draw(image), min(image.size)
    for _ in range(int(generator.integers(1, 5))):
        radius = generator.uniform(0.08, 0.25) * size
        x, y = generator.uniform(radius, np.array(image.size) - radius)
        colour = tuple(int(value) for value in _colour(generator))
        kind = generator.integers(4)
        if kind == 0:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        elif kind == 1:
            draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=colour)
        elif kind == 2:
            draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
        else:
            draw.line((x - radius, y - radius, x + radius, y + radius), fill=colour, width=max(2, int(radius / 4)))


def _draw_lines(generator: np.random.Generator, image: Image.Image) -> None:
    """Rows of small dark blocks on a light sheet: the look of a printed page, without a font."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    draw.rectangle((width // 10, height // 10, width - width // 10, height - height // 10), fill=(245, 243, 235))
    for y in range(height // 6, height - height // 6, 9):
        x = width // 7
        while x < width - width // 6:
            length = int(generator.integers(4, 22))
            draw.rectangle((x, y, min(x + length, width - width // 7), y + 4), fill=(40, 40, 50))
            x += length + 5
