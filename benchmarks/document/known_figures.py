"""The figures on stores whose sinks are known, in the look of the reports."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.document.words import percent
from sinkscope.report.style import (
    INK,
    NOTE_SIZE,
    PAPER,
    SINK_COLOURS,
    TICK_SIZE,
    add_heading,
    add_legend,
    new_figure,
    require_matplotlib,
    save_figure,
    style_axes,
)

OWN = "sinkscope"
FREE = "free: "
TOTALS = ("", "sinks", "free")


def null_p_values(path: Path, results: dict[str, Any]) -> Path:
    """Observed against nominal levels of null p-values, a line a group of stores.

    Raises
    ------
    InputError
        If the folder cannot be written, or matplotlib is missing.
    """
    calibration = results["calibration"]
    overall = calibration["all"]
    levels = np.array(calibration["levels"], np.float64)
    height = 5.4
    figure = new_figure(height)
    axes = figure.add_axes((0.085, 0.62 / height, 0.70, 1 - 1.75 / height))
    widths = list(dict.fromkeys(group["width"] for group in calibration["groups"]))
    looks = dict(
        zip(dict.fromkeys(group["tail"] for group in calibration["groups"]), ("-", "--", ":", "-."), strict=False)
    )
    axes.plot([levels.min(), levels.max()], [levels.min(), levels.max()], color=INK, linewidth=1.0)
    axes.annotate(
        "valid below this line",
        (levels.max(), levels.max()),
        (-4, 4),
        textcoords="offset points",
        ha="right",
        fontsize=NOTE_SIZE,
        color=INK,
    )
    for group in calibration["groups"]:
        observed = np.array(group["observed"], np.float64)
        rates = np.where(observed > 0, observed / group["p_values"], np.nan)
        colour = SINK_COLOURS[widths.index(group["width"]) % len(SINK_COLOURS)]
        axes.plot(
            levels,
            rates,
            looks.get(group["tail"], "-"),
            marker="o",
            markersize=3.5,
            color=colour,
            linewidth=1.4,
            label=f"D = {group['width']}, {group['tail']}",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    style_axes(axes)
    axes.set_xlabel("nominal level")
    axes.set_ylabel("share of null p-values at or below it")
    worst = max(
        (ratio for ratio, level in zip(overall["ratio"], levels, strict=True) if level * overall["p_values"] >= 1),
        default=0.0,
    )
    finding = (
        "Null p-values are valid at every level"
        if worst <= 1
        else f"Null p-values fall below a level up to {worst:.2g} times as often as they should"
    )
    add_heading(
        figure,
        finding,
        f"{overall['p_values']:,} p-values of ordinary dimensions, {overall['stores']} stores without sinks or decoys",
    )
    add_legend(axes, loc="upper left", bbox_to_anchor=(1.02, 1.02), borderaxespad=0)
    return save_figure(figure, path)


def accuracy_by_stratum(path: Path, results: dict[str, Any]) -> Path:
    """Exact-set accuracy on separable stores, strata by methods.

    Raises
    ------
    InputError
        If the folder cannot be written, or matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.patches import Rectangle

    strata = results["accuracy"]["separable"]
    names = sorted((name for name in strata if name not in TOTALS), key=lambda name: name.startswith(FREE))
    methods = [OWN] + [name for name in strata[""] if name != OWN]
    height = 1.75 + 0.27 * len(names)
    figure = new_figure(height)
    axes = figure.add_axes((0.235, 0.2 / height, 0.745, 1 - 1.6 / height))
    for row, stratum in enumerate(names):
        for column, method in enumerate(methods):
            entry = strata[stratum].get(method)
            judged = bool(entry and entry["of"])
            share = entry["rate"] if judged else 0.0
            colour = SINK_COLOURS[0] if method == OWN else SINK_COLOURS[1]
            box = Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=colour, alpha=0.06 + 0.74 * share)
            axes.add_patch(box)
            axes.text(
                column,
                row,
                f"{100 * share:.0f} %" if judged else "-",
                ha="center",
                va="center",
                fontsize=NOTE_SIZE,
                fontweight="bold" if method == OWN else "normal",
                color=PAPER if share > 0.6 else INK,
            )
    axes.set_yticks(range(len(names)), [name.replace(FREE, "no sinks: ") for name in names])
    axes.set_xticks(range(len(methods)), methods)
    axes.xaxis.tick_top()
    axes.set_xlim(-0.5, len(methods) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    style_axes(axes, grid=None)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=TICK_SIZE)
    axes.tick_params(axis="x", labelsize=NOTE_SIZE - 0.5)
    own, others = strata[""][OWN], [strata[""][name] for name in methods[1:] if strata[""].get(name)]
    best = max((entry["rate"] for entry in others), default=0.0)
    add_heading(
        figure,
        f"sinkscope finds the exact set in {percent(own['rate'], 1)} of stores, the best rule in {percent(best, 1)}",
        f"Share of separable stores whose exact set of dimensions is found, by stratum; {own['of']} stores in all",
    )
    return save_figure(figure, path)
