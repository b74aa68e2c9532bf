"""Where a backbone's magnitude sits: every dimension in every layer, with its sink dimensions named."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sinkscope.errors import InputError
from sinkscope.profile import Profile
from sinkscope.report.style import (
    FAINT,
    INK,
    LABEL_SIZE,
    MUTED,
    NOTE_SIZE,
    ORDINARY,
    add_heading,
    layer_ticks,
    log_ticks,
    name_dimensions,
    new_figure,
    save_figure,
    sink_colour,
    spread,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAXIMUM_ROWS = 192
MAXIMUM_NAMED = 4


def magnitude_map(
    path: str | os.PathLike[str],
    magnitude: NDArray[np.floating],
    profile: Profile,
    *,
    quantity: str = "peak |x| over all tokens",
) -> Path:
    """A map of magnitude over layers and dimensions, and its skyline: the peak of each dimension over all layers.

    Neighbouring dimensions share a row of the map by their maximum, so that a single massive dimension stays visible
    at any width.

    Parameters
    ----------
    path : path
        The PNG file to write.
    magnitude : float [L+1, D]
        Largest magnitude (or odds) of each dimension in the hidden state entering each layer; `Statistics`'
        `peak_magnitude`.
    profile : Profile
        Names the sink dimensions, companions and content dimensions to mark.
    quantity : str
        What `magnitude` is, with its unit, for the colour bar.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the array does not fit the profile, or matplotlib is missing.
    """
    magnitudes: NDArray[np.float64] = np.asarray(magnitude, dtype=np.float64)
    width, depth = profile.backbone.hidden_size, profile.backbone.num_layers
    if magnitudes.shape != (depth + 1, width):
        raise InputError(
            f"the magnitudes have shape {list(magnitudes.shape)}, profile {profile.name} needs {[depth + 1, width]}; "
            "use the profile of this backbone"
        )
    figure = new_figure(5.6)
    grid = figure.add_gridspec(
        1, 2, width_ratios=[3.1, 1.5], left=0.075, right=0.885, top=0.765, bottom=0.11, wspace=0.04
    )
    map_axes = figure.add_subplot(grid[0, 0])
    skyline_axes = figure.add_subplot(grid[0, 1], sharey=map_axes)
    add_heading(figure, _finding(profile), f"{profile.name} · {quantity}, per layer and dimension")
    low, high = _limits(magnitudes)
    _draw_map(map_axes, magnitudes, low, high, quantity)
    _draw_skyline(skyline_axes, magnitudes, profile, low, high)
    return save_figure(figure, path)


def _finding(profile: Profile) -> str:
    if not profile.sink_dimensions:
        return "No sink dimension stands out"
    first = [entry.first_layer for entry in profile.sink_dimensions if entry.first_layer is not None]
    last = [entry.last_layer for entry in profile.sink_dimensions if entry.last_layer is not None]
    verb = "towers" if len(profile.dims) == 1 else "tower"
    where = f" in layers {min(first)}–{max(last)}" if first and last else ""
    others = profile.backbone.hidden_size - len(profile.dims)
    return f"{name_dimensions(profile.dims)} {verb} over the other {others:,}{where}"


def _limits(magnitude: NDArray[np.float64]) -> tuple[float, float]:
    """Colour limits, from the layers after the embeddings, which are far smaller and would take half the colours."""
    later = magnitude[1:]
    positive = later[later > 0]
    if not positive.size:
        return 0.1, 1.0
    low, high = float(np.quantile(positive, 0.02)), float(positive.max())
    return low, max(high, low * 10)


def _draw_map(axes: "Axes", magnitude: NDArray[np.float64], low: float, high: float, quantity: str) -> None:
    from matplotlib.colors import LogNorm

    depth, width = magnitude.shape
    pooled = max_pool(magnitude, MAXIMUM_ROWS)
    image = axes.imshow(
        np.clip(pooled.T, low, None),
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap="magma",
        norm=LogNorm(low, high),
        extent=(-0.5, depth - 0.5, -0.5, width - 0.5),
    )
    style_axes(axes, grid=None)
    layer_ticks(axes, depth - 1)
    axes.set_ylabel("dimension")
    bar = axes.inset_axes((0.0, 1.025, 0.42, 0.025))
    colour_bar = axes.figure.colorbar(image, cax=bar, orientation="horizontal")
    bar.xaxis.set_ticks_position("top")
    log_ticks(bar.xaxis)
    bar.tick_params(labelsize=NOTE_SIZE, colors=MUTED, length=2, pad=1)
    bar.tick_params(which="minor", length=0)
    colour_bar.outline.set_visible(False)
    axes.text(0.435, 1.035, quantity, transform=axes.transAxes, fontsize=NOTE_SIZE, color=MUTED, va="center")


def _draw_skyline(axes: "Axes", magnitude: NDArray[np.float64], profile: Profile, low: float, high: float) -> None:
    peaks = magnitude.max(0)
    width = len(peaks)
    edges = np.arange(width + 1) - 0.5
    axes.stairs(np.maximum(peaks, low), edges, baseline=low, orientation="horizontal", fill=True, color=ORDINARY)
    axes.set_xscale("log")
    axes.set_xlim(low, high * 1.25)
    log_ticks(axes.xaxis)
    style_axes(axes, grid="x")
    axes.spines["left"].set_color(FAINT)
    axes.tick_params(left=False, labelleft=False)
    axes.set_xlabel("peak over all layers")
    marks = [(entry.dim, f"{entry.dim}", sink_colour(rank), True) for rank, entry in enumerate(profile.sink_dimensions)]
    for entries, word in ((profile.companion_dimensions, "companion"), (profile.content_dimensions, "content")):
        named = sorted((entry for entry in entries if entry.dim < width), key=lambda entry: -peaks[entry.dim])
        marks += [(entry.dim, f"{entry.dim} {word}", MUTED, False) for entry in named[:MAXIMUM_NAMED]]
    places = spread([float(mark[0]) for mark in marks], width * 0.043, width * 0.02, width * 0.98)
    for (dim, text, colour, is_sink), place in zip(marks, places, strict=True):
        peak = max(float(peaks[dim]), low)
        if is_sink:
            axes.hlines(dim, low, peak, color=colour, linewidth=2.4)
        axes.plot(peak, dim, marker="o", markersize=5 if is_sink else 3, color=colour, clip_on=False)
        axes.annotate(
            text,
            (peak, dim),
            xytext=(1.03, place),
            textcoords=axes.get_yaxis_transform(),
            va="center_baseline",
            fontsize=LABEL_SIZE + 2 if is_sink else NOTE_SIZE,
            fontweight="bold" if is_sink else "normal",
            color=colour if is_sink else INK,
            annotation_clip=False,
            arrowprops=_leader(colour),
        )


def _leader(colour: str) -> dict[str, object]:
    """A thin line from the mark to its label."""
    return {
        "arrowstyle": "-",
        "color": colour,
        "linewidth": 0.7,
        "alpha": 0.7,
        "shrinkA": 2,
        "shrinkB": 3,
        "relpos": (0.0, 0.5),
    }


def max_pool(magnitude: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """The maximum over groups of neighbouring dimensions: [L+1, D] becomes [L+1, at most `rows`]."""
    width = magnitude.shape[1]
    if width <= rows:
        return magnitude
    starts = np.unique(np.linspace(0, width, rows, endpoint=False).astype(np.int64))
    return np.maximum.reduceat(magnitude, starts, axis=1)
