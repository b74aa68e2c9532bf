"""docs/discovery.md and its figures, written from the results of the two benchmarks.

    discovery.json    ──> known ──┐
                                  ├──> docs/discovery.md, docs/images/discovery_*.png
    real_models.json  ──> real  ──┘

Whichever results exist are used. Every number comes from them, and whether a bar is met is computed here.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.document import known, known_figures, misses, real, real_figures
from benchmarks.document.words import MET, bullet, paragraph, plain, table

RESULTS = Path(__file__).parents[1] / "results"
DOCUMENT = Path(__file__).parents[2] / "docs" / "discovery.md"
DISCOVERY, REAL_MODELS = "discovery.json", "real_models.json"

INTRODUCTION = """# How well discovery works

What sinkscope's discovery finds on real models and on stores whose sinks are known, beside every published rule. How
it works is in [method.md](method.md). The commands `python -m benchmarks.discovery` and
`python -m benchmarks.real_models` write this page and its figures from their results in `benchmarks/results/`; nothing
here is typed by hand."""

BARS = {
    "dims": "exact set of dimensions",
    "average_precision": "average precision of the score",
    "f1": "F1 of flagged tokens",
    "coverage": "layers with a sink in first place that the bands cover",
}
FIGURES: dict[str, tuple[str, str, Callable[[Path, dict[str, Any]], Path]]] = {
    "f1_layers": (REAL_MODELS, "F1 of flagged tokens, layer by layer", real_figures.f1_by_layer),
    "precision_recall": (REAL_MODELS, "Precision against recall of the scores", real_figures.precision_recall),
    "strata": (DISCOVERY, "Exact-set accuracy by stratum", known_figures.accuracy_by_stratum),
    "p_values": (DISCOVERY, "Null p-values, observed against nominal", known_figures.null_p_values),
}


def write(results: Path = RESULTS, document: Path = DOCUMENT) -> list[Path]:
    """Write the document and its figures.

    Parameters
    ----------
    results : Path
        Folder with the result files; at least one of them.
    document : Path
        The Markdown file; figures go into ``images/`` beside it.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    FileNotFoundError
        If there are no results.
    InputError
        If a figure cannot be written, or matplotlib is missing.
    """
    found = {
        name: json.loads((results / name).read_text(encoding="utf-8"))
        for name in (DISCOVERY, REAL_MODELS)
        if (results / name).is_file()
    }
    if not found:
        raise FileNotFoundError(f"no results in {results}; run python -m benchmarks.discovery first")
    images: dict[str, str] = {}
    written = []
    for name, (source, title, draw) in FIGURES.items():
        if source not in found or not _drawable(name, found[source]):
            continue
        path = document.parent / "images" / f"discovery_{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        written.append(draw(path, found[source]))
        images[name] = f"![{title}](images/{path.name})"
    parts = [INTRODUCTION, "## The bars", bars(found)]
    if REAL_MODELS in found:
        parts.append(real.section(found[REAL_MODELS], images))
    if DISCOVERY in found:
        parts.append(known.section(found[DISCOVERY], images))
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [document, *written]


def _drawable(name: str, results: dict[str, Any]) -> bool:
    """Whether the results hold what a figure shows."""
    if name == "p_values":
        return bool(results.get("calibration"))
    return name == "strata" or bool(real_figures.judged_models(results))


def bars(found: dict[str, dict[str, Any]]) -> str:
    """All bars of both benchmarks, each with its figure and whether it is met."""
    rows = []
    for bar in found.get(REAL_MODELS, {}).get("bars", []):
        where = bar["model"] + (f", {bar['variant']}" if bar["variant"] else "")
        if bar["variant"] and bar["default"]:
            where += " (as its tokenizer begins a text)"
        what = BARS.get(bar["what"], bar["what"])
        rows.append([what, where, plain(bar["value"]), bar["bound"], MET[bar["met"]]])
    for name, bar in found.get(DISCOVERY, {}).get("bars", {}).items():
        rows.append([name, "known truth", plain(bar["value"]), bar["bound"], MET[bar["met"]]])
    met = sum(row[-1] == MET[True] for row in rows)
    judged = sum(row[-1] != MET[None] for row in rows)
    head = f"{met} of {judged} are met."
    if REAL_MODELS in found:
        head += (
            " A model is judged both with and without BOS. Where its tokenizer puts BOS before a text, text without it "
            "is a mode that the model was not trained for."
        )
    parts = [paragraph(head), table(["bar", "on", "figure", "bound", ""], rows, left=5)]
    why = misses.reasons(found[REAL_MODELS]) if REAL_MODELS in found else []
    if why:
        parts += ["Where a bar on sink tokens is not met:", "\n".join(bullet(text) for text in why)]
    return "\n\n".join(parts)
