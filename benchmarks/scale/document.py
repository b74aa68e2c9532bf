"""The tables of `docs/scale.md`, written between its marks from the results alone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.document.words import table
from benchmarks.scale.extrapolate import (
    DEVICES,
    MODELS,
    TOKENS,
    accumulator_bytes,
    file_bytes,
    pass_seconds,
    placed,
    run,
    token_bytes,
)
from sinkscope.capture.settings import KEEP

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def write(results: dict[str, Any], page: Path = PAGE) -> str:
    """Put the tables in their places; gives them all."""
    text = page.read_text()
    made = {"slopes": slopes(results), "sizes": sizes(), "passes": passes(results), "runs": runs(results)}
    for name, content in made.items():
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
        if len(re.findall(pattern, text, re.DOTALL)) != 1:
            raise ValueError(f"{page} has no place for the table of {name}")
        text = re.sub(
            pattern, lambda _, content=content, marks=marks: f"{marks[0]}\n{content}\n{marks[1]}", text, flags=re.DOTALL
        )
    page.write_text(text)
    return "\n\n".join(made.values())


def slopes(results: dict[str, Any]) -> str:
    """Everything measured: what, for each what, slope with its error, and how well the line fits."""
    plans, merges, found, weights = (results[name] for name in ("plans", "merges", "discovery", "weights"))
    reading = results["statistics"]
    rows: list[tuple[str, str, dict[str, Any], float, str]] = [
        ("forward pass", "FLOP, 2 for each token and parameter", results["passes"], 1e9, "ns"),
        ("statistics, over tokens", "element of T * D * (L + 1)", reading["tokens"], 1e9, "ns"),
        ("statistics, over width", "element", reading["width"], 1e9, "ns"),
        ("statistics, over layers", "element", reading["layers"], 1e9, "ns"),
        ("statistics on a device: memory moved", "element, bfloat16", results["moved on devices"], 1, "B"),
        ("encoding texts", "token", plans["seconds to encode"], 1e6, "us"),
        ("the rest of the plan", "token", plans["seconds for the rest of the plan"], 1e6, "us"),
        ("plan, held", "token", plans["bytes of the plan"], 1, "B"),
        ("plan, while it is made", "token", plans["bytes while it is made"], 1, "B"),
        ("share of 8 processes, while it is made", "token of all", plans["bytes while a share of 8 is made"], 1, "B"),
        ("making the run file", "token", plans["seconds to make the file"], 1e6, "us"),
        (
            "run file beside rows and accumulators",
            "token",
            plans["bytes of the file beside rows and accumulators"],
            1,
            "B",
        ),
        ("opening a run file", "token", plans["seconds to open the file"], 1e6, "us"),
        ("an open run file", "token", plans["bytes of an open file"], 1, "B"),
        ("commit", "byte of the accumulators", results["commits"], 1e9, "ns"),
        ("writing rows", "byte of a sample's rows", results["rows"], 1e9, "ns"),
        ("merging, over samples", "sample of 256 tokens, 8 layers", merges["samples"], 1e3, "ms"),
        ("merging, over bytes", "byte of a sample's rows", merges["bytes of a sample"], 1e9, "ns"),
        ("merging, over files", "file", merges["files"], 1e3, "ms"),
        ("merging, memory", "token", merges["memory"], 1, "B"),
        ("discovery, over tokens", "token, 8 layers", found["tokens"]["seconds"], 1e6, "us"),
        ("discovery, over layers", "layer, 8,192 tokens", found["layers"]["seconds"], 1e3, "ms"),
        ("discovery, over width", "dimension, 8 layers", found["width"]["seconds"], 1e3, "ms"),
        ("discovery, over kept states", "token kept", found["sampled"]["seconds"], 1e3, "ms"),
        ("discovery, a layer read again", "token and layer of the file", found["seconds to read a layer"], 1e9, "ns"),
        ("discovery, memory until the caches are full", "token, 8 layers", found["tokens"]["bytes"], 1, "B"),
        ("discovery, memory beyond the caches", "token", found["bytes beyond the caches"], 1, "B"),
        ("the same for each token, over layers", "layer", found["bytes for each token, by layers"], 1, "B"),
        ("discovery, memory of the peaks", "dimension and layer", found["bytes for each dimension and layer"], 1, "B"),
        ("fingerprint of the weights", "tensor", weights["fingerprint"], 1e6, "us"),
        ("prediction from the weights", "parameter", weights["predict"], 1e9, "ns"),
    ]
    return table(
        ["what", "for each", "slope", "standard error", "r squared"],
        (
            [what, unit, f"{fit['slope'] * scale:.3g} {name}", f"{fit['error'] * scale:.2g}", f"{fit['r2']:.3f}"]
            for what, unit, fit, scale, name in rows
        ),
        left=2,
    )


def sizes() -> str:
    """Bytes of the run file, exactly, by what is kept."""
    header = [
        "model",
        "a token's rows",
        "accumulators",
        *(f"{count:.0e} tokens, {keep}" for count in TOKENS for keep in ("sample",)),
    ]
    header += [f"{TOKENS[1]:.0e}, {keep}" for keep in KEEP if keep != "sample"]
    return table(
        header,
        (
            [model.name, short(token_bytes(model)), short(accumulator_bytes(model))]
            + [short(file_bytes(model, count)) for count in TOKENS]
            + [short(file_bytes(model, TOKENS[1], keep)) for keep in KEEP if keep != "sample"]
            for model in MODELS
        ),
    )


def passes(results: dict[str, Any]) -> str:
    """A batch on devices: where the model is, what a pass takes, what the statistics add."""

    def rows() -> Iterator[list[str]]:
        for model in MODELS:
            for devices in DEVICES:
                place = placed(model, devices)
                forward, statistics = pass_seconds(results, model, devices)
                outside = short(place["outside"]) if place["outside"] else "-"
                yield [
                    model.name,
                    f"{devices:,}",
                    f"{place['teams']:,} x {place['team']}",
                    outside,
                    duration(forward),
                    duration(statistics),
                    f"{statistics / (forward + statistics):.1%}",
                ]

    return table(
        ["model", "devices", "copies x devices", "read anew in every pass", "pass", "statistics", "share"], rows()
    )


def runs(results: dict[str, Any]) -> str:
    """Whole runs."""

    def rows() -> Iterator[list[str]]:
        for model in MODELS:
            for tokens in TOKENS:
                for devices in DEVICES:
                    found = run(results, model, tokens, devices)
                    merging = (
                        "-"
                        if not found["merge bytes"]
                        else f"{duration(found['merge seconds'])}, {short(found['merge bytes'])}"
                    )
                    yield [
                        model.name,
                        f"{tokens:.0e}",
                        f"{devices:,}",
                        duration(found["plan seconds"]),
                        duration(found["pass seconds"]),
                        short(found["file bytes"]),
                        short(found["process bytes"]),
                        merging,
                        f"{duration(found['discovery seconds'])}, {short(found['discovery bytes'])}",
                    ]

    return table(
        ["model", "tokens", "devices", "plan", "passes", "run file", "memory of a process", "merge", "discovery"],
        rows(),
    )


def short(count: float) -> str:
    """Bytes in decimal units."""
    for size, unit in UNITS:
        if count >= size:
            return f"{count / size:.3g} {unit}B"
    return f"{count:.3g} B"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for size, unit, least in ((86400, "d", 2), (3600, "h", 2), (60, "min", 2), (1, "s", 1)):
        if seconds >= least * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e3:.3g} ms"
