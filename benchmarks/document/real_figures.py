"""The figures on real models, in the look of the reports."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_models.judging import ORACLE, OWN, PUBLISHED, RECALLS
from sinkscope.report.style import (
    BAND,
    INK,
    LABEL_SIZE,
    SINK_COLOURS,
    add_heading,
    add_legend,
    layer_ticks,
    new_figure,
    save_figure,
    style_axes,
)

MAXIMUM_MODELS = 4
LINES: dict[str, dict[str, Any]] = {
    OWN: {"color": SINK_COLOURS[0], "linewidth": 2.2, "zorder": 5},
    ORACLE: {"color": INK, "linewidth": 1.1, "linestyle": (0, (3, 2)), "zorder": 4},
    PUBLISHED: {"color": SINK_COLOURS[1], "linewidth": 1.6, "zorder": 3},
    "Sun 100 / 1000x": {"color": SINK_COLOURS[2], "linewidth": 1.2},
    "Kang phi >= 20": {"color": SINK_COLOURS[5], "linewidth": 1.2},
    "heretic": {"color": SINK_COLOURS[4], "linewidth": 1.2},
    "PrefixQuant": {"color": SINK_COLOURS[3], "linewidth": 1.2},
}
CURVES = {
    OWN: (SINK_COLOURS[0], "sinkscope's score"),
    PUBLISHED: (SINK_COLOURS[1], "phi of the same dimensions"),
    "Kang phi >= 20": (SINK_COLOURS[5], "phi of all dimensions above 20"),
}


def judged_models(results: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Models with bands and attention sinks in the text as their tokenizer begins it, each with its comparison."""
    found = []
    for model in results["models"]:
        main = next(iter(model["variants"][model["default_variant"]]["thresholds"].values()))
        if model["bands"] and main["layers_with_sinks"]:
            found.append((model, main))
    return found[:MAXIMUM_MODELS]


def f1_by_layer(path: Path, results: dict[str, Any]) -> Path:
    """F1 of flagged tokens layer by layer, a panel a model.

    Raises
    ------
    InputError
        If the folder cannot be written, or matplotlib is missing.
    """
    models = judged_models(results)
    height = 1.35 + 2.35 * len(models)
    figure = new_figure(height)
    grid = figure.add_gridspec(
        len(models), 1, left=0.075, right=0.765, top=1 - 1.1 / height, bottom=0.6 / height, hspace=0.5
    )
    gaps = [
        main["methods"][ORACLE]["f1"] - main["methods"][OWN]["f1"] for _, main in models if ORACLE in main["methods"]
    ]
    add_heading(
        figure,
        f"Thresholds from the profile come within {max(max(gaps, default=0.0), 0.001):.3f} of the best in hindsight",
        "F1 of flagged tokens against attention sinks on held-out text, in the layers of the bands that have sinks",
    )
    for row, (model, main) in enumerate(models):
        axes = figure.add_subplot(grid[row])
        layers, sinks = np.array(main["layers"]), np.array(main["sinks"])
        depth = model["backbone"]["num_layers"]
        for band in model["bands"]:
            axes.axvspan(band["first_layer"] - 0.5, band["last_layer"] + 0.5, color=BAND, linewidth=0, zorder=0)
        for name, look in LINES.items():
            if name not in main["methods"]:
                continue
            values = np.array(main["methods"][name]["layers"]["f1"], np.float64)
            full = np.full(depth, np.nan)
            full[layers] = np.where(sinks > 0, np.nan_to_num(values), np.nan)
            axes.plot(np.arange(depth), full, marker="o", markersize=2.8, label=name, **look)
        axes.set_ylim(-0.03, 1.05)
        axes.set_ylabel("F1")
        style_axes(axes)
        layer_ticks(axes, depth - 1)
        if row < len(models) - 1:
            axes.set_xlabel("")
        axes.set_title(
            f"{model['name']}, {model['default_variant']}",
            loc="left",
            fontsize=LABEL_SIZE,
            fontweight="bold",
            color=INK,
        )
        if row == 0:
            add_legend(axes, loc="upper left", bbox_to_anchor=(1.01, 1.05), borderaxespad=0)
    return save_figure(figure, path)


def precision_recall(path: Path, results: dict[str, Any]) -> Path:
    """Precision against recall, mean over layers, with the points of the thresholds in use; a panel a model.

    Raises
    ------
    InputError
        If the folder cannot be written, or matplotlib is missing.
    """
    models = judged_models(results)
    height = 5.0
    figure = new_figure(height)
    grid = figure.add_gridspec(
        1, len(models), left=0.065, right=0.98, top=1 - 1.5 / height, bottom=0.62 / height, wspace=0.22
    )
    better = [
        main["methods"][OWN]["average_precision"] > main["methods"][PUBLISHED]["average_precision"]
        for _, main in models
        if PUBLISHED in main["methods"]
    ]
    finding = (
        "A score on the layer's own scale separates sinks better than phi"
        if better and all(better)
        else "How well the scores separate attention sinks from other tokens"
    )
    add_heading(
        figure,
        finding,
        "Mean over the layers of the bands; lines: every threshold, dots: the threshold in use (profile, tau = 20)",
    )
    panels = []
    for column, (model, main) in enumerate(models):
        axes = figure.add_subplot(grid[column])
        for name, (colour, label) in CURVES.items():
            method = main["methods"].get(name)
            if method is None or "precision_at_recall" not in method:
                continue
            axes.plot(RECALLS, method["precision_at_recall"], color=colour, linewidth=1.8, label=label)
            if method["precision"] is not None:
                axes.plot(
                    method["recall"], method["precision"], "o", color=colour, markersize=7, markeredgecolor="white"
                )
        axes.set_xlim(-0.02, 1.03)
        axes.set_ylim(-0.03, 1.04)
        axes.set_xlabel("recall")
        if column == 0:
            axes.set_ylabel("precision")
        style_axes(axes)
        axes.set_title(model["name"], loc="left", fontsize=LABEL_SIZE, fontweight="bold", color=INK)
        panels.append(axes)
    if panels and panels[0].get_legend_handles_labels()[0]:
        add_legend(panels[0], loc="lower left", bbox_to_anchor=(0.0, 1.1), ncols=3, borderaxespad=0)
    return save_figure(figure, path)
