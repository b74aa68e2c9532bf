"""How fast a run that keeps all hidden states is written, against the disk's sequential speed; and chunk shapes."""

import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmarks.plans import bare_plan
from sinkscope.store.background import BackgroundWriter
from sinkscope.store.compression import METHODS, filter_options
from sinkscope.store.layout import (
    RunPlan,
    SampleRows,
    empty_statistics,
    row_layout,
    stored_bytes,
)
from sinkscope.store.reader import RunReader
from sinkscope.store.writer import RunWriter

LAYERS, WIDTH, LENGTH, SAMPLES, AT_ONCE = 32, 1024, 256, 96, 8
"""1.6 GB of hidden states, in batches of 2,048 tokens."""
BLOCK = 2**26


def keep_all(folder: str, turns: int) -> dict[str, Any]:
    """Bytes a second of both by turns, each until all is on the disk."""
    plan = bare_plan(LENGTH, WIDTH, LAYERS, SAMPLES, keep_all=True)
    ready = [rows_of(plan, number) for number in range(AT_ONCE)]
    total = stored_bytes(plan)
    speeds: dict[str, list[float]] = {"disk": [], "keep all": []}
    for _ in range(turns):
        speeds["disk"].append(total / sequential(folder, total))
        speeds["keep all"].append(total / written(folder, plan, ready))
    ratios = [own / disk for own, disk in zip(speeds["keep all"], speeds["disk"], strict=True)]
    return {
        "bytes": total,
        **{f"{name}_mb_per_second": [round(speed / 1e6) for speed in found] for name, found in speeds.items()},
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def sequential(folder: str, total: int) -> float:
    """Seconds to write so many bytes one after another."""
    block = np.random.default_rng(0).integers(0, 256, BLOCK, np.uint8)
    with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as file:
        began = time.perf_counter()
        for start in range(0, total, BLOCK):
            file.write(block[: total - start].data)
        os.fsync(file.fileno())
        return time.perf_counter() - began


def written(folder: str, plan: RunPlan, ready: list[SampleRows]) -> float:
    """Seconds to write a run whose rows are at hand."""
    accumulators = empty_statistics(plan)
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        began = time.perf_counter()
        with RunWriter.create(Path(inner) / "run.h5", plan) as writer, BackgroundWriter(writer, 2.0) as background:
            for first in range(0, SAMPLES, AT_ONCE):
                rows = [replace(ready[place], sample=first + place) for place in range(AT_ONCE)]
                background.write(lambda rows=rows: rows, lambda: accumulators)
            background.complete(lambda: accumulators)
        return time.perf_counter() - began


def rows_of(plan: RunPlan, sample: int) -> SampleRows:
    """Rows of noise."""
    generator = np.random.default_rng(sample)
    arrays = {
        name: generator.normal(size=(LENGTH, *shape[1:])).astype(dtype)
        for name, (shape, dtype) in row_layout(plan).items()
    }
    return SampleRows.of(sample, arrays)


def chunk_shapes(run: Path, folder: str) -> list[dict[str, Any]]:
    """Ratio and speeds of compressing what a run keeps, by rows and layers of a chunk."""
    rows: list[dict[str, Any]] = []
    with RunReader(run) as reader:
        layers = range(reader.attributes.num_layers + 1)
        states = np.stack([reader.sampled(layer, every=True)[1].astype(np.float16) for layer in layers], axis=1)
        values = np.stack([reader.largest(layer)[1] for layer in layers], axis=1)
    for name, array in (("sampled/states", states), ("largest/value", values)):
        for method in METHODS:
            for count, depth in ((64, 1), (256, 1), (1024, 1), (4096, 1), (16, len(layers))):
                shape = (min(count, len(array)), depth, array.shape[2])
                rows.append(
                    {"dataset": name, "method": method, "chunk": shape, **chunked(array, method, shape, folder)}
                )
                print(rows[-1], flush=True)
    return rows


def chunked(array: NDArray[Any], method: str, shape: tuple[int, ...], folder: str) -> dict[str, float]:
    """Ratio, MB/s of writing, and of reading layer by layer, in process time."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".h5") as file:
        began = time.process_time()
        with h5py.File(file.name, "w") as target:
            target.create_dataset("x", data=array, chunks=shape, **filter_options(method))
        writing = time.process_time() - began
        began = time.process_time()
        with h5py.File(file.name) as source:
            for layer in range(array.shape[1]):
                source["x"][:, layer]
        reading = time.process_time() - began
        size = os.path.getsize(file.name)
    return {
        "kib": int(np.prod(shape)) * array.itemsize / 2**10,
        "ratio": array.nbytes / size,
        "write_mb_per_second": array.nbytes / writing / 1e6,
        "read_mb_per_second": array.nbytes / reading / 1e6,
    }
