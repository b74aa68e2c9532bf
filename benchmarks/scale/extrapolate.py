"""From the slopes to large models, many tokens and clusters. Pure arithmetic; what is assumed is a constant here."""

from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import numpy as np

from benchmarks.scale.passes import BATCH
from sinkscope.capture.settings import PEAK_STATES, CaptureSettings
from sinkscope.discovery.pooled import BLOCK
from sinkscope.discovery.tokens import CACHED_BYTES
from sinkscope.store.layout import RunAttributes, RunPlan, row_layout, statistics_layout, stored_bytes
from sinkscope.store.tokens import TokenTable

DEVICE_FLOPS, DEVICE_BANDWIDTH = 4e14, 2.7e12
"""Of a device of 2024: 40 % of 989 bfloat16 TFLOP/s, and 80 % of 3.35 TB/s."""
DEVICE_ROOM, HOST_ROOM, DEVICES_PER_MACHINE = 60e9, 1.8e12, 8
"""Bytes for weights on a device of 80 GB and in the memory of a machine of 2 TB."""
LINK, DISK = 5e10, 2e9
"""Bytes a second from the host to a device, and to or from the shared folder."""
SAMPLE_TOKENS, WEIGHT_BYTES = 256, 2
CACHES = 2.5 * CACHED_BYTES + 64 * BLOCK
"""Bytes of discovery's caches, full: of rows, of what is computed from them, and of scores in order (as traced)."""


@dataclass(frozen=True)
class Model:
    """Parameters, those that take part for a token, layers, width, attention layers."""

    name: str
    parameters: float
    active: float
    layers: int
    width: int

    @property
    def bytes(self) -> float:
        return WEIGHT_BYTES * self.parameters


MODELS = (
    Model("LLaMA-2-7B", 6.74e9, 6.74e9, 32, 4096),
    Model("70B", 69e9, 69e9, 80, 8192),
    Model("1T mixture, 61 layers", 1e12, 3.2e10, 61, 7168),
    Model("1T mixture, 120 layers", 1e12, 1e11, 120, 16384),
)
TOKENS, DEVICES = (10**5, 10**7, 10**9), (1, 8, 1024)


def plan_of(model: Model, tokens: int, keep: str = "sample") -> RunPlan:
    """The plan of a run of full samples; its columns are one number each, shown as many."""
    samples = ceil(tokens / SAMPLE_TOKENS)
    settings = CaptureSettings()
    kept = {"all": tokens, "none": 0}.get(keep, min(tokens, settings.sampled_tokens))
    attended = min(tokens, settings.attention_texts * SAMPLE_TOKENS)

    def shown(count: int, dtype: Any) -> Any:
        return np.broadcast_to(np.zeros((), dtype), (count,))

    table = TokenTable(shown(tokens, np.int32), shown(tokens, np.uint8), shown(samples, np.int32))
    attributes = RunAttributes(model.name, None, {}, "bfloat16", {}, {}, 0, {}, model.layers, model.width)
    return RunPlan(
        attributes,
        table,
        {},
        shown(samples, np.int32),
        shown(kept, np.int64),
        shown(attended, np.int64),
        fingerprints=shown(samples, np.uint64),
        peak_states=PEAK_STATES if keep == "topk" else 0,
    )


def file_bytes(model: Model, tokens: int, keep: str = "sample") -> int:
    """Of the run file's rows and accumulators, exactly."""
    return stored_bytes(plan_of(model, tokens, keep))


def token_bytes(model: Model) -> int:
    """Bytes that a token adds to the rows whatever is kept of its states; as many go from the device to the host."""
    layout = row_layout(plan_of(model, SAMPLE_TOKENS, "none"))
    return sum(
        int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        for name, (shape, dtype) in layout.items()
        if "largest" in name
    )


def accumulator_bytes(model: Model) -> int:
    """Of one slot of the accumulators: in memory of every process, and twice in its file."""
    layout = statistics_layout(plan_of(model, SAMPLE_TOKENS))
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in layout.values())


def placed(model: Model, devices: int) -> dict[str, Any]:
    """On how many devices a copy of the model is, how many copies there are, and what comes in anew in every pass."""
    wanted = 2 ** max(0, ceil(log2(model.bytes / DEVICE_ROOM)))
    team = min(wanted, devices)
    outside = max(0.0, model.bytes - team * DEVICE_ROOM)
    machines = ceil(team / DEVICES_PER_MACHINE)
    fits = outside <= HOST_ROOM * machines
    return {"team": team, "teams": devices // team, "outside": outside, "speed": LINK if fits else DISK}


def pass_seconds(results: dict[str, Any], model: Model, devices: int) -> tuple[float, float]:
    """Seconds of a batch: the forward pass, and the statistics, which one device of a team computes."""
    place = placed(model, devices)
    # What is offloaded passes through one device after another; a team that holds the model works at once.
    workers = 1 if place["outside"] else place["team"]
    computing = 2 * model.active * BATCH / DEVICE_FLOPS
    reading = (model.bytes - place["outside"]) / DEVICE_BANDWIDTH
    forward = max(computing, reading) / workers + place["outside"] / place["speed"]
    moved = results["moved on devices"]["slope"] * BATCH * model.width * (model.layers + 1)
    return forward, moved / DEVICE_BANDWIDTH


def run(results: dict[str, Any], model: Model, tokens: int, devices: int) -> dict[str, float]:
    """Everything about one run, in seconds and bytes."""
    place, plans = placed(model, devices), results["plans"]
    forward, statistics = pass_seconds(results, model, devices)
    teams = min(place["teams"], ceil(tokens / BATCH))
    samples, size = tokens / SAMPLE_TOKENS, token_bytes(model) * SAMPLE_TOKENS
    merges = results["merges"]
    merging = merges["samples"]["slope"] - merges["bytes of a sample"]["slope"] * merged_sample(merges)
    whole = file_bytes(model, tokens)
    return {
        "plan seconds": tokens
        * (plans["seconds to encode"]["slope"] + plans["seconds for the rest of the plan"]["slope"]),
        "pass seconds": tokens / BATCH / teams * (forward + statistics),
        "statistics share": statistics / (forward + statistics),
        "write seconds": samples / teams * (results["rows"]["intercept"] + results["rows"]["slope"] * size),
        "file bytes": whole,
        "process bytes": tokens * (plans["bytes while it is made"]["slope"] + plans["bytes of a text for each token"])
        + 2 * accumulator_bytes(model),
        "merge seconds": 0.0
        if teams == 1
        else samples * (max(0.0, merging) + merges["bytes of a sample"]["slope"] * size) + 2 * whole / DISK,
        "merge bytes": 0.0
        if teams == 1
        else tokens * merges["memory"]["slope"] + (teams + 2) * accumulator_bytes(model),
        "discovery seconds": discovery_seconds(results, model, tokens),
        "discovery bytes": discovery_bytes(results["discovery"], model, tokens),
    }


def merged_sample(merges: dict[str, Any]) -> float:
    """Bytes of a sample of the files whose merging was timed over samples: those of the least of the other line."""
    return float(merges["bytes of a sample"]["points"][0][0])


def discovery_seconds(results: dict[str, Any], model: Model, tokens: int) -> float:
    """Of tokens times layers, and of the kept states' elements; and of reading again what the caches cannot hold."""
    found = results["discovery"]
    base = found["base"]
    each = found["tokens"]["seconds"]["slope"] / (base["layers"] + 1)
    element = found["width"]["seconds"]["slope"] / (base["layers"] + 1) / base["sampled"]
    computing = tokens * each * (model.layers + 1) + element * model.width * (model.layers + 1) * base["sampled"]
    rows = tokens * token_bytes(model)
    readings = found["readings of a layer's largest coordinates"] * (model.layers + 1)
    # The rows of a layer lie apart in the file, so that reading those of one layer touches all of it.
    again = found["seconds to read a layer"]["slope"] * tokens * (model.layers + 1) if rows > CACHED_BYTES else 0.0
    return computing + readings * again + (readings * rows / DISK if rows > HOST_ROOM else rows / DISK)


def discovery_bytes(found: dict[str, Any], model: Model, tokens: int) -> float:
    """Of every token, of every dimension and layer, and of the caches as far as the tokens of all layers fill them."""
    each = found["bytes beyond the caches"]["slope"]
    kept = (found["tokens"]["bytes"]["slope"] - each) / (found["base"]["layers"] + 1)
    peaks = found["bytes for each dimension and layer"]["slope"] * (model.layers + 1) * model.width
    return float(tokens * each + peaks + min(CACHES, kept * tokens * (model.layers + 1)))
