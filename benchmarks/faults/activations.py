"""NaN and infinity in the hidden states, from a chosen layer on, of all tokens or of a single one."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.faults.children import command, warm
from benchmarks.faults.comparing import leftovers
from benchmarks.faults.kills import unbroken
from benchmarks.faults.moments import in_small_steps
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.subject import DEPTH, RUN, Subject, planted_model
from sinkscope.store.reader import RunReader

VALUES = {"NaN": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def check(folder: Path, count: int, seed: int) -> Outcome:
    """Every value in the output of `count` layers, and in the embedding of one token of one sample."""
    warm()
    problems: list[str] = []
    random_numbers = random.Random(f"{seed} activations")
    layers = random_numbers.sample(range(1, DEPTH + 1), min(count, DEPTH))
    cases = [(name, layer, dtype) for name in VALUES for layer in layers for dtype in ("float32", "bfloat16")]
    for number, (name, layer, dtype) in enumerate(cases):
        problems += _tried(folder / str(number), name, layer, dtype, _in_layer(layer, VALUES[name]), ["in sample "])
    whole = unbroken(Subject.make(folder / "subject"), folder / "whole")
    rare, sample = _rare_token(whole.folder / RUN, random_numbers)
    for name, value in VALUES.items():
        told = [f"in sample {sample} at position "]
        problems += _tried(folder / f"token{name}", name, 0, "float32", _of_token(rare, value), told)
    return Outcome(len(cases) + len(VALUES), problems, {"layers": sorted(layers), "dtypes": ["float32", "bfloat16"]})


Spoil = Callable[[torch.nn.Module], None]


def _tried(folder: Path, name: str, layer: int, dtype: str, spoil: Spoil, told: list[str]) -> list[str]:
    """Profile a model that is spoiled; what was wrong with how that ended."""
    model = planted_model()
    with torch.no_grad():
        spoil(model)
    subject = Subject.make(folder / "subject", model)
    here = folder / "here"
    here.mkdir()
    ending = command(subject.profiling("--dtype", dtype), here, in_small_steps)
    wrong = ending.unclear(1, f"entering layer {layer} ", f"dtype {dtype}", *told) + leftovers(here)
    return [f"{name} entering layer {layer} in {dtype}: {problem}" for problem in wrong]


def _in_layer(layer: int, value: float) -> Spoil:
    """Spoil what enters `layer`: one weight of the layer before it."""

    def spoil(model: torch.nn.Module) -> None:
        model.get_submodule(f"model.layers.{layer - 1}.mlp.down_proj").weight[3, 5] = value

    return spoil


def _of_token(token: int, value: float) -> Spoil:
    def spoil(model: torch.nn.Module) -> None:
        model.get_submodule("model.embed_tokens").weight[token, 9] = value

    return spoil


def _rare_token(run: Path, random_numbers: random.Random) -> tuple[int, int]:
    """A token that a run has in one sample only, and the number of that."""
    with RunReader(run) as reader:
        tokens = reader.tokens
    pairs = np.unique(np.stack([tokens.id, tokens.sample]), axis=1)
    ids, samples = np.unique(pairs[0], return_counts=True)
    token = random_numbers.choice(ids[samples == 1].tolist())
    return token, int(pairs[1][pairs[0] == token][0])
