"""The command `python -m benchmarks.helps`; what it writes is described in the package."""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

import sinkscope
from benchmarks.helps.document import tables, write
from benchmarks.helps.pictures import LEVELS
from benchmarks.helps.scoring import score
from benchmarks.helps.settings import (
    ABLATIONS,
    CONTROL,
    DEFAULT,
    DEVELOPMENT_SEED,
    FRESH_SEED,
    GRID,
    GRID_SEED,
    Report,
    ladder,
    measure,
    prepared,
)
from benchmarks.helps.statistics import OVERALL, adjust
from sinkscope.backbone.loading import load
from sinkscope.demo.assemble import demo_lmm_folder
from sinkscope.registry import load_profile

RESULTS = Path(__file__).parents[1] / "results" / "helps.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "helps.md"
PROFILE = "sinkscope-demo-lmm"


def evaluate(options: argparse.Namespace, report: Report) -> dict[str, Any]:
    """All measurements."""
    loaded, profile = load(demo_lmm_folder(), dtype=options.dtype), load_profile(PROFILE)
    difficulty, rungs = ladder(loaded, LEVELS, options.development, report)
    report(f"difficulty {difficulty.name} is chosen")
    questions = prepared(loaded, GRID_SEED, options.pictures, difficulty)
    off = score(loaded, questions)
    blind = score(loaded, prepared(loaded, GRID_SEED, options.pictures, difficulty, image=False))
    grid = measure(loaded, profile, questions, GRID, off, report)
    adjust([cell["comparison"] for cell in grid])
    ablations = measure(loaded, profile, questions, ABLATIONS, off, report)
    adjust([cell["comparison"] for cell in ablations])
    best = max(range(len(grid)), key=lambda place: _merit(grid[place]))
    report(f"best cell of the grid: {grid[best]['name']}; again on fresh pictures")
    fresh = prepared(loaded, FRESH_SEED, options.fresh, difficulty)
    again = measure(loaded, profile, fresh, [GRID[best], DEFAULT], score(loaded, fresh), report)
    adjust([cell["comparison"] for cell in again])
    del loaded
    report("negative control")
    control = load(demo_lmm_folder(control=True), dtype=options.dtype)
    questions = prepared(control, GRID_SEED, options.control, difficulty)
    beside = measure(control, profile, questions, CONTROL, score(control, questions), report)
    adjust([cell["comparison"] for cell in beside])
    return {
        "seeds": {"development": DEVELOPMENT_SEED, "grid": GRID_SEED, "fresh": FRESH_SEED},
        "pictures": {name: getattr(options, name) for name in ("development", "pictures", "fresh", "control")},
        "profile": profile.name,
        "dtype": options.dtype,
        "default": {"p": profile.var.p, "rho": profile.var.rho},
        "difficulties": rungs,
        "difficulty": difficulty.name,
        "blind": {"accuracy": blind.right.mean(axis=0).tolist(), "all": float(blind.right.mean())},
        "grid": grid,
        "ablations": ablations,
        "fresh": again,
        "control": beside,
    }


def _merit(cell: dict[str, Any]) -> tuple[float, float]:
    entry = cell["comparison"][OVERALL]
    return entry["accuracy_on"], -entry["loss_on"]


def main() -> None:
    """Run the benchmark, or write the document anew from its results."""
    parser = argparse.ArgumentParser(description="Does VAR help on the demo model? Harder pictures, VAR off and on.")
    parser.add_argument("--pictures", type=int, default=500, help="pictures, each with 5 questions, of a grid cell")
    parser.add_argument("--fresh", type=int, default=500, help="pictures on which the best cell is measured again")
    parser.add_argument("--control", type=int, default=120, help="pictures for the negative control")
    parser.add_argument("--development", type=int, default=80, help="pictures a level for choosing the difficulty")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the models")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--document", action="store_true", help="only write docs/helps.md from the results")
    options = parser.parse_args()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not options.document:
        torch.set_num_threads(options.threads)
        started = time.monotonic()
        result = evaluate(options, lambda text: console.print(f"{time.monotonic() - started:6.0f} s  {text}"))
        result["seconds"] = round(time.monotonic() - started)
        result["threads"] = options.threads
        result["versions"] = {
            "sinkscope": sinkscope.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    result = json.loads(options.output.read_text(encoding="utf-8"))
    print(tables(result))
    if options.output == RESULTS:
        console.print(f"wrote {write(result, DOCUMENT)}")


if __name__ == "__main__":
    main()
