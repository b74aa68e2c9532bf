"""The generator keeps its promises: what is planted is where the truth says, and a seed is a store."""

import numpy as np
import pytest

from benchmarks.known_truth import Case, build, cases
from benchmarks.known_truth.tokens import MOST_SINKS

SMALL = {"width": 64, "layers": 8, "samples": 12, "length": 72, "tail": 0, "spread": 0.4}


def small(seed=1, **factors):
    return Case(seed=seed, stratum="test", **{**SMALL, **factors})


def test_the_list_covers_every_factor():
    listed = cases()
    assert len(listed) >= 660
    assert sum(case.free for case in listed) >= 330
    assert len({case.seed for case in listed}) == len(listed)
    assert listed == cases()
    values = {
        name: {getattr(case, name) for case in listed}
        for name in (
            "width",
            "dims",
            "regimes",
            "onset",
            "sizes",
            "attention",
            "bfloat16",
            "tail",
            "everywhere",
            "hybrid",
        )
    }
    assert values["width"] >= {64, 128, 256, 512, 1024, 2048, 4096, 8192}
    assert values["dims"] == {0, 1, 2, 3, 4, 5}
    assert values["regimes"] == {1, 2}
    assert values["onset"] == {"early", "middle", "late"}
    assert values["sizes"] == {"equal", "falling"}
    assert values["attention"] == values["bfloat16"] == {True, False}
    assert values["tail"] == {0, 3, 4, 5}
    assert values["everywhere"] == {"no", "large", "saturated"}
    assert values["hybrid"] == {"no", "single", "pair", "throughout"}
    assert {trigger for case in listed for trigger in case.triggers} >= {"first", "delimiter", "word", "visual"}
    known = {"all-token", "content", "heavy", "single", "last", "rotating", "embedding", "linear", "attended"}
    assert {decoy for case in listed for decoy in case.decoys} >= known | {"dead", "distinct"}
    budgets = [case.samples * case.length for case in listed]
    assert min(budgets) < 300
    assert max(budgets) > 90_000
    assert max(case.magnitude for case in listed) > 8000
    # By contract a content dimension is listed where attention was not measured, so it is no decoy there.
    assert all(case.attention for case in listed if "content" in case.decoys)


@pytest.mark.parametrize("factors", [{"dims": 2}, {"decoys": ("heavy", "rotating", "last")}])
def test_a_seed_is_a_store(factors):
    first, again, other = build(small(**factors)), build(small(**factors)), build(small(seed=2, **factors))
    assert (first.states == again.states).all()
    assert (first.drawn == again.drawn).all()
    assert first.dims == again.dims
    assert first.decoys == again.decoys
    assert first.states.shape != other.states.shape or (first.states != other.states).any()


@pytest.mark.parametrize(
    "factors",
    [
        {"dims": 1},
        {"dims": 5, "sizes": "falling", "magnitude": 10_000.0},
        {"dims": 2, "triggers": ("first", "delimiter", "word"), "companions": 2},
        {"dims": 1, "triggers": ("visual",), "length": 96},
        {"dims": 2, "regimes": 2, "layers": 14, "triggers": ("first", "word"), "moving": True},
        {"dims": 1, "split": True, "triggers": ("first", "delimiter")},
        {"dims": 1, "everywhere": "saturated", "magnitude": 3000.0},
        {"dims": 2, "hybrid": "single", "layers": 12},
        {"dims": 3, "attention": False, "triggers": ("delimiters",), "bfloat16": True},
    ],
)
def test_sinks_are_where_the_truth_says(factors):
    case = small(seed=5, **factors)
    truth = build(case)
    separate = case.split or case.moving
    assert len(truth.dims) == case.dims * (len(case.triggers) if case.split else 1 + case.moving)
    for dim in truth.dims:
        acting = truth.acting[dim]
        assert acting[:-1].sum() >= 2
        peak = np.abs(truth.states[acting][:, truth.sinks[acting].any(axis=0), dim]).max()
        for layer in range(case.layers + 1):
            value = np.abs(truth.states[layer][:, dim])
            sinks = truth.sinks[layer]
            if not acting[layer]:
                assert truth.unsure[layer] or value.max() < 0.6 * peak
            elif not separate:
                assert value[sinks].min() > value[~sinks].max()
    assert (truth.sinks.any(axis=1) == np.any(list(truth.acting.values()), axis=0)).all()
    if case.companions:
        layer = int(np.flatnonzero(truth.sinks.any(axis=1))[0])
        squares = np.square(truth.states[layer][truth.sinks[layer]].astype(np.float64))
        leading = squares[:, list(truth.dims)].max(axis=1)
        assert (squares[:, list(truth.companions)].max(axis=1) <= 0.0121 * leading).all()


def test_attention_follows_the_sinks():
    truth = build(small(dims=1, triggers=("first", "delimiter", "word"), level=0.4, attended=0.0))
    judged = truth.tokens.judged
    for layer in range(8):
        drawn, sinks = truth.drawn[:, layer], truth.sinks[layer]
        if sinks.any() and not truth.unsure[layer]:
            assert drawn[sinks & judged].mean() > 0.12
            assert drawn[~sinks & judged].max() < 0.10
            total = np.bincount(truth.tokens.sample, weights=np.where(sinks, drawn, 0.0))
            assert total.max() <= 1.0
            assert np.bincount(truth.tokens.sample, weights=sinks).max() <= MOST_SINKS


def test_hybrids_have_attention_right_after_the_spike():
    truth = build(small(dims=1, hybrid="single", layers=12))
    attended = ~np.isnan(truth.drawn).all(axis=0)
    assert 2 <= attended.sum() <= 4
    (acting,) = truth.acting.values()
    assert (acting[:-1] <= attended).all()
    assert (truth.unsure[:-1] == ~attended).all()


def test_decoys_are_no_sinks():
    names = ("all-token", "content", "heavy", "single", "last", "rotating", "embedding", "dead", "distinct", "attended")
    truth = build(small(width=256, decoys=names))
    assert truth.dims == ()
    assert not truth.sinks.any()
    assert truth.separable
    assert truth.decoys
    first = truth.tokens.position == 0
    assert (truth.drawn[first] > 0.10).any()


def test_content_tokens_draw_no_attention():
    truth = build(small(decoys=("content",), attended=0.0))
    dim = truth.decoys[0]
    top = np.argsort(-np.abs(truth.states[4][:, dim]))[:10]
    known = top[truth.tokens.judged[top]]
    assert truth.drawn[known].max() < 0.10


def test_rounding_leaves_eight_significant_bits():
    truth = build(small(bfloat16=True, dims=1))
    assert not (truth.states.view(np.uint32) & 0xFFFF).any()


def test_separability_goes_by_what_was_planted():
    assert build(small(dims=1, magnitude=400.0)).separable
    few = build(small(dims=1, magnitude=400.0, samples=4))
    assert few.measures.samples == 4
    assert not few.separable
    faint = build(small(dims=1, magnitude=-0.05))
    assert faint.measures.share < 0.1
    assert not faint.separable
    ignored = build(small(dims=1, magnitude=400.0, level=0.05))
    assert ignored.measures.drawn < 0.1
    assert not ignored.separable
    assert not build(small(samples=3)).separable
