"""Discovery over tokens, layers and width; and loading, the weights' fingerprint and their prediction."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.profile.subjects import load
from benchmarks.scale.fits import least_seconds, line, traced
from sinkscope.backbone.loading import load as load_model
from sinkscope.capture.planning import weights_fingerprint
from sinkscope.capture.synthetic import write_synthetic
from sinkscope.discovery import discover, pooled, tokens
from sinkscope.store.layout import STATUS_RUNNING
from sinkscope.store.reader import RunReader
from sinkscope.store.writer import RunWriter
from sinkscope.weights import predict_loaded

LENGTH = 128
BASE = {"count": 8192, "width": 256, "layers": 8, "sampled": 1024}
SWEEPS = {
    "tokens": [BASE | {"count": count} for count in (8192, 16384, 32768, 65536)],
    "width": [BASE | {"width": width} for width in (128, 256, 512)],
    "layers": [BASE | {"layers": layers} for layers in (4, 8, 16)],
    "sampled": [BASE | {"sampled": sampled} for sampled in (512, 1024, 2048)],
}
AXIS = {"tokens": "count", "width": "width", "layers": "layers", "sampled": "sampled"}
ATTENDED = 48
WIDTHS, DEPTHS = (256, 512, 768, 1024), (4, 8, 16, 32)
WIDE, NARROW = 512, {"width": 64, "sampled": 256}
"""Where dimensions matter, and where they do not beside the tokens."""


def finding() -> dict[str, Any]:
    """Seconds and bytes at most over tokens, width, layers, and tokens whose states are kept."""
    found: dict[str, Any] = {"base": BASE}
    for name, sweep in SWEEPS.items():
        seconds, memory = [], []
        for shape in sweep:
            with tempfile.TemporaryDirectory() as folder:
                path = synthetic(Path(folder) / "run.h5", **shape)
                seconds.append((float(shape[AXIS[name]]), least_seconds(lambda path=path: discover(path))))
                memory.append((float(shape[AXIS[name]]), float(traced(lambda path=path: discover(path))[1])))
        found[name] = {"seconds": line(seconds), "bytes": line(memory)}
    found["bytes beyond the caches"] = line(
        [(float(count), float(small_memory(**NARROW, count=count))) for count in (32768, 65536, 98304, 131072)]
    )
    found["bytes for each token, by layers"] = line([(float(depth), tokens_memory(depth)) for depth in (4, 8, 16)])
    found["bytes for each dimension and layer"] = line(
        [
            (float(WIDE * (depth + 1)), float(small_memory(width=WIDE, layers=depth, sampled=256)))
            for depth in DEPTHS[1:]
        ]
    )
    found["seconds to read a layer"] = line([(float(65536 * (depth + 1)), reading(depth)) for depth in DEPTHS])
    found["readings of a layer's largest coordinates"] = readings()
    return found


def tokens_memory(layers: int) -> float:
    """Bytes for one more token where the caches, which have a size of their own, hold one layer."""
    few, many = (small_memory(**NARROW, layers=layers, count=count) for count in (32768, 98304))
    return (many - few) / 65536


def small_memory(**shape: int) -> int:
    """Bytes that discovery takes at most where the caches hold one layer."""
    with tempfile.TemporaryDirectory() as folder, small_caches():
        path = synthetic(Path(folder) / "run.h5", **BASE | shape)
        return traced(lambda: discover(path))[1]


def reading(layers: int) -> float:
    """Seconds to read the largest coordinates in one layer of 65,536 tokens; those of all layers lie between them."""
    with tempfile.TemporaryDirectory() as folder:
        path = synthetic(Path(folder) / "run.h5", **BASE | NARROW | {"layers": layers, "count": 65536})
        with RunReader(path) as run:
            run.largest(0)  # Checks the rows against their checksums.
            return least_seconds(lambda: run.largest(1))


def readings() -> float:
    """How often discovery reads a layer of the file's rows where only one fits its cache."""
    calls, real = [0], RunReader.largest

    def counted(reader: RunReader, layer: int) -> Any:
        calls[0] += 1
        return real(reader, layer)

    with tempfile.TemporaryDirectory() as folder, small_caches():
        path = synthetic(Path(folder) / "run.h5", **BASE)
        with patch.object(RunReader, "largest", counted):
            discover(path)
    return calls[0] / (BASE["layers"] + 1)


@contextmanager
def small_caches() -> Iterator[None]:
    """As small, beside the tokens, as they are at many tokens."""
    with patch.object(tokens, "CACHED_BYTES", 0), patch.object(pooled, "BLOCK", 2**13):
        yield


def synthetic(path: Path, count: int, width: int, layers: int, sampled: int) -> Path:
    """A run of samples whose first tokens are sinks in two dimensions, with the attention of as many as usual."""
    generator = np.random.default_rng(0)
    states = generator.standard_normal((layers + 1, count, width), np.float32)
    states *= np.exp(0.5 * generator.standard_normal(width, np.float32))
    states[1:, ::LENGTH, (width // 5, width // 3)] = 300.0
    drawn = generator.uniform(0, 0.01, (count, layers))
    drawn[::LENGTH] = 0.5
    every = path.with_name("every.h5")
    write_synthetic(every, states, np.arange(count) // LENGTH, drawn=drawn, sampled=sampled)
    with RunReader(every) as reader:
        attributes = replace(reader.attributes, status=STATUS_RUNNING)
        plan = replace(reader.plan, attributes=attributes, attention_tokens=np.arange(min(count, ATTENDED * LENGTH)))
        with RunWriter.create(path, plan) as writer:
            for number in plan.order.tolist():
                rows = reader.rows(number)
                if number >= ATTENDED:
                    rows = replace(rows, drawn=None, later_queries=None, expected=None, value_norm=None)
                writer.write_sample(rows)
            writer.complete(reader.statistics)
    every.unlink()
    return path


def weights() -> dict[str, Any]:
    """Seconds over parameters, to load from the page cache and to predict; and over tensors, to fingerprint."""
    tokenizer = load("tiny").tokenizer
    loading, predicting, fingerprints = [], [], []
    for width in WIDTHS:
        model = random_llama(width, 8)
        count = float(sum(parameter.numel() for parameter in model.parameters()))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            loading.append((count, least_seconds(lambda folder=folder: load_model(folder))))
        predicting.append((count, least_seconds(lambda model=model: predict_loaded(model), 2)))
    for depth in DEPTHS:
        model = random_llama(128, depth)
        seconds = least_seconds(lambda model=model: weights_fingerprint(model))
        fingerprints.append((float(len(list(model.parameters()))), seconds))
    return {"load": line(loading), "predict": line(predicting), "fingerprint": line(fingerprints)}


def random_llama(width: int, depth: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": depth}
    return LlamaForCausalLM(LlamaConfig(vocab_size=512, num_attention_heads=width // 64, **shape)).eval()
