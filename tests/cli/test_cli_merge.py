"""`sinkscope merge` as a user meets it: profile parts of the data one by one, merge, discover."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_outcome import Outcome
from merge_models import SINK, save_sink_llama, write_texts

from sinkscope.capture.synthetic import write_synthetic
from sinkscope.cli.main import run as call
from sinkscope.store.layout import STATISTICS_FIELDS, STATUS_RUNNING
from sinkscope.store.reader import RunReader
from sinkscope.store.writer import RunWriter

CUTS = (0, 8, 13, 22)
"""Texts of the parts. Each is cut into 3 pieces: 66 samples, of which 48 have their attention kept."""
KEPT_SAMPLES = 48

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its runs over three parts of the texts, and over all of them."""
    folder = tmp_path_factory.mktemp("runs")
    save_sink_llama(folder / "model")
    for name, (first, stop) in {"abc"[i]: cut for i, cut in enumerate(pairwise(CUTS))}.items():
        profiled(folder, name, write_texts(folder / f"{name}.txt", first, stop))
    profiled(folder, "whole", write_texts(folder / "whole.txt", CUTS[0], CUTS[-1]))
    return folder


def profiled(folder: Path, name: str, texts: Path, *options: str, model: str = "model") -> Path:
    path = folder / f"{name}.run.h5"
    places = ["--run", str(path), "-o", str(folder / f"{name}.json")]
    assert call(["profile", str(folder / model), "--texts", str(texts), *places, *options]) == 0
    return path


def found(sinkscope: Command, path: Path) -> dict[str, Any]:
    """The profile of a run file, without what names the data."""
    outcome = sinkscope("discover", path, "--json")
    assert outcome.code == 0, outcome.err
    profile: dict[str, Any] = json.loads(outcome.out)
    for name in ("calibration", "date"):
        profile["provenance"].pop(name)
    return profile


def assert_close(one: Any, other: Any, place: str = "") -> None:
    """The same to 1e-6 where numbers are not whole, and else equal."""
    if isinstance(one, float) and isinstance(other, float):
        assert other == pytest.approx(one, rel=1e-6, abs=1e-12), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for name in one:
            assert_close(one[name], other[name], f"{place}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{place}[{number}]")
    else:
        assert one == other, place


def assert_same_statistics(first: Path, second: Path, *, same_order: bool = True) -> None:
    """The accumulators agree to 1e-6; the rows of the top tokens only where samples stand in the same order."""
    with RunReader(first) as one, RunReader(second) as other:
        assert len(one.tokens) == len(other.tokens)
        for name in STATISTICS_FIELDS:
            mine, theirs = getattr(one.statistics, name), getattr(other.statistics, name)
            if name == "topk_token" and same_order:
                np.testing.assert_array_equal(theirs, mine)
            elif name != "topk_token":
                np.testing.assert_allclose(theirs, mine, rtol=1e-6, atol=1e-6 * np.abs(mine).max(), err_msg=name)


def test_a_merge_is_the_run_over_all_texts(sinkscope: Command, runs: Path, here: Path) -> None:
    outcome = sinkscope("merge", *(runs / f"{name}.run.h5" for name in "abc"), "-o", "merged.h5", "--json")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["status"] == "complete"
    assert facts["samples"] == {"done": 66, "total": 66}
    assert outcome.err.splitlines() == ["run file: merged.h5"]
    assert sorted(path.name for path in here.iterdir()) == ["merged.h5"]
    assert_same_statistics(runs / "whole.run.h5", here / "merged.h5")
    whole, merged = found(sinkscope, runs / "whole.run.h5"), found(sinkscope, here / "merged.h5")
    assert [entry["dim"] for entry in whole["sink_dimensions"]] == [SINK]
    assert_close(whole, merged)
    with RunReader(here / "merged.h5") as reader, RunReader(runs / "whole.run.h5") as expected:
        assert reader.attention is not None
        assert len(np.unique(reader.tokens.sample[reader.attention.token])) == KEPT_SAMPLES
        np.testing.assert_array_equal(reader.plan.attention_tokens, expected.plan.attention_tokens)
        np.testing.assert_array_equal(reader.plan.sampled_tokens, expected.plan.sampled_tokens)
        sources = [f"texts from {name}.txt" for name in "abc"]
        assert reader.attributes.calibration["source"] == " and ".join(sources)
    info = sinkscope("info", "merged.h5", "--json")
    assert json.loads(info.out) == facts


def test_files_merge_in_stages_and_in_any_order(sinkscope: Command, runs: Path, here: Path) -> None:
    a, b, c = (runs / f"{name}.run.h5" for name in "abc")
    for arguments in ((a, b, c, "-o", "at-once.h5"), (a, b, "-o", "ab.h5"), (here / "ab.h5", c, "-o", "staged.h5")):
        outcome = sinkscope("merge", *arguments)
        assert outcome.code == 0, outcome.err
    assert "2 files merged: 66 pieces" in outcome.out
    assert_same_statistics(here / "at-once.h5", here / "staged.h5")
    at_once = found(sinkscope, here / "at-once.h5")
    assert found(sinkscope, here / "staged.h5") == at_once
    assert sinkscope("merge", c, a, b, "-o", "turned.h5").code == 0
    assert_same_statistics(here / "at-once.h5", here / "turned.h5", same_order=False)
    turned = found(sinkscope, here / "turned.h5")
    assert turned["verdict"] == at_once["verdict"] == "sinks"
    decisions = ("dim", "sign", "first_layer", "last_layer", "p_value", "phi", "typical_value")
    for one, other in zip(at_once["sink_dimensions"], turned["sink_dimensions"], strict=True):
        assert_close({name: one[name] for name in decisions}, {name: other[name] for name in decisions})
    bands = ("first_layer", "last_layer", "dims", "quality")
    assert [[band[name] for name in bands] for band in at_once["bands"]] == [
        [band[name] for name in bands] for band in turned["bands"]
    ]


@pytest.fixture
def others(runs: Path, here: Path) -> Path:
    """Files that do not merge with a.run.h5, in the current folder, and a file that is none."""
    save_sink_llama(here / "other-model", seed=1)
    model, texts = str(runs / "model"), write_texts(here / "few.txt", CUTS[1], CUTS[1] + 1)
    profiled(here, "other-model", texts, model="other-model")
    profiled(here, "bfloat16", texts, "--dtype", "bfloat16", model=model)
    profiled(here, "seed", texts, "--seed", "1", model=model)
    profiled(here, "keep", texts, "--keep", "topk", model=model)
    profiled(here, "no-attention", texts, "--no-attention", model=model)
    profiled(here, "overlap", write_texts(here / "overlap.txt", CUTS[1] - 1, CUTS[1]), model=model)
    (here / "unfinished.run.h5").write_bytes((runs / "b.run.h5").read_bytes()[:-100])
    (here / "text.run.h5").write_text("no run file")
    states = np.random.default_rng(0).normal(size=(3, 20, 8)).astype(np.float32)
    write_synthetic(here / "synthetic.run.h5", states, np.repeat([0, 1], 10), revision="v1")
    return here


def test_what_does_not_belong_together_is_refused_by_name(sinkscope: Command, runs: Path, others: Path) -> None:
    reasons = {
        "other-model": ("model_id", "only runs of the same model and settings merge"),
        "bfloat16": ("dtype 'bfloat16'", "'float32'"),
        "seed": ("seed 1", "with 0"),
        "keep": ("settings.keep 'topk'", "'sample'"),
        "no-attention": ("attention",),
        "overlap": ("hold the same data (3 equal samples)",),
        "unfinished": ("no readable run file", "truncated"),
        "text": ("is no run file",),
        "synthetic": ("model_id 'synthetic'",),
        "absent": ("there is no run file at",),
    }
    before = sorted(path.name for path in others.iterdir())
    for name, fragments in reasons.items():
        outcome = sinkscope("merge", runs / "a.run.h5", f"{name}.run.h5", "-o", "merged.h5", "--json")
        outcome.refused(f"{name}.run.h5", *fragments)
        assert sorted(path.name for path in others.iterdir()) == before, name


@pytest.mark.parametrize(
    ("files", "output", "fragments"),
    [
        (("a",), "merged.h5", ("one run file alone cannot be merged; give two or more",)),
        (("a", "a"), "merged.h5", ("hold the same data",)),
        (("a", "b"), "there.h5", ("there.h5 exists already",)),
        (("a", "b"), "nowhere/merged.h5", ("nowhere",)),
        (("a", "b"), "folder", ("folder",)),
        ((), "merged.h5", ("RUN.h5",)),
    ],
)
def test_wrong_use_changes_nothing(
    sinkscope: Command, runs: Path, here: Path, files: tuple[str, ...], output: str, fragments: tuple[str, ...]
) -> None:
    (here / "there.h5").write_bytes(b"precious")
    (here / "folder").mkdir()
    inputs = [runs / f"{name}.run.h5" for name in files]
    contents = [path.read_bytes() for path in inputs]
    sinkscope("merge", *inputs, "-o", output).refused(*fragments)
    assert sorted(path.name for path in here.iterdir()) == ["folder", "there.h5"]
    assert (here / "there.h5").read_bytes() == b"precious"
    if len(inputs) > 1:
        sinkscope("merge", *inputs, "-o", inputs[1]).refused("-o and RUN.h5 are one file")
    assert [path.read_bytes() for path in inputs] == contents
    assert not list(runs.glob("*.lock"))


def test_an_unfinished_run_is_refused_with_the_way_on(sinkscope: Command, runs: Path, here: Path) -> None:
    """A run that was stopped after its first batches."""
    with RunReader(runs / "b.run.h5") as reader:
        plan = replace(reader.plan, attributes=replace(reader.attributes, status=STATUS_RUNNING))
        with RunWriter.create(here / "stopped.h5", plan) as writer:
            writer.write_sample(reader.rows(int(reader.plan.order[0])))
            writer.commit(reader.statistics)
        total = reader.plan.num_samples
    outcome = sinkscope("merge", runs / "a.run.h5", here / "stopped.h5", "-o", "merged.h5")
    outcome.refused(f"stopped.h5 is unfinished (1 of {total} samples); finish it with --resume first")
    assert sorted(path.name for path in here.iterdir()) == ["stopped.h5"]
