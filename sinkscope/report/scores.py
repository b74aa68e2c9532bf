"""How far sink tokens stand from the others: histograms of the sink score, one for each layer band."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sinkscope.errors import InputError
from sinkscope.report.style import (
    INK,
    LABEL_SIZE,
    MUTED,
    NOTE_SIZE,
    ORDINARY,
    POPULATION_COLOURS,
    SAFE,
    add_heading,
    add_legend,
    format_number,
    log_ticks,
    new_figure,
    save_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sinkscope.report.run_data import BandScores

MAXIMUM_PANELS = 6
COLUMNS = 3
BINS_PER_DECADE = 24


def score_histogram(path: str | os.PathLike[str], bands: Sequence["BandScores"], *, name: str) -> Path:
    """Histograms of the sink score over tokens, with tau and the interval in which every tau finds the same tokens.

    Parameters
    ----------
    path : path
        The PNG file to write.
    bands : sequence of BandScores
        From `run_data.band_scores`; at most six are drawn.
    name : str
        Of the profile.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If there is no band to draw, or matplotlib is missing.
    """
    if not bands:
        raise InputError("there is no layer band with sink dimensions, so there are no scores to draw")
    shown = bands[:MAXIMUM_PANELS]
    columns = min(len(shown), COLUMNS)
    rows = -(-len(shown) // columns)
    height = 1.75 + 2.95 * rows
    figure = new_figure(height)
    grid = figure.add_gridspec(
        rows, columns, left=0.06, right=0.975, top=1 - 1.35 / height, bottom=0.62 / height, wspace=0.16, hspace=0.5
    )
    left_out = f" · {len(shown)} of {len(bands)} bands" if len(shown) < len(bands) else ""
    add_heading(figure, _finding(bands), f"{name}{left_out} · {' · '.join(sorted(_definitions(shown)))}")
    panels = []
    for index, band in enumerate(shown):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        _draw(axes, band)
        if index % columns == 0:
            axes.set_ylabel("tokens, once a layer")
        panels.append(axes)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        add_legend(
            panels[min(columns, len(panels)) - 1],
            handles=list(handles.values()),
            labels=list(handles),
            loc="lower right",
            bbox_to_anchor=(1.0, 1.1),
            ncols=len(handles),
            borderaxespad=0,
            columnspacing=1.4,
        )
    return save_figure(figure, path)


def _finding(bands: Sequence["BandScores"]) -> str:
    overlapping = [f"{band.first_layer}–{band.last_layer}" for band in bands if band.quality == "overlapping"]
    if overlapping:
        return f"Sink and ordinary tokens overlap in layers {', '.join(overlapping)}"
    if not all(band.quality == "separated" for band in bands):
        return "Where tau cuts the sink score"
    if len(bands) == 1 and bands[0].interval:
        low, high = (format_number(edge) for edge in bands[0].interval)
        return f"Every tau from {low} to {high} finds the same sink tokens"
    return f"Sink tokens stand apart from all others in {'both' if len(bands) == 2 else 'all'} layer bands"


def _definitions(bands: Sequence["BandScores"]) -> set[str]:
    texts = {
        "phi": "phi: the largest sink dimension over the token's RMS",
        "score": "score: magnitude in the sink dimensions over the layer's typical one",
    }
    return {texts.get(band.score_name, band.score_name) for band in bands}


def _draw(axes: "Axes", band: "BandScores") -> None:
    everything = np.concatenate([population.score for population in band.populations] or [np.array([band.tau])])
    positive = everything[np.isfinite(everything) & (everything > 0)]
    low = min(float(positive.min()) if positive.size else band.tau, band.tau) / 1.2
    high = max(float(positive.max()) if positive.size else band.tau, band.tau) * 1.3
    # A handful of vanishing scores must not push everything else to the right.
    low = max(low, float(np.quantile(positive, 0.002)) / 2 if positive.size else low, high * 1e-6)
    count = max(12, min(120, round(BINS_PER_DECADE * np.log10(high / low))))
    edges = np.geomspace(low, high, count + 1)
    tallest = 1.0
    if band.interval is not None:
        axes.axvspan(*band.interval, color=SAFE, linewidth=0, zorder=0)
    for population in sorted(band.populations, key=lambda item: -float(item.weight.sum())):
        values = np.clip(population.score, low, high)
        heights, _ = np.histogram(values, bins=edges, weights=population.weight)
        colour = POPULATION_COLOURS.get(population.name, ORDINARY)
        axes.stairs(
            heights, edges, fill=True, color=colour, alpha=0.6, linewidth=0, baseline=0.5, label=population.name
        )
        axes.stairs(heights, edges, color=colour, linewidth=1.1, baseline=0.5)
        tallest = max(tallest, float(heights.max()))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(0.5, tallest * 4)
    axes.axvline(band.tau, color=INK, linewidth=1.4)
    style_axes(axes)
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)
    axes.set_title(
        f"layers {band.first_layer}–{band.last_layer}",
        loc="left",
        fontsize=LABEL_SIZE,
        fontweight="bold",
        color=INK,
        pad=6,
    )
    axes.set_xlabel(f"{band.score_name} of a token")
    _name_tau(axes, band, low, high, tallest)


def _name_tau(axes: "Axes", band: "BandScores", low: float, high: float, tallest: float) -> None:
    """tau beside its line, on the side with more room, and the safe interval below it."""
    on_right = band.tau < np.sqrt(low * high)
    alignment = "left" if on_right else "right"
    offset = 5 if on_right else -5
    lines = [(f"tau {format_number(band.tau)}", INK, "bold", -2)]
    if band.interval is not None:
        lines.append((f"safe {'–'.join(format_number(edge) for edge in band.interval)}", MUTED, "normal", -15))
    for text, colour, weight, drop in lines:
        axes.annotate(
            text,
            (band.tau, tallest * 4),
            xytext=(offset, drop),
            textcoords="offset points",
            ha=alignment,
            va="top",
            fontsize=NOTE_SIZE,
            fontweight=weight,
            color=colour,
        )
