"""What calibration data are made of, and their fingerprint."""

import hashlib
import json
import logging
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageOps

from sinkscope.errors import InputError
from sinkscope.files import check_readable

# What Pillow logs about odd files goes where an application sends its logs, and otherwise nowhere: not to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class PictureBytes:
    """A picture file in memory: its bytes, and where they come from, for messages."""

    data: bytes
    origin: str

    def __str__(self) -> str:
        return self.origin


FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, as far as this Pillow can. Its others are little used, and for PostScript it runs another program."""

BAD_PICTURE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises on files that are no good pictures."""

Picture: TypeAlias = Path | PictureBytes | Image.Image


@dataclass(frozen=True)
class Sample:
    """One calibration sample: a text, or one or more pictures with a prompt.

    Attributes
    ----------
    text : str or None
        The text of a text sample.
    images : tuple of path, PictureBytes or PIL image
        The pictures of an image sample; empty for a text sample.
    prompt : str or None
        What is asked about the pictures.
    """

    text: str | None = None
    images: tuple[Picture, ...] = ()
    prompt: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (not self.images):
            raise InputError("a calibration sample needs either a text or pictures, and not both")
        try:
            for text in (self.text, self.prompt):
                (text or "").encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise InputError(
                f"a calibration text holds half a character (the surrogate {half!a}); cut it out"
            ) from error

    def open_images(self) -> list[Image.Image]:
        """The pictures, decoded, in RGB.

        Raises
        ------
        InputError
            If a picture cannot be read.
        """
        return [open_picture(picture) for picture in self.images]


def open_picture(picture: Picture) -> Image.Image:
    """A picture, decoded, in RGB, turned upright as its camera says.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    with opened_picture(picture) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


@contextmanager
def opened_picture(picture: Path | PictureBytes) -> Iterator[Image.Image]:
    """A picture file, open: its header is read, and what is asked of it inside the context.

    Raises
    ------
    InputError
        If it cannot be read, also inside the context; or if it has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        if isinstance(picture, Path):
            check_readable(picture)
        with warnings.catch_warnings():
            # Odd tags are none of the user's business, but pictures that fill the memory are not decoded at all.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(
                BytesIO(picture.data) if isinstance(picture, PictureBytes) else picture, formats=known
            ) as opened:
                yield opened
    except BAD_PICTURE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read the picture {picture} ({reason}); convert it to PNG or remove it") from error


def fingerprint(
    samples: Sequence[Sample],
    *,
    chat_template: bool | None = None,
    max_tokens: int | None = None,
    max_length: int = 256,
    seed: int = 0,
) -> str:
    """SHA-256 over the contents of the samples in their order, and over how they are used, as hexadecimal digits.

    Texts, prompts and pixels count; file names and picture formats do not. The same data used in the same way have the
    same fingerprint for every model.

    Parameters
    ----------
    samples : sequence of Sample
        Those that are used.
    chat_template, max_tokens, max_length, seed
        As in `sinkscope.capture.settings.CaptureSettings`. The seed only counts with `max_tokens`, which chooses by it.
        With none of them other than here, the fingerprint is that of the contents alone.

    Raises
    ------
    InputError
        If a picture cannot be read.
    """
    digest = hashlib.sha256()

    def add(label: bytes, content: bytes) -> None:
        # Lengths keep neighbouring fields apart: ("ab", "c") and ("a", "bc") differ.
        digest.update(label + len(content).to_bytes(8, "big") + content)

    for sample in samples:
        add(b"text", _bytes(sample.text))
        add(b"prompt", _bytes(sample.prompt))
        for image in sample.open_images():
            add(b"image", f"{image.size}".encode("ascii") + image.tobytes())
        add(b"end", b"")
    use = {
        "chat_template": chat_template,
        "max_tokens": None if max_tokens is None else [max_tokens, seed],
        "max_length": None if max_length == 256 else max_length,
    }
    if any(value is not None for value in use.values()):
        add(b"use", json.dumps(use, sort_keys=True).encode("ascii"))
    return digest.hexdigest()


def _bytes(text: str | None) -> bytes:
    return (text or "").encode("utf-8", "surrogatepass")
