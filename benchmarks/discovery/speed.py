"""How long discovery takes on a large run file, and how much memory: 32 layers, D = 4096, 100,000 tokens.

The file is written through the same collector and writer as a capture, sample by sample, so that memory stays small.
Hidden states are cheap to make: rows of a pool of heavy-tailed noise, rolled by a random number of dimensions and added
up layer by layer, with two sink dimensions on first tokens and full stops. The process that discovers does nothing
else; its peak memory is that of the whole process, imports included.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sinkscope.capture.attention import causal_expectation
from sinkscope.capture.collector import Collector
from sinkscope.store.choices import choose_tokens
from sinkscope.store.layout import (
    ATTENTION_MEASURED,
    DEFAULT_LARGEST,
    DEFAULT_LEVELS,
    DEFAULT_TOP_TOKENS,
    RunAttributes,
    RunPlan,
)
from sinkscope.store.tokens import TokenTable
from sinkscope.store.writer import RunWriter

LAYERS, WIDTH, SAMPLES, LENGTH = 32, 4096, 200, 500
SAMPLED, ATTENDED_SAMPLES = 1024, 48
DIMS, VALUES, FIRST_LAYER = (1415, 2533), (-460.0, 770.0), 2
FULL_STOP = 90

MEASURE = """
import json, resource, sys, time
from sinkscope.discovery import discover
started = time.perf_counter()
profile = discover(sys.argv[1])
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak": peak, "dims": list(profile.dims), "verdict": profile.verdict}))
"""


def make_plan(layers: int, width: int, samples: int, length: int) -> RunPlan:
    """Token table, sampled tokens and attributes."""
    count = samples * length
    position = np.tile(np.arange(length, dtype=np.int32), samples)
    identifier = (np.random.default_rng(1).zipf(1.3, count) % 5000 + 2).astype(np.int32)
    identifier[position == 0] = 0
    identifier[position == min(FULL_STOP, length // 2)] = 1
    table = TokenTable(identifier, (position == 0).astype(np.uint8), np.full(samples, length, np.int32))
    attributes = RunAttributes(
        model_id="synthetic",
        revision=None,
        backbone={"model_type": "synthetic", "hidden_size": width, "num_layers": layers},
        dtype="float32",
        settings={},
        calibration={"samples": samples, "source": "synthetic", "tokens": count},
        seed=0,
        versions={},
        num_layers=layers,
        hidden_size=width,
        attention=ATTENTION_MEASURED,
    )
    fingerprints = np.arange(samples, dtype=np.uint64)
    return RunPlan(
        attributes,
        table,
        {int(one): f"token {one}" for one in np.unique(identifier)} | {0: "<s>", 1: "."},
        np.arange(samples, dtype=np.int32),
        choose_tokens(table, fingerprints, SAMPLED, 0),
        table.rows_of(range(min(samples, ATTENDED_SAMPLES))),
        DEFAULT_TOP_TOKENS,
        DEFAULT_LARGEST,
        DEFAULT_LEVELS,
        fingerprints=fingerprints,
    )


class Stream:
    """Hidden states of one sample after another, layer by layer."""

    def __init__(self, layers: int, width: int, length: int) -> None:
        self._generator = np.random.default_rng(0)
        heavy = self._generator.standard_t(5, (2 * length, width)).astype(np.float32)
        self._scale = np.exp(self._generator.normal(0, 0.5, width)).astype(np.float32)
        self._pool = heavy * self._scale
        self._layers, self._width, self._length = layers, width, length

    def _noise(self) -> NDArray[np.float32]:
        # Rolling whole rows would wash out the dimensions' scales, so rows are drawn anew and only signs change.
        rows = self._generator.integers(0, len(self._pool), self._length)
        return self._pool[rows] * self._generator.choice(np.array([-1, 1], np.float32), self._length)[:, None]

    def sample(self, take: Callable[[int, torch.Tensor], None]) -> None:
        """Hand over the hidden states [1, T, D] of one sample, layers 0..L."""
        state = self._noise()
        rows = [0, min(FULL_STOP, self._length // 2)]
        for layer in range(self._layers + 1):
            if layer:
                state = state + 0.4 * self._noise()
            if FIRST_LAYER <= layer < self._layers:
                for dim, value in zip(DIMS, VALUES, strict=True):
                    state[rows, dim % self._width] = value * (1 + 0.02 * self._generator.standard_normal(2))
            take(layer, torch.from_numpy(state[None]))


def drawn_by(generator: np.random.Generator, layers: int, length: int) -> NDArray[np.float32]:
    """Attention of one sample, float32 [T, L]."""
    drawn = generator.uniform(0.0005, 0.02, (length, layers)).astype(np.float32)
    rows = [0, min(FULL_STOP, length // 2)]
    drawn[rows, FIRST_LAYER:] = generator.uniform(0.2, 0.4, (2, layers - FIRST_LAYER))
    return drawn


def write_large(
    path: Path,
    layers: int = LAYERS,
    width: int = WIDTH,
    samples: int = SAMPLES,
    length: int = LENGTH,
    advance: Callable[[], None] = lambda: None,
) -> Path:
    """Write the run file, sample by sample."""
    plan = make_plan(layers, width, samples, length)
    collector = Collector(plan)
    stream = Stream(layers, width, length)
    generator = np.random.default_rng(2)
    later = np.arange(length)[::-1].astype(np.int32)
    expected = np.broadcast_to(causal_expectation(length)[:, None], (length, layers))
    with RunWriter.create(path, plan) as writer:
        for sample in range(samples):
            collector.begin([sample])
            stream.sample(collector)
            (row,) = collector.finish()
            if sample < ATTENDED_SAMPLES:
                row = replace(
                    row,
                    drawn=drawn_by(generator, layers, length),
                    later_queries=later,
                    expected=np.ascontiguousarray(expected),
                    value_norm=np.ones((length, layers), np.float32),
                )
            writer.write_sample(row)
            advance()
        writer.complete(collector.statistics())
    return path


def measure(path: Path) -> dict[str, Any]:
    """Discover in a process of its own."""
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True, env=environment
    )
    return dict(json.loads(process.stdout))


def speed(advance: Callable[[], None] = lambda: None, **shape: int) -> dict[str, Any]:
    """Write the large run file in a temporary folder and discover it; ready for JSON."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        path = write_large(Path(folder) / "large.h5", advance=advance, **shape)
        written = time.perf_counter() - started
        size = path.stat().st_size
        result = measure(path)
    return {
        "layers": shape.get("layers", LAYERS),
        "width": shape.get("width", WIDTH),
        "tokens": shape.get("samples", SAMPLES) * shape.get("length", LENGTH),
        "file_gib": round(size / 2**30, 3),
        "write_seconds": round(written, 1),
        "seconds": round(result["seconds"], 2),
        "peak_gib": round(result["peak"] / 2**30, 3),
        "dims": result["dims"],
        "verdict": result["verdict"],
    }
