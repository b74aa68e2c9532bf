"""The sweep: python -m benchmarks.coverage [TYPE ...] [--again] [--seconds N]

Judges every type of transformers' causal-LM and image-text-to-text mappings, each in a process of its own with a time
limit, and keeps what it has in results/coverage.json after each, so that it goes on where it was stopped.
"""

import argparse
import contextlib
import json
import multiprocessing
import queue
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import sinkscope.pipeline  # noqa: F401  All of the package now, so that an edit on the way changes nothing.
from benchmarks.coverage.document import write_document
from benchmarks.coverage.verdict import described, judge
from benchmarks.coverage.words import stops

RESULTS = Path(__file__).parents[1] / "results" / "coverage.json"
MAPPINGS = {
    "causal-lm": tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "image-text-to-text": tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("types", nargs="*", help="judge these types only, anew")
    parser.add_argument("--again", action="store_true", help="judge everything anew")
    parser.add_argument("--seconds", type=float, default=120, help="time limit of one type")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the verdicts are kept")
    options = parser.parse_args()
    stops()  # Made once here, so that every process inherits it.
    known = {} if options.again else _known(options.results)
    wanted = [(kind, mapping) for mapping, kinds in MAPPINGS.items() for kind in kinds]
    for number, (kind, mapping) in enumerate(wanted, 1):
        key = f"{mapping}/{kind}"
        if (kind not in options.types) if options.types else (key in known):
            continue
        known[key] = verdict = judge_apart(kind, mapping, options.seconds)
        _keep(options.results, {f"{m}/{k}": known[f"{m}/{k}"] for k, m in wanted if f"{m}/{k}" in known})
        print(f"{number}/{len(wanted)} {key}: {verdict['verdict']} {verdict.get('reason', '')}", flush=True)
    if options.results == RESULTS:
        write_document(json.loads(RESULTS.read_text()))


def judge_apart(kind: str, mapping: str, seconds: float) -> dict[str, Any]:
    """`judge` in a process of its own, which may hang or crash."""
    failed = described(kind, mapping) | {"verdict": "failed"}
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    process = fork.Process(target=_answer, args=(answers, kind, mapping))
    process.start()
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            # Asked before the queue, so that an answer given just before the end is still found.
            running = process.is_alive()
            with contextlib.suppress(queue.Empty):
                return answers.get(timeout=0.2 if running else 2.0)
            if not running:
                return failed | {"reason": f"the process crashed (exit code {process.exitcode})"}
        return failed | {"reason": f"the process took longer than {seconds:.0f} s"}
    finally:
        process.kill()
        process.join()


def _answer(answers: Any, kind: str, mapping: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    answers.put(judge(kind, mapping))


def _known(path: Path) -> dict[str, Any]:
    """The verdicts kept so far by the same transformers."""
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text())
    return kept["types"] if kept["transformers"] == transformers.__version__ else {}


def _keep(path: Path, verdicts: dict[str, Any]) -> None:
    path.write_text(json.dumps({"transformers": transformers.__version__, "types": verdicts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
