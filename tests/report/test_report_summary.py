"""The summary for the terminal says what the profile says, and nothing that it does not."""

import io
import re

import pytest
from rich.console import Console

from sinkscope.profile import Profile
from sinkscope.registry import list_profiles, load_profile
from sinkscope.report import profile_summary


def text_of(profile: Profile, width: int = 100) -> str:
    console = Console(width=width, record=True, color_system=None, file=io.StringIO())
    console.print(profile_summary(profile))
    return console.export_text()


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_a_measured_profile(profile: Profile) -> None:
    data = profile.model_dump()
    data["evidence"] = {"attention": {"auroc": 0.998, "details": {"x": 1}}, "notes": ["phi is nearly saturated"]}
    text = flat(text_of(Profile.model_validate(data)))
    for part in (
        "toy has sinks",
        "8 layers of width 64",
        "Dimension 17 is massive",
        "17 2–7",
        "phi 6 (safe 4 to 7)",
        "populations separated",
        "50 (safe 10 to 500)",
        "companion: 18 (too little energy)",
        "content: 40 (draws no attention)",
        "auroc: 0.998",
        "phi is nearly saturated",
        "p 0.6, rho 0.8",
        "measured, 2026-01-01",
        "fits: someone/toy",
    ):
        assert part in text, part
    assert "all-token outlier" not in text
    assert "None" not in text
    assert "nan" not in text


def test_figures_of_attention_are_sentences(profile: Profile) -> None:
    data = profile.model_dump(mode="json")
    figures = {"threshold": 0.1, "minimum_later_queries": 40, "tokens": 1234, "mean_f1": 0.994}
    data["evidence"]["attention"] = figures | {"mean_average_precision": 0.98, "mean_auroc": None}
    text = flat(text_of(Profile.model_validate(data)))
    assert "tokens that draw over 10% of the attention with F1 0.99 (average precision 0.98)" in text
    assert "judged on 1,234 tokens with 40 more, or half of their text, after them" in text
    data["evidence"]["attention"] = figures | {"mean_f1": None}
    assert "threshold: 0.1" in flat(text_of(Profile.model_validate(data))), "what cannot be a sentence is still shown"


def test_attention_not_measured_is_said(profile: Profile) -> None:
    assert "attention was not measured" in flat(text_of(profile))
    assert "attention was not measured" not in flat(text_of(load_profile("llama-2-7b")))
    data = profile.model_dump(mode="json")
    data["evidence"] = {"notes": ["attention: unavailable: no layer has any; judged without it"]}
    assert "attention was not measured" not in flat(text_of(Profile.model_validate(data))), "the note says why"


def test_no_sinks(profile: Profile) -> None:
    data = profile.model_dump() | {"verdict": "none", "sink_dimensions": [], "bands": [], "tau": None}
    text = text_of(Profile.model_validate(data))
    assert "has no sinks" in text
    assert "Sink dimensions" not in text
    assert "Layer bands" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_packaged_profile(width: int) -> None:
    for entry in list_profiles():
        if entry.origin == "packaged":
            text = text_of(entry.read(), width)
            assert max(map(len, text.splitlines())) <= width
            assert "None" not in text


@pytest.mark.parametrize("width", [28, 40, 60, 80, 200])
def test_no_word_of_the_tables_is_cut(profile: Profile, width: int) -> None:
    data = profile.model_dump()
    data["sink_dimensions"][0] |= {"typical_value": 102014.0, "contrast": 6.75, "attention_drawn": 0.43}
    data["sink_dimensions"][0] |= {"p_value": 7e-09, "stability": 1.0, "triggers": ["first", "delimiter", "bos"]}
    text = text_of(Profile.model_validate(data), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    words = "typical value contrast attention stability first, delimiter, bos +102,014 populations separated 2–7 2–4"
    assert set(words.split()) <= {word.strip(";") for word in text.split()}
    assert ("stability 100%" in flat(text)) == (width < 100), "a paragraph where a table does not fit"


def test_the_weights_are_told_once_and_pieces_are_called_so(profile: Profile) -> None:
    data = profile.model_dump()
    data["evidence"] |= {"weights": {"sentence": "17 is not named"}, "notes": ["weights: 17 is not named", "other"]}
    data["provenance"]["calibration"] = {"samples": 14}
    text = flat(text_of(Profile.model_validate(data)))
    assert text.count("17 is not named") == 1
    assert "other" in text
    assert "pieces: 14" in text


def test_text_cannot_steer_the_terminal_or_be_markup(profile: Profile) -> None:
    data = profile.model_dump()
    data["reason"] = "[red]not markup[/red] \x1b[31m\x07\u202e end"
    data["sink_dimensions"][0]["triggers"] = ["\n", "[/]", "\x1b]0;title\x07", "first"]
    data["models"] = ["a\x1b[2Jb"]
    data["evidence"]["attention"] = {"[bold]\x1b": "x\x1b[1m"}
    text = text_of(Profile.model_validate(data), 200)
    assert "[red]not markup[/red]" in text
    assert not any(ord(character) < 32 and character != "\n" for character in text)
    assert "\u202e" not in text
    assert "'\\n'" in text


def test_long_lists_are_cut_with_a_count(profile: Profile) -> None:
    data = profile.model_dump()
    data["all_token_outliers"] = [{"dim": dim} for dim in range(30)]
    assert "0, 1, 2, 3, 4, 5, 24 more" in flat(text_of(Profile.model_validate(data)))
