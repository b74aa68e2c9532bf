"""The command `python -m benchmarks.discovery`."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.discovery.null_calibration import calibrate
from benchmarks.discovery.speed import SAMPLES, speed
from benchmarks.discovery.stores import run_cases
from benchmarks.discovery.summary import bars, summary
from benchmarks.known_truth import Case, cases

RESULTS = Path(__file__).parents[1] / "results" / "discovery.json"


def choose(only: str | None, stores: int | None) -> list[Case]:
    """The cases of a stratum or of all, thinned evenly to about the number asked for."""
    chosen = [case for case in cases() if only is None or case.stratum.startswith(only)]
    if stores is not None and stores < len(chosen):
        chosen = [chosen[int(place)] for place in np.linspace(0, len(chosen) - 1, stores)]
    return chosen


def progress_bar(console: Console) -> Progress:
    """On stderr, with counts and elapsed time."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Discovery on stores whose sinks are known.")
    parser.add_argument("--stores", type=int, help="thin the list of stores to about this many")
    parser.add_argument("--only", help="strata whose names begin so")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-calibration", action="store_true", help="leave out the calibration of null p-values")
    parser.add_argument("--no-speed", action="store_true", help="leave out the large run file")
    parser.add_argument("--output", type=Path, help=f"default: results/{RESULTS.name}; none for a part of the stores")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    started = time.perf_counter()
    whole = arguments.only is None and arguments.stores is None
    with progress_bar(console) as progress:
        rows = run_cases(choose(arguments.only, arguments.stores), arguments.workers, progress)
        result = summary(rows)
        result["seconds"] = round(time.perf_counter() - started, 1)
        if whole and not arguments.no_calibration:
            result["calibration"] = calibrate(progress)
        if whole and not arguments.no_speed:
            bar = progress.add_task("large run file", total=SAMPLES)
            result["speed"] = speed(advance=lambda: progress.advance(bar))
    result["bars"] = bars(result)
    output = arguments.output or (RESULTS if whole else None)
    if output:
        output.parent.mkdir(exist_ok=True)
        output.write_text(json.dumps(result, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    for name, bar in result["bars"].items():
        if bar["met"] is not None:
            console.print(f"{name:<40} {bar['value']}  (bound {bar['bound']}: {'met' if bar['met'] else 'NOT MET'})")
    for entry in result["failures"]:
        factors = entry["factors"]
        console.print(f"{factors['stratum']} {factors['seed']}: {entry['truth']} found {entry['found']}")
    if output == RESULTS:
        # Only the document needs matplotlib.
        from benchmarks.document import write

        for path in write():
            console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
