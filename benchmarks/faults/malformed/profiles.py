"""Malformed profiles, at every command and function that reads one."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.faults.malformed.base import picture
from benchmarks.faults.malformed.mangling import RAW_VALUES, documents
from benchmarks.faults.watched import Work

VALID: dict[str, Any] = {
    "schema_version": "1.0",
    "name": "p",
    "verdict": "sinks",
    "reason": "for a test",
    "backbone": {
        "model_type": "llama",
        "hidden_size": 16,
        "num_layers": 4,
        "num_heads": 2,
        "num_kv_heads": None,
        "vocab_size": 32,
    },
    "models": ["someone/model"],
    "sink_dimensions": [
        {
            "dim": 3,
            "sign": -1,
            "typical_value": -40.5,
            "phi": 3.5,
            "energy_share": 0.8,
            "p_value": 0.001,
            "stability": 1.0,
            "first_layer": 1,
            "last_layer": 3,
            "triggers": ["first token"],
            "trigger_tokens": [{"text": ".", "share": 0.5}],
            "contrast": 30.0,
            "attention_drawn": 0.6,
            "fires_on_visual": False,
        }
    ],
    "companion_dimensions": [{"dim": 5, "reason": "little energy", "first_layer": 1, "last_layer": 2}],
    "all_token_outliers": [{"dim": 6, "reason": None}],
    "content_dimensions": [],
    "tau": {"phi": 2.0, "phi_interval": [1.0, 3.0], "energy_share": 0.25, "quality": "separated"},
    "bands": [
        {
            "first_layer": 1,
            "last_layer": 3,
            "dims": [3],
            "tau_phi": 2.0,
            "tau_phi_interval": [1.0, 3.0],
            "scale": 1.5,
            "tau_score": 4.0,
            "tau_score_interval": [3.0, 5.0],
            "layers": [{"layer": 1, "scale": 1.0, "tau_score": 4.0}],
        }
    ],
    "var": {"p": 0.6, "rho": 0.8, "attention_floor": 0.2, "excluded_layers": [0]},
    "evidence": {
        "attention": {"median": 0.5},
        "causal": {"lines": ["the attention falls"], "layers": [1], "fall": {"estimate": 0.5, "interval": [0.4, 0.6]}},
        "weights": {"agrees": True, "sentence": "the weights agree"},
        "notes": ["a note"],
    },
    "provenance": {"kind": "measured", "source": None, "versions": {"torch": "2"}, "date": "2026-01-01"},
}
"""Every field that a profile may have."""

CALLS: tuple[tuple[str, ...], ...] = (
    ("registry", "show", "p.json"),
    ("registry", "show", "p.json", "--json"),
    ("registry", "check", "p.json"),
    ("registry", "check", "p.json", "--json"),
    ("apply", "demo:lmm", "--image", "picture.png", "--prompt", "What?", "--profile", "p.json"),
    ("load_profile", "p.json"),
    ("parse_profile", "p.json"),
)
FOLDER_CALLS = (("registry", "list"), ("registry", "list", "--json"), ("registry", "check"), ("registry", "show", "p"))

TEXTS = st.one_of(documents(VALID), documents(VALID), documents([VALID]), st.sampled_from(RAW_VALUES).map(str.encode))


@st.composite
def works(draw: st.DrawFn) -> Work:
    """A malformed profile, given by its path or lying in the user's folder, and what reads it."""
    content = draw(TEXTS)
    if draw(st.integers(0, 7)) == 0:
        return Work(draw(st.sampled_from(FOLDER_CALLS)), {"profiles/p.json": content})
    if draw(st.integers(0, 15)) == 0:
        return Work(("registry", "check", "folder"), {"folder/p.json": content, "folder/schema.json": draw(TEXTS)})
    return Work(draw(st.sampled_from(CALLS)), {"p.json": content, "picture.png": picture()})


def load_profile(path: str) -> None:
    """As a library does it."""
    import sinkscope

    sinkscope.load_profile(Path(path))


def parse_profile(path: str) -> None:
    """As a service does it that got the profile over the network."""
    from sinkscope.profile import parse_profile

    parse_profile(Path(path).read_bytes())


FUNCTIONS = {"load_profile": load_profile, "parse_profile": parse_profile}
