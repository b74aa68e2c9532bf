"""Seeded pictures of a few coloured shapes, with questions of five types and their answers.

Scene ``i`` of a seed depends on the seed and on ``i`` only, so a longer run starts with the same scenes as a short
one. Different seeds share no scene.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PICTURE_SIZE = 48
PATCH_SIZE = 8
PATCHES_PER_SIDE = PICTURE_SIZE // PATCH_SIZE
CELL_SIZE = PICTURE_SIZE // 3

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "green": (30, 150, 55),
    "blue": (35, 70, 215),
    "yellow": (240, 220, 40),
    "purple": (140, 45, 170),
    "orange": (245, 135, 25),
}
SHAPES = ("circle", "square", "triangle", "cross")
CELLS = (
    *("top left", "top center", "top right"),
    *("middle left", "center", "middle right"),
    *("bottom left", "bottom center", "bottom right"),
)
NUMBERS = ("one", "two", "three")
QUESTION_TYPES = ("color", "shape", "count", "place", "existence")
BACKGROUNDS = ("plain", "gradient", "stripes", "blocks", "checks")


@dataclass(frozen=True)
class Thing:
    """One object of a scene; ``center`` (x, y) and ``radius`` are in pixels."""

    color: str
    shape: str
    cell: int
    center: tuple[float, float]
    radius: float

    @property
    def name(self) -> str:
        """The object in words, such as "red circle"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Question:
    """A question about a scene: its type (one of ``QUESTION_TYPES`` or "caption"), its text and its answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """A picture and what is true of it.

    Attributes
    ----------
    image : PIL.Image.Image
        RGB, 48 x 48 pixels.
    things : tuple of Thing
        One to three objects in reading order; colours and shapes are distinct within a scene.
    owner : ndarray of int8, shape [48, 48]
        Index into ``things`` of the object that covers a pixel, -1 for the background.
    questions : tuple of Question
        One question of each type, in the order of ``QUESTION_TYPES``.
    """

    image: Image.Image
    things: tuple[Thing, ...]
    owner: NDArray[np.int8]
    questions: tuple[Question, ...]

    @property
    def captions(self) -> tuple[Question, Question]:
        """Two descriptions: what is where, and where is what."""
        what = ", ".join(f"{thing.name} {CELLS[thing.cell]}" for thing in self.things)
        where = ", ".join(f"{CELLS[thing.cell]} {thing.name}" for thing in self.things)
        return Question("caption", "Describe the picture.", what), Question("caption", "What is where?", where)

    def patch_owners(self) -> NDArray[np.int8]:
        """Return the object that each visual token shows.

        Returns
        -------
        ndarray of int8, shape [36]
            Patches in reading order; -1 where no object covers at least 12 of the patch's 64 pixels.
        """
        side = PATCHES_PER_SIDE
        patches = self.owner.reshape(side, PATCH_SIZE, side, PATCH_SIZE).swapaxes(1, 2).reshape(side * side, -1)
        covered = np.stack([(patches == index).sum(axis=1) for index in range(len(self.things))], axis=1)
        return np.where(covered.max(axis=1) >= 12, covered.argmax(axis=1), -1).astype(np.int8)


def generate(
    seed: int,
    n: int,
    *,
    counts: Sequence[int] = (1, 2, 3),
    noise: float = 6.0,
    radius: tuple[float, float] = (5.5, 7.0),
) -> list[Scene]:
    """Generate scenes.

    Parameters
    ----------
    seed : int
        Non-negative. The same seed and options give the same scenes, bit for bit.
    n : int
        Number of scenes.
    counts : sequence of int
        Numbers of objects to draw from, each between 1 and 3; a repeated value is drawn more often.
    noise : float
        Standard deviation of the pixel noise, in units of 0-255.
    radius : (float, float)
        Range of the objects' half width, in pixels. Smaller values make a harder set.

    Returns
    -------
    list of Scene
    """
    return [_scene(np.random.default_rng([seed, index]), counts, noise, radius) for index in range(n)]


def _scene(random: np.random.Generator, counts: Sequence[int], noise: float, radius: tuple[float, float]) -> Scene:
    count = int(random.choice(np.asarray(counts)))
    colors = random.permutation(list(COLORS))[:count]
    shapes = random.permutation(SHAPES)[:count]
    cells = np.sort(random.permutation(len(CELLS))[:count])
    things = []
    for color, shape, cell in zip(colors, shapes, cells, strict=True):
        jitter = random.uniform(-1.5, 1.5, size=2)
        center = (
            float(CELL_SIZE * (cell % 3 + 0.5) - 0.5 + jitter[0]),
            float(CELL_SIZE * (cell // 3 + 0.5) - 0.5 + jitter[1]),
        )
        things.append(Thing(str(color), str(shape), int(cell), center, float(random.uniform(*radius))))
    pixels = _background(random)
    owner = np.full((PICTURE_SIZE, PICTURE_SIZE), -1, dtype=np.int8)
    for index, thing in enumerate(things):
        inside = _inside(thing)
        owner[inside] = index
        pixels[inside] = np.asarray(COLORS[thing.color], dtype=np.float64) + random.uniform(-14, 14, size=3)
    pixels = pixels + random.normal(0.0, noise, size=pixels.shape)
    image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return Scene(image, tuple(things), owner, _questions(random, things))


def _inside(thing: Thing) -> NDArray[np.bool_]:
    """Return the pixels [48, 48] that an object covers."""
    rows, columns = np.mgrid[0:PICTURE_SIZE, 0:PICTURE_SIZE].astype(np.float64)
    x, y, r = columns - thing.center[0], rows - thing.center[1], thing.radius
    inside: NDArray[np.bool_]
    if thing.shape == "circle":
        inside = x**2 + y**2 <= r**2
    elif thing.shape == "square":
        inside = np.maximum(abs(x), abs(y)) <= 0.88 * r
    elif thing.shape == "triangle":
        inside = (abs(y) <= r) & (abs(x) <= (y + r) / 2 + 0.5)
    else:
        inside = (np.minimum(abs(x), abs(y)) <= 0.34 * r) & (np.maximum(abs(x), abs(y)) <= r)
    return inside


def _background(random: np.random.Generator) -> NDArray[np.float64]:
    """Paint a background of muted tones, so that no object's colour occurs in it; pixels [48, 48, 3] in 0-255."""
    first, second = (random.uniform(60, 225) + random.uniform(-14, 14, size=3) for _ in range(2))
    rows, columns = np.mgrid[0:PICTURE_SIZE, 0:PICTURE_SIZE]
    kind = random.choice(BACKGROUNDS)
    period, phase = int(random.integers(4, 10)), int(random.integers(0, 10))
    share: NDArray[np.floating]
    if kind == "plain":
        share = np.zeros((PICTURE_SIZE, PICTURE_SIZE))
    elif kind == "gradient":
        angle = random.uniform(0, 2 * np.pi)
        slope = np.cos(angle) * columns + np.sin(angle) * rows
        share = (slope - slope.min()) / (slope.max() - slope.min())
    elif kind == "stripes":
        along = (rows, columns, rows + columns)[int(random.integers(3))]
        share = ((along + phase) // period % 2).astype(np.float64)
    elif kind == "blocks":
        share = np.kron(random.uniform(0, 1, size=(6, 6)), np.ones((8, 8)))
    else:
        share = (((rows + phase) // period + (columns + phase) // period) % 2).astype(np.float64)
    # A weak contrast keeps patterns visible without hiding the objects' outlines.
    return first + 0.5 * share[..., None] * (second - first)


def _questions(random: np.random.Generator, things: Sequence[Thing]) -> tuple[Question, ...]:
    by_shape, by_color, placed = (things[int(random.integers(len(things)))] for _ in range(3))
    return (
        Question("color", f"What color is the {by_shape.shape}?", by_shape.color),
        Question("shape", f"What shape is the {by_color.color} object?", by_color.shape),
        Question("count", "How many objects are there?", NUMBERS[len(things) - 1]),
        Question("place", f"Where is the {placed.name}?", CELLS[placed.cell]),
        _existence(random, things),
    )


def _existence(random: np.random.Generator, things: Sequence[Thing]) -> Question:
    """Ask for an object that is there, or as often for a near miss that shares its colour or its shape."""
    thing = things[int(random.integers(len(things)))]
    color, shape = thing.color, thing.shape
    present = bool(random.integers(2))
    if not present and random.integers(2):
        color = str(random.choice([other for other in COLORS if other != color]))
    elif not present:
        shape = str(random.choice([other for other in SHAPES if other != shape]))
    article = "an" if color[0] in "aeiou" else "a"
    return Question("existence", f"Is there {article} {color} {shape}?", "yes" if present else "no")
