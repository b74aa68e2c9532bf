"""What profiling costs, side by side in one run: the plain model, sinkscope, and what people do today.

    python -m benchmarks.profile [--subjects demo mid] [--parts time memory disk chunks] [--repeats N] [--texts N]
    python -m benchmarks.profile --subjects 7b --device cuda --parts time

All forms go through the embedded texts and take turns after each batch, so that a machine that slows down slows all. On
the CPU times are those of the process on one thread, all its other threads included, which work of others disturbs
least. Every run starts with empty accumulators, which is its most expensive moment. Writes `results/profile.json`, or
`results/profile-DEVICE.json`.
"""

import argparse
import json
import platform
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.profile.disk import chunk_shapes, keep_all
from benchmarks.profile.forms import FORMS, compared, plain, store
from benchmarks.profile.memory import extra
from benchmarks.profile.subjects import SUBJECTS, load, prepared, texts
from sinkscope.capture.planning import spread
from sinkscope.capture.runner import run
from sinkscope.capture.settings import CaptureSettings

RESULTS = Path(__file__).parents[1] / "results"
PARTS = ("time", "memory", "disk", "chunks")
FLAT = (10_000, 100_000, 1_000_000)


def times(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All forms on a subject; and, apart, a run that also measures attention, on batches of its own."""
    loaded, samples = load(name, options.device), spread(texts(), options.texts)
    subject = prepared(loaded, samples, attention=False)
    found = {"tokens": len(subject.plan.run.tokens), "batches": len(subject.inputs)}
    found |= compared(subject, FORMS, options.repeats)
    attended = prepared(loaded, samples)
    of = f"with attention of {len(attended.plan.attended)} texts"
    return found | {of: compared(attended, {"plain": plain, of: store}, options.repeats)[of]}


def chunks(folder: str) -> list[dict[str, Any]]:
    """Chunk shapes on what a run of the demo model keeps."""
    path, settings = Path(folder) / "run.h5", CaptureSettings(attention=False, max_tokens=4096, keep="all")
    run(load("demo"), texts(), path, settings)
    return chunk_shapes(path, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=["demo", "mid"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, help="so many of the embedded texts for the times")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    target = RESULTS / ("profile.json" if options.device == "cpu" else f"profile-{options.device}.json")
    results: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    results |= {
        "machine": platform.processor() or platform.machine()
        if options.device == "cpu"
        else torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    works = {
        **{f"time, {name}": partial(times, name, options) for name in options.subjects},
        **{f"memory, {name}": partial(extra, name, None, options.repeats) for name in options.subjects},
        **{f"memory, {count} tokens": partial(extra, "tiny", count, options.repeats) for count in FLAT},
    }
    with tempfile.TemporaryDirectory() as folder:
        works |= {"disk": partial(keep_all, folder, options.repeats), "chunks": partial(chunks, folder)}
        for title, work in works.items():
            if title.split(",")[0] in options.parts:
                results[title] = work()
                print(title, json.dumps(results[title]), flush=True)
                target.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
