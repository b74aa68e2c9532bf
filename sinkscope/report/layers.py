"""Layer by layer: how large the sink dimensions are on sink tokens, and how much attention those draw."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sinkscope.errors import InputError
from sinkscope.report.style import (
    BAND,
    INK,
    MUTED,
    NOTE_SIZE,
    ORDINARY,
    add_heading,
    add_legend,
    layer_ticks,
    log_ticks,
    name_dimensions,
    new_figure,
    save_figure,
    sink_colour,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sinkscope.report.run_data import LayerSeries

MAXIMUM_DIMENSIONS = 5
DASHED = (0, (4, 2))

Floats = NDArray[np.float64]


def layer_profile(path: str | os.PathLike[str], series: "LayerSeries", *, name: str) -> Path:
    """Magnitude of the sink dimensions on sink tokens against the typical token, above the attention drawn.

    Parameters
    ----------
    path : path
        The PNG file to write.
    series : LayerSeries
        From `run_data.layer_series`; at most five dimensions are drawn.
    name : str
        Of the profile.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If there are no sink dimensions, or matplotlib is missing.
    """
    if not series.dims:
        raise InputError("the profile has no sink dimensions, so there is nothing to follow through the layers")
    measured = series.attention_sinks is not None and series.attention_others is not None
    figure = new_figure(6.2 if measured else 4.4)
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        2 if measured else 1,
        1,
        height_ratios=[1.55, 1] if measured else [1],
        left=0.075,
        right=0.975,
        top=1 - 1.3 / height,
        bottom=0.6 / height,
        hspace=0.24,
    )
    what = "median magnitude of the sink dimensions" + (", and attention drawn per token" if measured else "")
    add_heading(figure, _finding(series), f"{name} · {what}")
    upper = figure.add_subplot(grid[0])
    _draw_magnitudes(upper, series)
    panels = [upper]
    if measured:
        panels.append(figure.add_subplot(grid[1], sharex=upper))
        _draw_attention(panels[-1], series.attention_sinks, series.attention_others)
        upper.tick_params(labelbottom=False)
    for axes in panels:
        for first, last in series.bands:
            axes.axvspan(first - 0.5, last + 0.5, color=BAND, linewidth=0, zorder=0)
    for first, last in series.bands:
        upper.annotate(
            f"layers {first}–{last}" if last > first else f"layer {first}",
            ((first + last) / 2, 1),
            xycoords=upper.get_xaxis_transform(),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=NOTE_SIZE,
            color=MUTED,
        )
    layer_ticks(panels[-1], series.on_sinks.shape[1] - 1)
    if measured:
        upper.set_xlabel("")
    return save_figure(figure, path)


def _finding(series: "LayerSeries") -> str:
    ratio, share = contrast(series), _drawn(series)
    verb = "is" if len(series.dims) == 1 else "are"
    subject = f"{name_dimensions(series.dims, 3)} {verb}"
    owner = "its" if len(series.dims) == 1 else "their"
    size = f"up to {_rounded(ratio)} times {owner} usual size" if np.isfinite(ratio) else "massive"
    tail = f"; each draws {share:.0%} of attention" if np.isfinite(share) else ""
    return f"{subject} {size} on sink tokens{tail}"


def _rounded(value: float) -> str:
    """Two significant digits, written out: 9,700."""
    digits = 1 - int(np.floor(np.log10(value))) if value > 0 else 0
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def contrast(series: "LayerSeries") -> float:
    """The largest ratio of a dimension's median on sink tokens to that on others, over the layers of the bands."""
    inside = _inside(series, series.on_sinks.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (series.on_sinks / series.on_others)[:, inside]
    ratio = ratio[np.isfinite(ratio)]
    return float(ratio.max()) if ratio.size else float("nan")


def _drawn(series: "LayerSeries") -> float:
    if series.attention_sinks is None:
        return float("nan")
    values = series.attention_sinks[_inside(series, len(series.attention_sinks))]
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def _inside(series: "LayerSeries", count: int) -> NDArray[np.bool_]:
    layers = np.arange(count)
    return np.any([(layers >= first) & (layers <= last) for first, last in series.bands] or [layers >= 0], axis=0)


def _draw_magnitudes(axes: "Axes", series: "LayerSeries") -> None:
    layers = np.arange(series.on_sinks.shape[1])
    for index, dim in enumerate(series.dims[:MAXIMUM_DIMENSIONS]):
        colour = sink_colour(index)
        sinks, others = _positive(series.on_sinks[index]), _positive(series.on_others[index])
        axes.plot(layers, sinks, color=colour, linewidth=2, marker="o", markersize=3.5, label=f"{dim}")
        axes.plot(layers, others, color=colour, linewidth=1.3, linestyle=DASHED)
    axes.set_yscale("log")
    axes.plot([], [], color=MUTED, linewidth=2, marker="o", markersize=3.5, label="on sink tokens")
    axes.plot([], [], color=MUTED, linewidth=1.3, linestyle=DASHED, label="on other tokens")
    style_axes(axes)
    log_ticks(axes.yaxis)
    axes.set_ylabel("median magnitude |x|")
    add_legend(axes, loc="lower right", bbox_to_anchor=(1.0, 1.06), ncols=8, borderaxespad=0, columnspacing=1.4)


def _draw_attention(axes: "Axes", sinks: Floats | None, others: Floats | None) -> None:
    for values, colour, width, line, label in (
        (sinks, INK, 2.0, "-", "a sink token"),
        (others, ORDINARY, 1.5, DASHED, "any other token"),
    ):
        if values is not None:
            axes.plot(np.arange(len(values)), values, color=colour, linewidth=width, linestyle=line, label=label)
    style_axes(axes)
    axes.set_ylim(0, None)
    axes.set_ylabel("mean attention drawn")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    add_legend(axes, loc="lower right", bbox_to_anchor=(1.0, 1.01), ncols=2, borderaxespad=0, columnspacing=1.4)


def _positive(values: Floats) -> Floats:
    """Zeros have no place on a logarithmic axis; they become gaps."""
    return np.where(values > 0, values, np.nan)
