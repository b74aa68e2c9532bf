"""The list of cases: strata, each with its own ranges of factors, drawn with a seed of its own."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.known_truth.case import Case

Draw = Callable[[np.random.Generator], dict[str, Any]]

WIDTHS = (64, 128, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
CHANCES = (0.15, 0.17, 0.2, 0.12, 0.14, 0.08, 0.06, 0.03, 0.03, 0.02)
ELEMENTS = 7_000_000
"""About how many numbers the hidden states of a case hold at most."""


def shape(generator: np.random.Generator, layers: tuple[int, int] = (6, 13)) -> dict[str, Any]:
    """Width, layers, samples and length, so that the hidden states stay small."""
    width = int(generator.choice(WIDTHS, p=CHANCES))
    depth = int(generator.integers(*layers)) if width < 2048 else max(4, min(layers[0], 6))
    most = ELEMENTS // (width * (depth + 1))
    length = int(generator.choice([72, 96, 128, 192]))
    tokens = int(np.clip(np.exp(generator.uniform(np.log(900), np.log(5000))), 500, most))
    if tokens < 14 * length:
        length = 72
    samples = max(8, min(14, most // length), tokens // length)
    return {"width": width, "layers": depth, "samples": samples, "length": length}


def common(generator: np.random.Generator) -> dict[str, Any]:
    """Factors of the ordinary activations."""
    return {
        "tail": int(generator.choice([0, 3, 4, 5])),
        "spread": round(float(generator.uniform(0.3, 0.8)), 3),
        "growth": round(float(np.exp(generator.uniform(np.log(1.5), np.log(40)))), 2),
        "scale": round(float(10 ** generator.uniform(-1.5, 0.7)), 4),
        "bos": bool(generator.random() < 0.6),
        "bfloat16": bool(generator.random() < 0.35),
        "level": round(float(generator.uniform(0.22, 0.6)), 3),
        "attended": round(float(generator.choice([0.0, 0.02, 0.05])), 3),
    }


def magnitude(generator: np.random.Generator, width: int, highest: float = 10_000.0) -> float:
    """Times the median, from an energy share of about a half up to `highest`."""
    lowest = 2.5 * np.sqrt(width)
    return round(float(np.exp(generator.uniform(np.log(lowest), np.log(max(highest, 2 * lowest))))), 1)


def triggers(generator: np.random.Generator) -> tuple[str, ...]:
    """The first token alone, or a mixture."""
    options = [("first",), ("first", "delimiter"), ("first", "word"), ("delimiter",), ("delimiter", "word"), ("word",)]
    return options[int(generator.choice(len(options), p=[0.45, 0.2, 0.1, 0.1, 0.1, 0.05]))]


def sinks(generator: np.random.Generator, layers: tuple[int, int] = (6, 13)) -> dict[str, Any]:
    """A store with one to five sink dimensions and attention."""
    factors = common(generator) | shape(generator, layers)
    return factors | {
        "dims": int(generator.choice([1, 2, 3, 4, 5], p=[0.35, 0.3, 0.12, 0.13, 0.1])),
        "sizes": str(generator.choice(["equal", "falling"])),
        "onset": str(generator.choice(["early", "middle", "late"], p=[0.5, 0.3, 0.2])),
        "magnitude": magnitude(generator, factors["width"]),
        "triggers": triggers(generator),
        "rare": float(generator.choice([0.0, 0.0, 0.4])) if factors["samples"] >= 20 else 0.0,
        "dips": int(generator.choice([0, 0, 1, 2])),
    }


def plain(generator: np.random.Generator) -> dict[str, Any]:
    return sinks(generator)


def unlinked(generator: np.random.Generator) -> dict[str, Any]:
    kinds = [("first",), ("first", "delimiter"), ("delimiters",), ("words",), ("first", "word"), ("first", "content")]
    chosen = kinds[int(generator.integers(len(kinds)))]
    factors = sinks(generator) | {"attention": False, "triggers": chosen, "split": "content" in chosen}
    return factors | {"magnitude": 1.6 * factors["magnitude"]}


def split_triggers(generator: np.random.Generator) -> dict[str, Any]:
    """BOS, delimiters or image tokens with dimensions of their own, as in LLaVA 1.5 and Mistral."""
    kinds = [("first", "delimiter"), ("first", "visual"), ("first", "delimiter", "visual")]
    factors = sinks(generator) | {"triggers": kinds[int(generator.choice(3, p=[0.45, 0.4, 0.15]))]}
    factors["length"] = max(factors["length"], 96)
    return factors | {"split": True, "dims": int(generator.choice([1, 2], p=[0.7, 0.3]))}


def attention_beyond(generator: np.random.Generator) -> dict[str, Any]:
    """Beside the sinks an ordinary token of every sample draws as much attention."""
    return sinks(generator) | {"decoys": ("attended",), "triggers": ("first",)}


def deep(generator: np.random.Generator) -> dict[str, Any]:
    """24 to 40 layers."""
    factors = sinks(generator)
    return factors | {
        "width": int(generator.choice([64, 128, 192])),
        "layers": int(generator.integers(24, 41)),
        "samples": int(generator.integers(10, 18)),
        "length": 80,
        "regimes": int(generator.choice([1, 2])),
        "moving": bool(generator.random() < 0.4),
        "dims": int(generator.choice([1, 2])),
        "decoys": ("content",) if generator.random() < 0.5 else (),
    }


def two_regimes(generator: np.random.Generator) -> dict[str, Any]:
    factors = sinks(generator, (11, 17))
    if factors["layers"] < 11:
        factors |= {"layers": 11}
    kinds = [("first", "word"), ("first", "delimiter"), ("first",)]
    return factors | {
        "regimes": 2,
        "moving": bool(generator.random() < 0.4),
        "dims": int(generator.choice([1, 2, 3], p=[0.5, 0.25, 0.25])),
        "magnitude": magnitude(generator, factors["width"], 3000.0),
        "triggers": kinds[int(generator.integers(len(kinds)))],
    }


def everywhere(generator: np.random.Generator) -> dict[str, Any]:
    factors = sinks(generator)
    kind = str(generator.choice(["large", "saturated"]))
    lowest = 12 if kind == "large" else 60
    return factors | {
        "everywhere": kind,
        "dims": int(generator.choice([1, 2], p=[0.75, 0.25])),
        "magnitude": round(float(lowest * np.sqrt(factors["width"]) * np.exp(generator.uniform(0, 2.5))), 1),
        "attention": kind == "saturated" or bool(generator.random() < 0.7),
    }


def hybrids(generator: np.random.Generator) -> dict[str, Any]:
    factors = sinks(generator, (12, 17))
    if factors["layers"] < 12:
        factors |= {"layers": 12}
    return factors | {
        "hybrid": str(generator.choice(["single", "pair", "throughout"], p=[0.5, 0.25, 0.25])),
        "onset": "early" if generator.random() < 0.7 else "middle",
    }


def companions(generator: np.random.Generator) -> dict[str, Any]:
    factors = sinks(generator)
    return factors | {
        "companions": int(generator.integers(1, 5)),
        "dims": int(generator.choice([1, 2, 3])),
        "magnitude": round(magnitude(generator, factors["width"]) * 2, 1),
    }


def with_decoys(generator: np.random.Generator) -> dict[str, Any]:
    factors = sinks(generator)
    known = ["all-token", "content", "heavy", "single", "last", "rotating", "embedding", "dead", "attended"]
    number = int(generator.integers(1, 5))
    return factors | {
        "decoys": tuple(str(name) for name in generator.choice(known, number, replace=False)),
        "companions": int(generator.choice([0, 0, 1, 2])),
    }


def barely(generator: np.random.Generator) -> dict[str, Any]:
    """Energy shares around what separability asks for; about half of the cases are separable."""
    return sinks(generator) | {
        "dims": int(generator.choice([1, 2, 3])),
        "sizes": "equal",
        "magnitude": -round(float(generator.uniform(0.15, 0.6)), 3),
        "tail": 0,
        "width": int(generator.choice([256, 384, 512, 768])),
        "spread": round(float(generator.uniform(0.3, 0.4)), 3),
    }


def visual(generator: np.random.Generator) -> dict[str, Any]:
    kinds = [("visual",), ("first", "visual"), ("first", "visual", "delimiter"), ("visual", "word")]
    factors = sinks(generator) | {"triggers": kinds[int(generator.integers(len(kinds)))]}
    factors["length"] = max(factors["length"], 96)
    return factors


def small_budget(generator: np.random.Generator) -> dict[str, Any]:
    """200 to 900 tokens, or a few long samples; below 500, or with fewer than 8 samples, a store is not separable."""
    factors = sinks(generator)
    long = bool(generator.random() < 0.3)
    return factors | {
        "samples": int(generator.integers(2, 7)) if long else int(generator.integers(3, 13)),
        "length": int(generator.choice([256, 512])) if long and factors["width"] <= 1024 else 72,
        "layers": min(factors["layers"], 8),
        "triggers": ("first",),
        "attention": bool(generator.random() < 0.7),
        "magnitude": 1.6 * factors["magnitude"],
    }


def short_samples(generator: np.random.Generator) -> dict[str, Any]:
    """Samples of 24 to 48 tokens: attention rests on few queries."""
    factors = sinks(generator)
    return factors | {
        "length": int(generator.choice([24, 32, 48])),
        "samples": int(generator.integers(24, 49)),
        "layers": min(factors["layers"], 8),
        "triggers": ("first",) if generator.random() < 0.5 else ("first", "delimiter"),
        "decoys": ("content",) if generator.random() < 0.6 else (),
        "rare": 0.0,
    }


def large_budget(generator: np.random.Generator) -> dict[str, Any]:
    width = int(generator.choice([64, 96, 128]))
    tokens = int(generator.choice([20_000, 30_000, 50_000, 100_000], p=[0.3, 0.3, 0.2, 0.2]))
    return sinks(generator) | {
        "width": width if tokens < 50_000 else 64,
        "layers": 4 + 2 * (tokens < 50_000),
        "samples": tokens // 256,
        "length": 256,
        "magnitude": magnitude(generator, width),
        "decoys": ("content",) if generator.random() < 0.5 else (),
    }


def noisy_attention(generator: np.random.Generator) -> dict[str, Any]:
    return sinks(generator) | {
        "level": round(float(generator.uniform(0.14, 0.26)), 3),
        "attended": round(float(generator.uniform(0.03, 0.3)), 3),
    }


# Sink-free strata.


def free(generator: np.random.Generator) -> dict[str, Any]:
    return common(generator) | shape(generator, (5, 13)) | {"attention": bool(generator.random() < 0.5)}


def free_clean(generator: np.random.Generator) -> dict[str, Any]:
    return free(generator)


def free_small(generator: np.random.Generator) -> dict[str, Any]:
    decoys = [(), ("attended",), ("all-token",), ("content", "attended")]
    chosen = decoys[int(generator.integers(len(decoys)))]
    return free(generator) | {
        "samples": int(generator.integers(3, 13)),
        "length": 72,
        "layers": 6,
        "decoys": chosen,
        "attention": bool(chosen) and chosen != ("all-token",),
    }


def free_short(generator: np.random.Generator) -> dict[str, Any]:
    return free(generator) | {
        "length": int(generator.choice([24, 32, 48])),
        "samples": int(generator.integers(24, 49)),
        "layers": 6,
        "attention": True,
        "decoys": ("content", "attended") if generator.random() < 0.5 else ("content",),
    }


def free_large(generator: np.random.Generator) -> dict[str, Any]:
    tokens = int(generator.choice([20_000, 50_000, 100_000], p=[0.5, 0.25, 0.25]))
    return free(generator) | {
        "width": 64 if tokens > 20_000 else 128,
        "layers": 4,
        "samples": tokens // 256,
        "length": 256,
        "decoys": ("attended",) if generator.random() < 0.5 else (),
        "attention": True,
    }


def decoy(name: str, attention: float = 0.6, attended: float = 0.4) -> Draw:
    """A sink-free stratum with one decoy; with attention, some first tokens may draw it without any dimension."""

    def draw(generator: np.random.Generator) -> dict[str, Any]:
        measured = bool(generator.random() < attention)
        names = (name, "attended") if measured and name != "attended" and generator.random() < attended else (name,)
        return free(generator) | {"attention": measured, "decoys": names}

    return draw


def free_hybrid(generator: np.random.Generator) -> dict[str, Any]:
    factors = free(generator) | shape(generator, (12, 17))
    return factors | {
        "layers": max(12, factors["layers"]),
        "attention": True,
        "hybrid": "single",
        "decoys": ("linear", "attended") if generator.random() < 0.5 else ("linear",),
    }


def free_rogues(generator: np.random.Generator) -> dict[str, Any]:
    measured = bool(generator.random() < 0.7)
    known = ["all-token", "heavy", "single", "last", "rotating", "embedding", "dead", "distinct"]
    known += ["content", "attended"] if measured else []
    number = int(generator.integers(3, 7))
    chosen = {str(name) for name in generator.permutation(known)[:number]}
    return free(generator) | {"attention": measured, "decoys": tuple(sorted(chosen))}


STRATA: tuple[tuple[str, int, Draw], ...] = (
    ("plain", 56, plain),
    ("without attention", 45, unlinked),
    ("two regimes", 35, two_regimes),
    ("large everywhere", 36, everywhere),
    ("hybrid", 28, hybrids),
    ("companions", 24, companions),
    ("with decoys", 56, with_decoys),
    ("barely", 30, barely),
    ("visual", 24, visual),
    ("small budget", 16, small_budget),
    ("large budget", 10, large_budget),
    ("split triggers", 28, split_triggers),
    ("attention beyond", 22, attention_beyond),
    ("deep", 20, deep),
    ("noisy attention", 20, noisy_attention),
    ("free: clean", 60, free_clean),
    ("free: small budget", 16, free_small),
    ("free: large budget", 6, free_large),
    ("free: all-token outliers", 34, decoy("all-token")),
    ("free: content", 42, decoy("content", attention=1.0, attended=0.5)),
    ("free: heavy tails", 28, decoy("heavy")),
    ("free: single-layer spikes", 26, decoy("single")),
    ("free: last-layer blow-up", 22, decoy("last")),
    ("free: rotating", 24, decoy("rotating")),
    ("free: embedding scale", 18, decoy("embedding")),
    ("free: dead dimensions", 22, decoy("dead", attended=0.7)),
    ("free: distinct first token", 24, decoy("distinct", attention=0.8, attended=0.8)),
    ("free: attention alone", 28, decoy("attended", attention=1.0)),
    ("free: hybrid spikes", 16, free_hybrid),
    ("free: several rogues", 42, free_rogues),
    ("short samples", 20, short_samples),
    ("free: short samples", 16, free_short),
)
"""Name, number of cases and how a case is drawn. New ones go to the end, so that the seeds of the others stay."""


SEED = 2026


def cases() -> list[Case]:
    """All cases, always the same, stratum by stratum."""
    listed = []
    for index, (stratum, number, draw) in enumerate(STRATA):
        generator = np.random.default_rng([SEED, index])
        for place in range(number):
            listed.append(Case(seed=10_000 * (index + 1) + place, stratum=stratum, **draw(generator)))
    return listed
