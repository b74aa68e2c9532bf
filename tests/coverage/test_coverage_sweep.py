"""The whole sweep, and what is made of its verdicts."""

import json

import pytest
from transformers import AutoConfig

from benchmarks.coverage import __main__ as sweep
from benchmarks.coverage.bars import bars
from benchmarks.coverage.building import build
from benchmarks.coverage.document import page
from benchmarks.coverage.overrides import ARGUMENTS, OVERRIDES
from benchmarks.coverage.shrinking import FIRST_RESERVED, LAYERS, VOCABULARY, WIDTH, shrink
from benchmarks.coverage.structure import STRUCTURAL, confirmed
from benchmarks.coverage.verdict import overall

TYPES = {kind for kinds in sweep.MAPPINGS.values() for kind in kinds}


@pytest.mark.slow
def test_the_sweep_meets_its_bars(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["coverage", "--results", str(tmp_path / "coverage.json")])
    sweep.main()
    verdicts = list(json.loads((tmp_path / "coverage.json").read_text())["types"].values())
    assert len(verdicts) == sum(map(len, sweep.MAPPINGS.values()))
    for bar in bars(verdicts):
        assert bar.is_met, f"{bar.words}: not {', '.join(bar.missing)}"


def test_the_page_is_the_one_that_the_results_give():
    from benchmarks.coverage.document import PAGE

    assert PAGE.read_text() == page(json.loads(sweep.RESULTS.read_text()))


def test_no_type_is_left_out_of_the_results():
    results = json.loads(sweep.RESULTS.read_text())["types"]
    assert set(results) == {f"{mapping}/{kind}" for mapping, kinds in sweep.MAPPINGS.items() for kind in kinds}
    for verdict in results.values():
        assert verdict["verdict"] in ("works", "refused", "failed", "not built")
        assert verdict["verdict"] == "works" or verdict["reason"]


def test_overrides_are_for_types_that_exist():
    assert set(OVERRIDES) <= TYPES
    assert set(ARGUMENTS) <= TYPES


def test_configs_shrink_with_what_hangs_together():
    config = shrink(AutoConfig.for_model("gemma3_text"), "gemma3_text")
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (WIDTH, LAYERS, VOCABULARY)
    assert len(config.layer_types) == LAYERS
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    seeing = shrink(AutoConfig.for_model("qwen2_vl"), "qwen2_vl")
    assert FIRST_RESERVED <= seeing.image_token_id < VOCABULARY
    assert seeing.image_token_id != seeing.video_token_id
    assert sum(seeing.text_config.rope_parameters["mrope_section"]) == 8


def step(status, **more):
    return {"status": status, "reason": "for a reason", **more}


def test_a_type_works_only_where_every_step_does():
    seeing = {"profile": step("works"), "pictures": step("works"), "states_agree": True, "connector": "projector"}
    assert overall(seeing | {"var": step("works")})["verdict"] == "works"
    assert overall(seeing | {"var": step("refused")})["verdict"] == "failed"
    assert overall(seeing | {"var": step("works"), "states_agree": False})["verdict"] == "failed"
    for status in ("failed", "not run"):
        assert overall(seeing | {"var": step("works"), "pictures": step(status)})["verdict"] == "failed"
    resampler = seeing | {"connector": "resampler"}
    assert overall(resampler | {"var": step("refused")})["verdict"] == "works"
    assert overall(resampler | {"var": step("works")})["verdict"] == "failed"
    refused = overall(seeing | {"refusal": "for a reason"})
    assert (refused["verdict"], refused["reason"]) == ("refused", "for a reason")


def test_a_refusal_counts_as_structural_only_where_it_is_true():
    model = build("llama", "causal-lm")
    for words in STRUCTURAL:
        assert not confirmed(model, f"llama {words}")
    assert not confirmed(build("reformer", "causal-lm"), "it is not to my taste")


def test_bars_name_who_misses_them():
    works = {"type": "a", "mapping": "causal-lm", "verdict": "works", "profile": step("works"), "states_agree": True}
    fails = works | {"type": "b", "verdict": "failed", "profile": step("failed")}
    unbuilt = {"type": "c", "mapping": "causal-lm", "verdict": "not built", "reason": "no package"}
    profile, _, _, built = bars([works, fails, unbuilt])
    assert (profile.met, profile.of, profile.missing, profile.is_met) == (1, 2, ("b",), False)
    assert (built.met, built.of, built.missing, built.is_met) == (2, 3, ("c",), False)


def test_a_hang_or_a_crash_is_a_verdict(monkeypatch):
    monkeypatch.setattr(sweep, "judge", lambda kind, mapping: __import__("time").sleep(60))
    assert sweep.judge_apart("llama", "causal-lm", 1.0)["reason"] == "the process took longer than 1 s"
    monkeypatch.setattr(sweep, "judge", lambda kind, mapping: __import__("os")._exit(3))
    verdict = sweep.judge_apart("llama", "causal-lm", 20.0)
    assert verdict["verdict"] == "failed"
    assert "crashed" in verdict["reason"]
