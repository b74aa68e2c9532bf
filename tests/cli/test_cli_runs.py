"""Commands that read a run file, on one that was written without a model."""

import json
from pathlib import Path

import numpy as np
import pytest

from sinkscope.capture.synthetic import write_synthetic
from sinkscope.profile import parse_profile, read_profile

DEPTH, WIDTH, SAMPLES, LENGTH, SINK = 6, 64, 8, 40, 17


@pytest.fixture
def run(here: Path) -> Path:
    generator = np.random.default_rng(0)
    states = generator.normal(size=(DEPTH + 1, SAMPLES * LENGTH, WIDTH)).astype(np.float32)
    position = np.tile(np.arange(LENGTH), SAMPLES)
    states[1:, position == 0, SINK] = 300.0
    drawn = np.full((SAMPLES * LENGTH, DEPTH), 0.01)
    drawn[position == 0] = 0.6
    return write_synthetic(here / "toy.h5", states, np.repeat(np.arange(SAMPLES), LENGTH), drawn=drawn, sampled=64)


def test_info_tells_what_the_file_holds(sinkscope, run):
    facts = json.loads(sinkscope("info", run, "--json").out)
    assert facts["status"] == "complete"
    assert facts["samples"] == {"done": SAMPLES, "total": SAMPLES}
    assert (
        facts["tokens"]["total"]
        == SAMPLES * LENGTH
        == sum(facts["tokens"][kind] for kind in ("text", "special", "visual"))
    )
    assert (facts["num_layers"], facts["hidden_size"]) == (DEPTH, WIDTH)
    assert facts["attention"]["status"] == "measured"
    assert facts["bytes"] == run.stat().st_size
    shown = sinkscope("info", run)
    assert shown.code == 0
    for part in ("complete", f"{SAMPLES} of {SAMPLES}", f"{SAMPLES * LENGTH}:", f"{DEPTH} layers"):
        assert part in shown.out


def test_discover_prints_the_profile_and_saves_the_same(sinkscope, run, here):
    printed = sinkscope("discover", run, "--json")
    assert printed.code == 0, printed.err
    profile = parse_profile(printed.out)
    assert profile.dims == (SINK,)
    assert not (here / "p.json").exists()
    saved = sinkscope("discover", run, "-o", "p.json", "--json")
    assert read_profile(here / "p.json") == parse_profile(saved.out)
    summary = sinkscope("discover", run)
    assert summary.code == 0
    assert str(SINK) in summary.out


def test_a_truncated_run_is_named(sinkscope, run, here):
    whole = run.read_bytes()
    run.write_bytes(whole[: len(whole) // 2])
    for command in ("info", "discover"):
        sinkscope(command, run).refused("toy.h5")
        sinkscope(command, run, "--json").refused("toy.h5")


def test_every_threshold_of_the_method_is_an_option(sinkscope, run):
    from sinkscope.discovery import DiscoverySettings

    shown = sinkscope("discover", "--help").out
    assert all(f"--{name.replace('_', '-')} " in shown for name in DiscoverySettings.described())
    strict = json.loads(sinkscope("discover", run, "--effect-share", "0.99999", "--bootstraps", "3", "--json").out)
    assert strict["verdict"] == "none"
    assert strict["evidence"]["settings"]["bootstraps"] == 3
    sinkscope("discover", run, "--false-discovery-rate", "7").refused("false_discovery_rate", "between")
