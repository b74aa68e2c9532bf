"""Everything that goes wrong on real machines, done on purpose and at length.

    python -m benchmarks.faults [--parts kills disk ...] [--kills 100] [--inputs 10000] [--seed 0]

Writes `results/faults.json` after each part, and ends with exit code 1 where a promise of `docs/faults.md` was broken.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import torch
import transformers

from benchmarks.faults.outcome import Outcome

RESULTS = Path(__file__).parents[1] / "results" / "faults.json"

PARTS = {
    "kills": 0,
    "disk": 35,
    "folder": 10,
    "activations": 3,
    "memory": 10,
    "interrupt": 100,
    "clock": 10,
    "writers": 10,
    "damage": 0,
    "malformed": 0,
}
"""Each a module with a function `check`, and how often it does what can be done any number of times."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kills", type=int, default=100, help="runs that are killed")
    parser.add_argument("--inputs", type=int, default=10_000, help="malformed inputs; a fifth as many damaged files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts = PARTS | {"kills": options.kills, "damage": options.inputs // 5, "malformed": options.inputs}
    torch.set_num_threads(1)
    passed = True
    for part in options.parts:
        print(f"{part} ...", file=sys.stderr, flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            outcome: Outcome = importlib.import_module(f"benchmarks.faults.{part}").check(
                Path(folder), counts[part], options.seed
            )
        seconds = time.monotonic() - began
        passed &= outcome.passed
        # Read anew, because other parts may run beside this one.
        results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[part] = asdict(outcome) | {"seed": options.seed, "seconds": round(seconds)}
        results["versions"] = versions()
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(told(part, outcome, seconds), flush=True)
    sys.exit(not passed)


def told(part: str, outcome: Outcome, seconds: float) -> str:
    """A part on one line, and what went wrong on a line each."""
    verdict = "passed" if outcome.passed else f"{len(outcome.problems)} problems"
    return "\n  ".join([f"{part}: {outcome.tried:,} faults in {seconds:.0f} s, {verdict}", *outcome.problems])


def versions() -> dict[str, Any]:
    """The machine and what matters on it."""
    return {
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
    }


if __name__ == "__main__":
    main()
