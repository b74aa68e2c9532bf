"""Where the answer looks: attention on the visual tokens of a picture, before and after redistribution."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sinkscope.errors import InputError
from sinkscope.report.style import (
    INK,
    LABEL_SIZE,
    MUTED,
    NOTE_SIZE,
    PAPER,
    add_heading,
    new_figure,
    save_figure,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

COLOUR_MAP = "inferno"
PICTURE_PIXELS = 480
PANEL_INCHES, MAXIMUM_INCHES = 2.86, 4.2
TOP_INCHES, BOTTOM_INCHES = 1.2, 0.62
Grid = NDArray[np.float64]


def attention_on_picture(
    path: str | os.PathLike[str],
    image: "Image",
    grid: tuple[int, int],
    before: ArrayLike,
    after: ArrayLike,
    sinks: ArrayLike,
    *,
    prompt: str = "",
    answers: tuple[str, str] = ("", ""),
    name: str = "",
) -> Path:
    """The picture, and on it the attention that the answer's tokens give to each visual token, before and after VAR.

    Both maps share one colour scale. It is a square-root scale, because a few sink tokens would otherwise leave the
    rest black.

    Parameters
    ----------
    path : path
        The PNG file to write.
    image : PIL.Image.Image
        The picture as the model saw it.
    grid : (int, int)
        Rows and columns of its visual tokens.
    before, after : float [rows * cols] or [rows, cols]
        Attention to each visual token, averaged over heads, layers and the answer's tokens; fractions of a row of
        attention.
    sinks : bool, same shape
        The visual sink tokens, to be outlined.
    prompt : str
        Shown below the picture.
    answers : (str, str)
        The answer before and after, shown below their maps.
    name : str
        Model or profile, for the subtitle.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If an array does not fit the grid or holds values that are no attention, or matplotlib is missing.
    """
    first, second = _on_grid(before, grid, "before"), _on_grid(after, grid, "after")
    mask = _on_grid(sinks, grid, "sinks") > 0
    small = _fitted(image)
    shape = np.asarray(small).shape[:2]
    tall = PANEL_INCHES * shape[0] / shape[1]
    panel = (PANEL_INCHES, tall) if tall <= MAXIMUM_INCHES else (MAXIMUM_INCHES / tall * PANEL_INCHES, MAXIMUM_INCHES)
    height = TOP_INCHES + panel[1] + (BOTTOM_INCHES if prompt or any(answers) else 0.25)
    figure = new_figure(height)
    bottom, size = 1 - (TOP_INCHES + panel[1]) / height, (panel[0] / 10, panel[1] / height)
    axes = [figure.add_axes((0.02 + index * 0.302, bottom, *size)) for index in range(3)]
    add_heading(figure, _finding(first, second, mask), _detail(first, second, mask, name))
    axes[0].imshow(small)
    _frame(axes[0], "picture", prompt)
    from matplotlib.colors import PowerNorm

    top = max(float(first.max()), float(second.max()), 1e-6)
    norm = PowerNorm(0.5, vmin=0.0, vmax=top)
    for place, values, title, answer in zip(
        axes[1:], (first, second), ("before", "after redistribution"), answers, strict=True
    ):
        _draw_map(place, small, values, mask, shape, norm)
        _frame(place, title, answer)
    _draw_scale(figure.add_axes((0.624 + size[0] + 0.014, bottom, 0.012, size[1])), norm, top)
    return save_figure(figure, path)


NOTABLE_GAIN = 0.02
"""Where the picture as a whole gains this much attention, the title says so; else it says what the sinks lose."""


def sink_share(attention: Grid, sinks: NDArray[np.bool_]) -> float:
    """The part of the attention on the picture that its sink tokens hold; NaN where there is none at all."""
    total = float(attention.sum())
    return float(attention[sinks].sum()) / total if total > 0 else float("nan")


def _finding(before: Grid, after: Grid, sinks: NDArray[np.bool_]) -> str:
    if not sinks.any():
        return "This picture has no visual sink tokens"
    whole = float(before.sum()), float(after.sum())
    if whole[1] - whole[0] >= NOTABLE_GAIN:
        return f"Attention on the picture rises from {whole[0]:.0%} to {whole[1]:.0%}"
    count = int(sinks.sum())
    subject = f"{count} sink token{'s' if count > 1 else ''} of {sinks.size} {'hold' if count > 1 else 'holds'}"
    shares = sink_share(before, sinks), sink_share(after, sinks)
    return f"{subject} {shares[0]:.0%} of the attention on the picture before, {shares[1]:.0%} after"


def _detail(before: Grid, after: Grid, sinks: NDArray[np.bool_], name: str) -> str:
    whole = float(before.sum()), float(after.sum())
    parts = [name] if name else []
    if not sinks.any() or whole[1] - whole[0] < NOTABLE_GAIN:
        parts.append(f"attention on the whole picture {whole[0]:.0%} before, {whole[1]:.0%} after")
    return " · ".join(parts + (["sink tokens outlined"] if sinks.any() else []))


def _on_grid(values: ArrayLike, grid: tuple[int, int], name: str) -> Grid:
    rows, columns = grid
    array = np.asarray(values, dtype=np.float64)
    if rows < 1 or columns < 1 or array.size != rows * columns:
        raise InputError(
            f"{name} has {array.size} values, a grid of {rows} x {columns} visual tokens needs {rows * columns}"
        )
    if not np.isfinite(array).all() or (array < 0).any():
        raise InputError(f"{name} holds negative or non-finite values, which are no attention")
    return array.reshape(rows, columns)


def _fitted(image: "Image") -> "Image":
    """The picture in RGB, enlarged without blur or reduced, its longer side about as long as it is drawn."""
    from PIL import Image as Images

    factor = PICTURE_PIXELS / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.convert("RGB").resize(size, Images.Resampling.NEAREST if factor > 2 else Images.Resampling.LANCZOS)


def _draw_map(
    axes: "Axes", image: "Image", values: Grid, sinks: NDArray[np.bool_], shape: tuple[int, int], norm: Any
) -> None:
    from matplotlib import colormaps

    height, width = shape
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] / 255
    rows = np.minimum(np.arange(height) * values.shape[0] // height, values.shape[0] - 1)
    columns = np.minimum(np.arange(width) * values.shape[1] // width, values.shape[1] - 1)
    strength = np.asarray(norm(values))
    heat = colormaps[COLOUR_MAP](strength)[..., :3][np.ix_(rows, columns)]
    # The picture stays visible through the map, so that what is looked at can be named.
    axes.imshow(np.clip(heat * (0.62 + 0.38 * grey) + 0.1 * grey, 0, 1))
    for position in range(1, values.shape[0]):
        axes.axhline(position * height / values.shape[0] - 0.5, color=PAPER, linewidth=0.4, alpha=0.25)
    for position in range(1, values.shape[1]):
        axes.axvline(position * width / values.shape[1] - 0.5, color=PAPER, linewidth=0.4, alpha=0.25)
    _outline(axes, sinks, height / values.shape[0], width / values.shape[1])


def _outline(axes: "Axes", sinks: NDArray[np.bool_], height: float, width: float) -> None:
    """A line around each group of sink tokens, white on black so that it shows on any colour."""
    from matplotlib.collections import LineCollection

    padded = np.pad(sinks, 1)
    segments = []
    for row, column in np.argwhere(sinks):
        top, left = row * height - 0.5, column * width - 0.5
        corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
        for side, (down, right) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
            if not padded[row + 1 + down, column + 1 + right]:
                segments.append([corners[side], corners[(side + 1) % 4]])
    for colour, line in ((INK, 4.0), ("#56b4e9", 2.0)):
        axes.add_collection(LineCollection(segments, colors=colour, linewidths=line, capstyle="projecting"))


def _frame(axes: "Axes", title: str, caption: str) -> None:
    from matplotlib.transforms import ScaledTranslation

    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, loc="left", fontsize=LABEL_SIZE, fontweight="bold", color=INK, pad=6)
    if caption:
        axes.text(
            0,
            0,
            _wrapped(caption),
            transform=axes.transAxes + ScaledTranslation(0, -0.09, axes.figure.dpi_scale_trans),
            ha="left",
            va="top",
            fontsize=LABEL_SIZE,
            color=INK,
            parse_math=False,
            linespacing=1.3,
        )


def _wrapped(text: str) -> str:
    """At most two lines of 50 characters."""
    words, lines = shorten(text, 98).split(" "), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= 50 and len(lines) < 2:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _draw_scale(axes: "Axes", norm: Any, top: float) -> None:
    from matplotlib.cm import ScalarMappable

    bar = axes.figure.colorbar(ScalarMappable(norm, COLOUR_MAP), cax=axes)
    bar.set_ticks([0, top / 16, top / 4, top * 9 / 16, top])
    digits = 0 if top >= 0.16 else 1 if top >= 0.016 else 2
    bar.ax.set_yticklabels([f"{tick * 100:.{digits}f}%" for tick in (0, top / 16, top / 4, top * 9 / 16, top)])
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=NOTE_SIZE, colors=MUTED, length=2)
    bar.ax.set_title("per token", fontsize=NOTE_SIZE, color=MUTED, loc="left", pad=8)
