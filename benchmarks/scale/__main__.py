"""Slopes of everything that profiling does, measured on small models on one thread, and what follows at scale.

    python -m benchmarks.scale [--parts passes statistics ...]

Times are those of the process. Writes `results/scale.json` and the tables of `docs/scale.md`.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.scale.document import write
from benchmarks.scale.files import commits, merges, rows
from benchmarks.scale.finding import finding, weights
from benchmarks.scale.passes import moved_on_devices, passes, statistics
from benchmarks.scale.plans import plans

RESULTS = Path(__file__).parents[1] / "results" / "scale.json"
PARTS = {
    "passes": passes,
    "statistics": statistics,
    "moved on devices": moved_on_devices,
    "plans": plans,
    "commits": commits,
    "rows": rows,
    "merges": merges,
    "discovery": finding,
    "weights": weights,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["versions"] = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    for part in options.parts:
        began = time.perf_counter()
        results[part] = PARTS[part]()
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(write(results))


if __name__ == "__main__":
    main()
