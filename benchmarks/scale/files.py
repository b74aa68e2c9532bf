"""The run file: commits, rows, and merging, on rows of noise."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plans import bare_plan
from benchmarks.scale.fits import least_seconds, line, traced
from benchmarks.scale.passes import LENGTH
from sinkscope.store.layout import RunPlan, SampleRows, empty_statistics, row_layout, statistics_layout
from sinkscope.store.merge import merge
from sinkscope.store.writer import RunWriter

ACCUMULATORS = ((512, 8), (1024, 8), (1024, 16), (2048, 16), (4096, 16))
DEPTHS, SAMPLES = (8, 16, 32, 64, 96), 64
MERGED = (64, 128, 256, 512)
FILES = (2, 4, 8, 16)


def commits() -> dict[str, Any]:
    """Seconds of a commit over bytes of the accumulators; those of bytes are exact."""
    points = []
    for width, layers in ACCUMULATORS:
        small = bare_plan(16, width, layers, samples=1)
        accumulators = empty_statistics(small)
        size = sum(np.dtype(dtype).itemsize * np.prod(shape) for shape, dtype in statistics_layout(small).values())
        with tempfile.TemporaryDirectory() as folder, RunWriter.create(Path(folder) / "run.h5", small) as writer:
            points.append((float(size), least_seconds(lambda w=writer, a=accumulators: w.commit(a), 5)))
    return line(points)


def rows() -> dict[str, Any]:
    """Seconds to write the rows of a sample of 256 tokens, over their bytes: by the writer's thread."""
    points = []
    for layers in DEPTHS:
        whole = bare_plan(LENGTH, 64, layers, samples=SAMPLES)
        ready = noise(whole)
        size = sum(array.nbytes for name in row_layout(whole) if (array := ready[0].dataset(name)) is not None)
        points.append((float(size), min(written(whole, ready) for _ in range(5)) / SAMPLES))
    return line(points)


def written(whole: RunPlan, ready: list[SampleRows]) -> float:
    """Seconds to write rows that are at hand, without the making of the file."""
    with tempfile.TemporaryDirectory() as folder, RunWriter.create(Path(folder) / "run.h5", whole) as writer:
        began = time.process_time()
        for entry in ready:
            writer.write_sample(entry)
        return time.process_time() - began


def merges() -> dict[str, Any]:
    """Seconds over the samples and their bytes and over files, and bytes of memory over tokens."""
    points: dict[str, list[tuple[float, float]]] = {"samples": [], "memory": [], "bytes of a sample": [], "files": []}
    for samples in MERGED:
        with tempfile.TemporaryDirectory() as folder:
            paths = list(files(folder, samples, 8, 2))
            points["samples"].append((float(samples), least_seconds(lambda paths=paths: merged(paths))))
            most = traced(lambda paths=paths: merged(paths))[1]
            points["memory"].append((float(samples * LENGTH), float(most)))
    for layers in DEPTHS:
        with tempfile.TemporaryDirectory() as folder:
            paths = list(files(folder, SAMPLES, layers, 2))
            size = sum(path.stat().st_size for path in paths) / SAMPLES
            points["bytes of a sample"].append((size, least_seconds(lambda paths=paths: merged(paths)) / SAMPLES))
    for count in FILES:
        with tempfile.TemporaryDirectory() as folder:
            paths = list(files(folder, SAMPLES, 8, count))
            points["files"].append((float(count), least_seconds(lambda paths=paths: merged(paths))))
    return {name: line(entry) for name, entry in points.items()}


def merged(paths: list[Path]) -> None:
    """Merge, and forget the file."""
    out = paths[0].with_name("merged.h5")
    merge(paths, out)
    out.unlink()


def files(folder: str, samples: int, layers: int, count: int) -> Iterator[Path]:
    """Complete run files over different samples, so many in all."""
    for number in range(count):
        own = bare_plan(LENGTH, 64, layers, samples=samples // count)
        own = replace(own, fingerprints=own.fingerprints + np.uint64(number * samples))
        path = Path(folder) / f"{number}.h5"
        with RunWriter.create(path, own) as writer:
            for entry in noise(own):
                writer.write_sample(entry)
            writer.complete(empty_statistics(own))
        yield path


def noise(whole: RunPlan) -> list[SampleRows]:
    """Rows for all samples: one drawn, with dimensions below 60 of 64, shown as all."""
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.uniform(0, 60, (0 if name.startswith("sampled/") else LENGTH, *shape[1:])).astype(dtype)
        for name, (shape, dtype) in row_layout(whole).items()
    }
    return [SampleRows.of(number, arrays) for number in range(whole.num_samples)]
