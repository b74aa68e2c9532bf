"""Falls with their intervals, and what is said of them."""

import json
from typing import Any

import numpy as np
import pytest

from sinkscope.causal.outcome import Effect, describe, mean_change, number, relative_fall
from sinkscope.causal.settings import CausalSettings
from sinkscope.causal.verdict import judge

SETTINGS = CausalSettings()


@pytest.mark.parametrize("seed", range(20))
def test_intervals_hold_the_estimate(seed: int) -> None:
    generator = np.random.default_rng(seed)
    samples, draws = int(generator.integers(1, 9)), int(generator.integers(1, 5))
    before = generator.uniform(0.1, 0.9, samples)
    after = before[:, None] * generator.lognormal(-1, 1.5, (samples, draws))
    found = relative_fall(before, after, SETTINGS)
    assert found.value == pytest.approx(1 - after.mean() / before.mean())
    assert found.low <= found.value <= found.high
    assert found == relative_fall(before, after, SETTINGS)
    change = mean_change(after, SETTINGS)
    assert change.low <= change.value == pytest.approx(after.mean())
    assert change.value <= change.high


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Samples and draws both vary; percentile intervals of 12 samples are somewhat short, never by much."""
    generator, hits = np.random.default_rng(0), 0
    for _ in range(200):
        values = 1.0 + 0.3 * generator.normal(size=(12, 1)) + 0.6 * generator.normal(size=(12, 3))
        found = mean_change(values, SETTINGS)
        hits += found.low <= 1.0 <= found.high
    assert 0.88 <= hits / 200 <= 1.0


def test_intervals_see_both_levels() -> None:
    """Draws that differ within one sample, and samples that differ from each other."""
    alike = np.full((8, 3), 0.5)
    assert relative_fall(np.ones(8), alike, SETTINGS).high == pytest.approx(0.5)
    within = alike + np.array([-0.3, 0.0, 0.3])
    between = alike + np.linspace(-0.3, 0.3, 8)[:, None]
    for after in (within, between):
        found = relative_fall(np.ones(8), after, SETTINGS)
        assert found.low < 0.45
        assert found.high > 0.55


def test_a_comparison_is_ready_for_json() -> None:
    known = Effect(np.full((2, 1), 0.5), np.full((3, 2, 1), 0.1), np.full(3, 2.0), np.array([0], np.uint8), 0.9)
    visual = Effect(np.full((2, 2), 0.4), np.full((3, 2, 2), 0.4), None, np.array([2, 2], np.uint8), 0.9)
    found = describe([known, visual], SETTINGS, kinds=[0, 2])
    assert found["band"]["before"] == 0.45
    assert found["band"]["fall"] == pytest.approx(1 - 0.25 / 0.45, abs=1e-3)
    assert found["loss_change"] == 2.0
    assert found["kinds"]["0"]["fall"] == 0.8
    assert found["kinds"]["2"]["fall"] == pytest.approx(0.0, abs=1e-9)
    unknown = Effect(np.full((2, 1), np.nan), np.full((1, 2, 1), np.nan), None, np.array([0], np.uint8), 0.0)
    found = describe([unknown], SETTINGS)
    assert (found["band"], found["network"], found["loss_change"]) == (None, None, None)
    json.dumps(found, allow_nan=False)
    assert number(float("inf")) is None
    assert number(0.123456) == 0.1235


def line(group: str, dims: list[int] | None, fall: float | None, edit: str = "exchange", **more: Any) -> dict[str, Any]:
    part = None if fall is None else {"fall": fall, "fall_interval": [fall - 0.05, fall + 0.05]}
    return {
        "group": group,
        "edit": edit,
        "dims": dims,
        "count": 1 if dims is None else len(dims),
        "band": part,
        "network": part,
        "loss_change": 1.0 if group == "found" else 0.1,
    } | more


def layer(number: int, *lines: dict[str, Any]) -> dict[str, Any]:
    return {"layer": number, "comparisons": list(lines)}


def test_a_band_that_separates() -> None:
    found = judge(
        [5], [layer(3, line("found", [5], 0.9), line("random", None, 0.0), line("next largest", [9], 0.1))], SETTINGS
    )
    assert (found["separates"], found["confident"], found["stands_out"]) == (True, True, True)
    assert found["matters"] == [{"dim": 5, "sufficient_at": [3], "partly_at": []}]
    assert found["sentences"] == [
        "the exchange of 5 lowers the attention drawn by 90% (85% to 95%) at layer 3; random and next-largest "
        "dimensions lower it by at most 10%"
    ]


def test_a_control_that_falls_is_named() -> None:
    lines = [line("found", [5], 0.9), line("random", None, 0.0), line("next largest", [9], 0.4)]
    found = judge([5], [layer(3, *lines)], SETTINGS, {9: "companion"})
    assert (found["separates"], found["confident"], found["stands_out"]) == (False, False, True)
    assert "at layer 3 the exchange of the next largest, 9 (companion), lowers" in found["sentences"][0]
    assert any("stands out" in sentence for sentence in found["sentences"])


def test_a_set_that_does_not_fall_is_named_with_what_draws_instead() -> None:
    lines = [
        line("found", [5], 0.3),
        line("random", None, 0.28),
        line("next largest", [9], 0.0),
        line("found", [5], 0.1, "transplant"),
        line("next largest", [9], 0.2, "transplant"),
        line("ordinary", [], 0.95, "transplant"),
    ]
    found = judge([5], [layer(3, line("found", [5], 0.8)), layer(6, *lines)], SETTINGS)
    assert (found["separates"], found["stands_out"]) == (False, False)
    assert "at layer 6 the exchange of 5 lowers the attention drawn by 30%" in found["sentences"][0]
    assert "a random dimension" in found["sentences"][1]
    draws = next(text for text in found["sentences"] if "an ordinary token" in text)
    assert draws == (
        "an ordinary token in the same positions, with the values of 5, draws of this attention at layer 6 90% in "
        "their own place (+1 nats), 80% with those of 9 instead (+0.1 nats), 5% without (+0.1 nats)"
    )
    assert found["place_decides"] is None
    assert found["matters"] == [{"dim": 5, "sufficient_at": [3], "partly_at": [6]}]


def test_copies_tell_landing_from_leaving() -> None:
    lines = [
        line("found", [5], 0.9),
        line("random", None, 0.0),
        line("next largest", [9], 0.5),
        line("next largest", [11], 0.3),
        line("found", [5], 0.8, "copy"),
        line("next largest", [9], 0.45, "copy"),
        line("next largest", [11], 0.0, "copy"),
        line("ordinary", [], 0.95, "transplant"),
    ]
    first, second, *others = judge([5], [layer(3, *lines)], SETTINGS)["sentences"]
    assert "9," in first
    assert "but a copy of its values elsewhere, their own place kept, takes 45%" in first
    assert "11," in second
    assert "copy" not in second
    assert any("does not tell their leaving from their landing" in sentence for sentence in others)
    assert any("an ordinary token" in sentence for sentence in others)


@pytest.mark.parametrize(("moved", "decides"), [(0.1, True), (0.4, True), (0.5, False), (0.8, False)])
def test_whether_the_place_decides(moved: float, decides: bool) -> None:
    def planted(edit: str, after: float) -> dict[str, Any]:
        return line("found", [5], 1 - after) | {
            "edit": edit,
            "band": {"after": after, "fall": 1 - after, "fall_interval": [0.0, 1.0]},
        }

    entry = layer(3, line("found", [5], 0.9), planted("transplant", 0.8), planted("transplant elsewhere", moved))
    assert judge([5], [entry], SETTINGS)["place_decides"] is decides


def test_visual_sinks_are_told_apart_in_words() -> None:
    kinds = {"text": {"fall": 0.9}, "visual": {"fall": 0.7}}
    found = judge([5], [layer(3, line("found", [5], 0.8, kinds=kinds))], SETTINGS)
    assert found["sentences"][-1] == (
        "by kind of sink token, the exchange takes 90% from text tokens, 70% from visual tokens at layer 3"
    )
    del kinds["visual"]
    assert not any(
        "by kind" in sentence
        for sentence in judge([5], [layer(3, line("found", [5], 0.8, kinds=kinds))], SETTINGS)["sentences"]
    )


def test_wide_intervals_are_not_confident() -> None:
    found = judge([5], [layer(3, line("found", [5], 0.52), line("random", None, 0.0))], SETTINGS)
    assert (found["separates"], found["confident"]) == (True, False)
    assert "more samples" in found["sentences"][1]


def test_which_of_two_dimensions_matters_where() -> None:
    layers = [
        layer(number, line("found", [5, 9], 0.9), line("found", [5], 0.8), line("found", [9], second), elsewhere)
        for number, second, elsewhere in (
            (2, 0.6, line("found elsewhere", [30], 0.4)),
            (4, 0.0, line("found elsewhere", [30], 0.1)),
        )
    ]
    found = judge([5, 9], layers, SETTINGS)
    assert found["matters"] == [
        {"dim": 5, "sufficient_at": [2, 4], "partly_at": []},
        {"dim": 9, "sufficient_at": [2], "partly_at": []},
    ]
    text = " ".join(found["sentences"])
    assert "5 alone is enough" in text
    assert "9 alone is not enough everywhere" in text
    assert "the exchange of 30, found in another band, takes 40% (35% to 45%) at layer 2" in text
    assert text.count("found in another band") == 1


def test_sinks_that_form_again_are_said() -> None:
    entry = line("found", [5], 0.9, network={"fall": 0.2, "fall_interval": [0.1, 0.3]})
    found = judge([5], [layer(3, entry)], SETTINGS)
    assert found["separates"] is True
    assert any("form again later" in sentence for sentence in found["sentences"])


def test_without_attention_only_the_loss_is_told() -> None:
    found = judge([5], [layer(3, line("found", [5], None), line("random", None, None))], SETTINGS)
    assert found["separates"] is None
    assert found["sentences"][0] == "not judged: attention was not measured"
    assert "changes the loss by +1 nats" in found["sentences"][1]
    assert judge([5], [], SETTINGS)["separates"] is None
