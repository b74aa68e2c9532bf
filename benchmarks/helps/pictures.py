"""Harder pictures for the demo's questions, made from its own scenes.

A scene of `sinkscope.demo.pictures` with small objects gets muted scraps, a cover over a part of every object, and
pixel noise. Covers are drawn again until every object can still be told, so each question keeps its one right answer.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sinkscope.demo.pictures import PICTURE_SIZE, SHAPES, Scene, Thing, _inside, generate

LEAST_VISIBLE = 14
"""Pixels of an object that stay visible."""
LEAST_DIFFERENCE = 6
"""Pixels in which what is seen of an object differs from what would be seen of any other shape in its place."""
TRIES = 200


@dataclass(frozen=True)
class Difficulty:
    """How hard the pictures are.

    Attributes
    ----------
    name : str
    noise : float
        Standard deviation of the pixel noise, in units of 0-255.
    radius : (float, float)
        Range of the objects' half width, in pixels.
    hidden : float
        Largest part of an object's width or height that its cover takes; each cover takes up to that.
    scraps : int
        Muted rectangles over the picture, which may hide parts of objects too.
    """

    name: str
    noise: float
    radius: tuple[float, float]
    hidden: float
    scraps: int


LEVELS = (
    Difficulty("as trained", 6.0, (5.5, 7.0), 0.0, 0),
    Difficulty("1", 14.0, (4.9, 6.2), 0.2, 0),
    Difficulty("2", 16.0, (4.7, 6.0), 0.25, 1),
    Difficulty("3", 18.0, (4.5, 5.8), 0.3, 1),
    Difficulty("4", 20.0, (4.3, 5.6), 0.3, 2),
)


def hard_scenes(seed: int, n: int, difficulty: Difficulty) -> list[Scene]:
    """Generate harder scenes; the same arguments give the same ones, bit for bit, and more of them begin with these.

    Parameters
    ----------
    seed : int
    n : int
        Number of scenes.
    difficulty : Difficulty

    Returns
    -------
    list of Scene
        With `owner` naming the visible pixels of each object.
    """
    scenes = generate(seed, n, noise=0.0, radius=difficulty.radius)
    return [_harder(scene, np.random.default_rng([seed, index, 1]), difficulty) for index, scene in enumerate(scenes)]


def readable(things: tuple[Thing, ...], covered: NDArray[np.bool_]) -> bool:
    """Whether every object can be told under what covers it.

    Parameters
    ----------
    things : tuple of Thing
    covered : ndarray of bool, shape [48, 48]
        Pixels that something else is painted on.
    """
    for thing in things:
        seen = _inside(thing) & ~covered
        if seen.sum() < LEAST_VISIBLE:
            return False
        for shape in SHAPES:
            other = _inside(replace(thing, shape=shape)) & ~covered
            if shape != thing.shape and (seen ^ other).sum() < LEAST_DIFFERENCE:
                return False
    return True


def _harder(scene: Scene, random: np.random.Generator, difficulty: Difficulty) -> Scene:
    pixels = np.asarray(scene.image).astype(np.float64)
    for _ in range(TRIES):
        layer = np.full((PICTURE_SIZE, PICTURE_SIZE, 3), np.nan)
        for _ in range(difficulty.scraps):
            _scrap(layer, random)
        if difficulty.hidden:
            for thing in scene.things:
                _cover(layer, thing, random, difficulty.hidden)
        covered = ~np.isnan(layer[..., 0])
        if readable(scene.things, covered):
            break
    else:
        raise RuntimeError(
            f"difficulty {difficulty.name} hides an object whatever is drawn; lower `hidden` or `scraps`"
        )
    pixels = np.where(covered[..., None], layer, pixels)
    pixels += random.normal(0.0, difficulty.noise, size=pixels.shape)
    image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return replace(scene, image=image, owner=np.where(covered, -1, scene.owner).astype(np.int8))


def _tone(random: np.random.Generator) -> NDArray[np.float64]:
    """A muted tone as in the demo's backgrounds, so that it is no object's colour."""
    return random.uniform(60, 225) + random.uniform(-14, 14, size=3)


def _scrap(layer: NDArray[np.float64], random: np.random.Generator) -> None:
    width, height = random.integers(2, 9, size=2)
    left, top = random.integers(0, PICTURE_SIZE - 1, size=2)
    layer[top : top + height, left : left + width] = _tone(random)


def _cover(layer: NDArray[np.float64], thing: Thing, random: np.random.Generator, hidden: float) -> None:
    """Paint a bar over one side of an object."""
    part = random.uniform(0, hidden) * 2 * thing.radius
    x, y = thing.center
    low, high = np.array([x, y]) - thing.radius - 1, np.array([x, y]) + thing.radius + 1
    axis, end = int(random.integers(2)), bool(random.integers(2))
    if end:
        low[axis] = high[axis] - 1 - part
    else:
        high[axis] = low[axis] + 1 + part
    left, top = np.maximum(np.rint(low), 0).astype(int)
    right, bottom = np.rint(high).astype(int)
    layer[top : bottom + 1, left : right + 1] = _tone(random)
