"""Run the benchmark on real models; what it writes is described in the package."""

import argparse
import json
import platform
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import sinkscope
from benchmarks.real_models.agreement import LATER_QUERIES, THRESHOLDS
from benchmarks.real_models.captured import (
    PICTURES,
    PIECE_TOKENS,
    WITH_BOS,
    WITHOUT_BOS,
    captured,
    picture_pieces,
    read_folder,
    text_pieces,
)
from benchmarks.real_models.disagreements import collect
from benchmarks.real_models.judging import BOOTSTRAPS, OWN, judge, number
from benchmarks.real_models.targets import Skipped, Target, default_folders, targets
from benchmarks.rules import RULES
from sinkscope.capture.encode import bos_policy
from sinkscope.causal import causal_check
from sinkscope.errors import SinkscopeError

RESULTS = Path(__file__).parents[1] / "results" / "real_models.json"
TEXTS = Path(__file__).parents[1] / "held_out"
LEAST_PRECISION, LEAST_F1, LEAST_COVERAGE = 0.98, 0.95, 0.80


def look_at(target: Target, options: argparse.Namespace) -> dict[str, Any]:
    """Profile one model, check it, and judge it on held-out data."""
    seconds: dict[str, float] = {}

    def timed(name: str, started: float) -> None:
        seconds[name] = round(time.monotonic() - started, 1)

    started = time.monotonic()
    loaded = sinkscope.load(target.model)
    profile = sinkscope.profile_model(loaded)
    timed("profile", started)
    started = time.monotonic()
    causal = causal_check(loaded, profile) if options.causal else None
    timed("causal", started)
    started = time.monotonic()
    pieces = text_pieces(loaded, read_folder(options.texts), options.tokens)
    pieces += picture_pieces(loaded, options.pictures)
    with captured(loaded, pieces) as data:
        timed("capture", started)
        started = time.monotonic()
        judged = judge(data, profile, options.bootstraps)
        disagreements = collect(data, judged, loaded)
        timed("judge", started)
    policy = bos_policy(loaded.tokenizer)
    return {
        "name": target.name,
        "backbone": profile.backbone.model_dump(),
        "verdict": profile.verdict,
        "reason": profile.reason,
        "dims": list(profile.dims),
        "expected": None if target.expected is None else [list(dims) for dims in target.expected],
        "barred": target.barred,
        "bands": [
            {"first_layer": band.first_layer, "last_layer": band.last_layer, "dims": band.dims, "quality": band.quality}
            for band in profile.bands
        ],
        "rejected": {
            "companion": [entry.dim for entry in profile.companion_dimensions],
            "outlier": [entry.dim for entry in profile.all_token_outliers],
            "content": [entry.dim for entry in profile.content_dimensions],
        },
        "notes": list(profile.evidence.notes),
        "seconds": seconds,
        "default_variant": WITH_BOS if policy["default"] else WITHOUT_BOS,
        "rules": judged.rules,
        "variants": judged.variants,
        "disagreements": disagreements,
        "causal": causal,
    }


def bars(model: dict[str, Any]) -> list[dict[str, Any]]:
    """The bars that apply to one model, each with its value and whether it is met."""
    listed: list[dict[str, Any]] = []

    def add(what: str, value: Any, bound: str, met: bool | None, variant: str | None = None) -> None:
        default = variant is None or variant == model["default_variant"]
        listed.append(
            {"model": model["name"], "what": what, "value": value, "bound": bound, "met": met}
            | {"variant": variant, "default": default}
        )

    if model["expected"] is not None:
        sets = " or ".join("{" + ", ".join(map(str, dims)) + "}" for dims in model["expected"])
        add("dims", model["dims"], sets, sorted(model["dims"]) in [sorted(dims) for dims in model["expected"]])
    for variant, entry in model["variants"].items() if model["barred"] else ():
        if variant == PICTURES:
            continue
        own = entry["thresholds"][f"{THRESHOLDS[0]:g}"]["methods"].get(OWN, {})
        for what, bound in (("average_precision", LEAST_PRECISION), ("f1", LEAST_F1)):
            value = own.get(what)
            add(what, value, f">= {bound}", None if value is None else value >= bound, variant)
        value = entry["coverage"]
        add("coverage", value, f">= {LEAST_COVERAGE}", None if value is None else value >= LEAST_COVERAGE, variant)
    if model["barred"] and model["causal"] is not None:
        separates = model["causal"]["separates"]
        add("causal check", model["causal"]["sentence"], "separates", separates)
    return listed


def report(message: str) -> None:
    """A line on stderr."""
    print(message, file=sys.stderr, flush=True)


def summary(model: dict[str, Any]) -> str:
    """One line a model for the terminal."""
    parts = [f"{model['name']}: dims {model['dims']}"]
    for variant, entry in model["variants"].items():
        own = entry["thresholds"][f"{THRESHOLDS[0]:g}"]["methods"].get(OWN)
        if own and model["dims"]:
            parts.append(f"{variant} F1 {own['f1']} AP {own['average_precision']} coverage {entry['coverage']}")
    return " | ".join(parts) + f" | {sum(model['seconds'].values()):.0f} s"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_models", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="further models, or NAME=MODEL")
    parser.add_argument("--models-dir", type=Path, action="append", help="every model in this folder")
    parser.add_argument("--only", action="store_true", help="leave out the default models")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="folder with .txt files that calibration lacks")
    parser.add_argument("--tokens", type=int, help="most tokens of text, with and without BOS each")
    parser.add_argument("--pictures", type=int, default=40, help="pictures for multimodal models")
    parser.add_argument("--bootstraps", type=int, default=BOOTSTRAPS, help="resamplings of the pieces")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--no-causal", dest="causal", action="store_false", help="leave out the causal check")
    parser.add_argument("--json", type=Path, default=RESULTS, help="result file")
    return parser.parse_args(arguments)


def main() -> None:
    """Run, write the JSON file, and write the document anew."""
    options = parse()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    models: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    folders = options.models_dir if options.models_dir is not None else default_folders()
    with ExitStack() as stack:
        for target in stack.enter_context(targets(options.models, folders, not options.only)):
            if isinstance(target, Skipped):
                skipped.append({"name": target.name, "reason": target.reason})
                report(f"{target.name}: skipped, {target.reason}")
                continue
            try:
                models.append(look_at(target, options))
            except SinkscopeError as error:
                skipped.append({"name": target.name, "reason": str(error)})
                report(f"{target.name}: skipped, {error}")
                continue
            report(summary(models[-1]))
    result = {
        "settings": {
            "thresholds": list(THRESHOLDS),
            "later_queries": LATER_QUERIES,
            "piece_tokens": PIECE_TOKENS,
            "bootstraps": options.bootstraps,
            "texts": sorted(read_folder(options.texts)),
            "tokens": options.tokens,
        },
        "versions": {
            "sinkscope": sinkscope.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
        "rules": {rule.name: {"source": rule.source, "definition": rule.definition} for rule in RULES},
        "skipped": skipped,
        "bars": [bar for model in models for bar in bars(model)],
        "models": models,
        "seconds": number(time.monotonic() - started),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    report(f"wrote {options.json}")
    if options.json == RESULTS:
        from benchmarks.document import write

        for path in write():
            report(f"wrote {path}")


if __name__ == "__main__":
    main()
