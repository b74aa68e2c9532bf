"""Sink dimensions from the weights alone: real models, random initialisations, planted spikes, and the read rate.

    python -m benchmarks.weights [MODEL ...] [--no-speed]

Writes `results/weights.json`: `models` (what the weights of each say), `random` (how often a random initialisation of
20 architectures has a sink dimension), `planted` (share of planted spikes found exactly, by factor, dimensions, layers,
layout and rounding) and `speed` (a 7B-shaped bfloat16 checkpoint: megabytes a second of `predict` and of a plain
sequential read of the same files in the same run, and peak memory).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging as transformers_logging

from sinkscope.pipeline import resolve
from sinkscope.weights import predict, predict_loaded

RESULTS = Path(__file__).parent / "results" / "weights.json"
ARCHITECTURES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox", "opt"),
    *("bloom", "falcon", "olmo2", "granite", "stablelm", "starcoder2", "cohere", "mixtral"),
)
SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "vocab_size": 64,
    "head_dim": 32,
    "n_embd": 128,
    "n_layer": 8,
    "n_head": 4,
    "ffn_dim": 256,
    "word_embed_proj_dim": 128,
    "num_local_experts": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FACTORS = (3.0, 5.0, 8.0, 30.0)


def random_model(model_type: str, seed: int) -> nn.Module:
    """A small model of an architecture with its own random initialisation."""
    torch.manual_seed(seed)
    known = AutoConfig.for_model(model_type)
    options = {key: value for key, value in SMALL.items() if hasattr(known, key) or key in known.attribute_map}
    if isinstance(getattr(type(known), "head_dim", None), property):
        options.pop("head_dim", None)
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))
    return model


def random_initialisations(seeds: int) -> dict[str, Any]:
    """How many random models have a sink dimension."""
    found: dict[str, int] = {}
    for model_type in ARCHITECTURES:
        found[model_type] = sum(bool(predict_loaded(random_model(model_type, seed)).dims) for seed in range(seeds))
    return {"seeds": seeds, "models": seeds * len(ARCHITECTURES), "with_sinks": sum(found.values()), "by_type": found}


def rounded(weight: Tensor, how: str) -> Tensor:
    """A matrix as bfloat16, or as 4-bit integers with a scale for every 32 entries, would keep it."""
    if how == "bfloat16":
        return weight.bfloat16().float()
    if how == "4 bit":
        blocks = weight.reshape(-1, 32)
        scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-12) / 7
        return ((blocks / scale).round() * scale).reshape(weight.shape)
    return weight


def planted(repeats: int) -> list[dict[str, Any]]:
    """Spikes of graded size: is exactly the planted set named?"""
    outcomes: dict[tuple[Any, ...], list[bool]] = defaultdict(list)
    for layout in ("llama", "mixtral"):
        for number in (1, 2, 3, 5):
            for layers in (1, 2, 3):
                for factor in FACTORS:
                    for rounding in ("float32", "bfloat16", "4 bit"):
                        for repeat in range(repeats):
                            seed = zlib.crc32(repr((layout, number, layers, factor, rounding, repeat)).encode())
                            done = _planted_once(layout, number, layers, factor, rounding, seed)
                            outcomes[layout, number, layers, factor, rounding].append(done)
    names = ("layout", "dims", "layers", "factor", "rounding")
    return [
        dict(zip(names, key, strict=True)) | {"stores": len(hit), "exact": sum(hit)} for key, hit in outcomes.items()
    ]


def _planted_once(layout: str, number: int, layers: int, factor: float, rounding: str, seed: int) -> bool:
    generator = np.random.default_rng(seed)
    model = random_model(layout, seed)
    parameters = dict(model.named_parameters())
    dims = generator.choice(SMALL["hidden_size"], number, replace=False)
    name = "mlp.down_proj.weight" if layout == "llama" else "mlp.experts.down_proj"
    first = int(generator.integers(0, 3))
    with torch.no_grad():
        for layer in range(SMALL["num_hidden_layers"]):
            weight = parameters[f"model.layers.{layer}.{name}"]
            matrix = weight if weight.dim() == 2 else weight[int(generator.integers(len(weight)))]
            if first <= layer < first + layers:
                neuron = int(generator.integers(matrix.shape[1]))
                sign = torch.from_numpy(generator.choice([-1.0, 1.0], number)).float()
                matrix[torch.from_numpy(dims), neuron] = sign * factor * matrix.abs().amax(1).median()
            weight.copy_(rounded(weight, rounding))
    return sorted(predict_loaded(model).dims) == sorted(dims.tolist())


def speed(layers: int, repeats: int = 5) -> dict[str, Any]:
    """`predict` on a 7B-shaped bfloat16 checkpoint of so many layers, against reading its files from end to end.

    In a process of its own, so that the peak memory is that of the prediction; both by turns, each on files that were
    dropped from the page cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write_large(Path(folder), layers)
        code = f"from benchmarks.weights import rates; rates({folder!r}, {repeats})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return {"layers": layers} | found


def rates(folder: str, repeats: int) -> None:
    """Print what `speed` gives, for the checkpoint in `folder`."""
    files = sorted(Path(folder).glob("*.safetensors"))
    rows = []
    for _ in range(repeats):
        for file in files:
            _forget(file)
        began = time.perf_counter()
        size = sum(_read_through(file) for file in files)
        sequential = size / (time.perf_counter() - began)
        for file in files:
            _forget(file)
        found = predict(folder)
        rows.append((found.bytes_read / found.seconds, sequential, found.bytes_read / found.seconds / sequential))
    rate, plain, ratio = (statistics.median(column) for column in zip(*rows, strict=True))
    document = {
        "megabytes": found.bytes_read / 1e6,
        "predict_mb_per_s": rate / 1e6,
        "sequential_mb_per_s": plain / 1e6,
        "ratio": ratio,
        "ratios": [row[2] for row in rows],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30,
        "dims": list(found.dims),
    }
    print(json.dumps(document))


def _write_large(folder: Path, layers: int) -> None:
    width, inner = 4096, 11008
    LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=32, vocab_size=512
    ).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    index: dict[str, str] = {}
    base = (torch.randn(width, inner) * 0.02).bfloat16()
    for layer in range(layers):
        down, output = base.roll(layer, 0).contiguous(), base[:, :width].roll(layer, 1).contiguous()
        if layer == 1:
            down[[1415, 2533], 77] = 3.0
        names = {
            f"model.layers.{layer}.mlp.down_proj.weight": down,
            f"model.layers.{layer}.self_attn.o_proj.weight": output,
        }
        file = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        save_file(names, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _read_through(file: Path) -> int:
    buffer, size = bytearray(2**24), 0
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            size += count
    return size


def _forget(file: Path) -> None:
    """Drop a file from the page cache, so that the next read comes from the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["demo:llm", "demo:lmm"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=32, help="of the large checkpoint")
    parser.add_argument("--no-speed", action="store_true")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    results: dict[str, Any] = {"models": {}}
    for model in options.models:
        began = time.perf_counter()
        document = predict(resolve(model)).to_dict()
        name = Path(model).stem if "/" in model else model
        results["models"][name] = document | {"seconds": round(time.perf_counter() - began, 2)}
        print(name, document["verdict"], [entry["dim"] for entry in document["sink_dimensions"]], flush=True)
    results["random"] = random_initialisations(options.repeats)
    print("random initialisations with sinks:", results["random"]["with_sinks"], "of", results["random"]["models"])
    results["planted"] = planted(options.repeats)
    strong = [row for row in results["planted"] if row["factor"] >= 5]
    exact = sum(row["exact"] for row in strong) / sum(row["stores"] for row in strong)
    print(f"planted spikes of at least 5x, exact set: {exact:.4f}", flush=True)
    if not options.no_speed:
        results["speed"] = speed(options.layers)
        print(json.dumps(results["speed"], indent=2))
    results["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
