"""The document on discovery is written from results alone, and judges its bars itself."""

import copy
import json
from types import SimpleNamespace

import pytest

from benchmarks.document import write
from benchmarks.document.words import braces, bullet, code, paragraph, spans, table
from benchmarks.real_models.__main__ import bars
from benchmarks.real_models.judging import ORACLE, OWN, PUBLISHED

RULE = "Sun 100 / 1000x"


def method(f1, average_precision=None):
    entry = {
        "precision": f1,
        "recall": f1,
        "f1": f1,
        "f1_interval": [f1 - 0.01, f1 + 0.01],
        "average_precision": average_precision,
        "average_precision_interval": None,
        "layers": {"flagged": [3, 0], "both": [3, 0], "precision": [f1, None], "recall": [f1, None], "f1": [f1, None]},
    }
    if average_precision is not None:
        entry["precision_at_recall"] = [average_precision] * 41
    return entry


def variant(f1, average_precision, coverage):
    comparison = {
        "layers": [1, 2],
        "sinks": [3, 0],
        "layers_with_sinks": 1,
        "oracle_over_profile": [1.1, None],
        "methods": {
            OWN: method(f1, average_precision),
            PUBLISHED: method(0.7, 0.8),
            ORACLE: method(0.99, average_precision),
            RULE: method(0.1),
        },
    }
    return {
        "pieces": 4,
        "tokens": 400,
        "judged": 240,
        "first_token_layers": [1, 2],
        "uncovered_layers": [2],
        "coverage": coverage,
        "thresholds": {"0.1": comparison, "0.05": copy.deepcopy(comparison)},
    }


def model():
    token = {"kind": "missed", "cause": "weaker activation", "variant": "without BOS", "source": "prose", "layer": 1}
    token |= {"position": 7, "drawn": 0.31, "score_over_threshold": 0.6, "earlier_flagged": 1, "distance": 1.6}
    token |= {
        "layers": [1],
        "before": "the pipe | and",
        "token": " `",
        "after": "\nnext",
        "drawn_in_other_variant": 0.02,
    }
    return {
        "name": "Tiny",
        "backbone": {"num_layers": 4},
        "verdict": "sinks",
        "reason": "",
        "dims": [5],
        "expected": [[5], [5, 6]],
        "barred": True,
        "bands": [{"first_layer": 1, "last_layer": 2, "dims": [5], "quality": "separated"}],
        "rejected": {},
        "notes": ["phi saturates"],
        "seconds": {"profile": 1.0},
        "default_variant": "with BOS",
        "rules": {RULE: {"dims": [5, 9], "found": 2}},
        "variants": {"without BOS": variant(0.9404, 0.97, 0.5), "with BOS": variant(0.9612, 0.9876, 0.9)},
        "disagreements": {
            "causes": {"without BOS": {"missed": {"weaker activation": 12}, "false": {"draws little": 34}}},
            "tokens": [token],
        },
        "causal": None,
    }


def real_results(entry):
    return {
        "settings": {
            "thresholds": [0.1, 0.05],
            "later_queries": 40,
            "piece_tokens": 255,
            "bootstraps": 100,
            "texts": ["prose"],
            "tokens": None,
        },
        "versions": {"sinkscope": "0"},
        "rules": {RULE: {"source": "a paper", "definition": "Above 100 | 1000x."}},
        "skipped": [{"name": "Other", "reason": "it is not installed"}],
        "bars": bars(entry),
        "models": [entry],
        "seconds": 90.0,
    }


def rate(hits, of):
    return {"hits": hits, "of": of, "rate": hits / of, "interval": [0.0, 1.0]}


def known_results():
    both = {OWN: rate(97, 100), RULE: rate(98, 100)}
    null = {"stores": 8, "p_values": 4000, "observed": [380, 60], "ratio": [0.95, 1.5], "families": 2}
    tokens = {"sinks": 10, "tokens": 900, "missed": 1, "false": 2, "outside": 50, "outside_false": 3}
    return {
        "settings": {"false_discovery_rate": 0.01},
        "versions": {"numpy": "2"},
        "seconds": 120.0,
        "bars": {
            "exact set on separable stores": {"value": 0.97, "bound": ">= 0.99", "met": False},
            "seconds for the large run": {"value": 12, "bound": "<= 30", "met": True},
        },
        "accuracy": {
            "separable": {"": both, "sinks": both, "free": both, "plain": both, "free: clean": both},
            "all": {"": both, "sinks": both, "free": both},
        },
        "factors": {"width": {"64": both, "8192": both}},
        "false_discovery": {
            OWN: rate(1, 50),
            RULE: rate(20, 50),
            "by_stratum": {"free: clean": rate(1, 25)},
            "dimensions": rate(1, 90),
        },
        "tokens": {OWN: tokens | {"error": 0.0033, "f1": 0.9}},
        "calibration": {
            "levels": [0.1, 0.01],
            "groups": [{"width": 64, "tail": "t3", **null}],
            "all": null,
        },
        "speed": {
            "layers": 32,
            "width": 4096,
            "tokens": 100_000,
            "file_gib": 0.7,
            "seconds": 12.3,
            "peak_gib": 0.9,
            "dims": [7],
        },
        "stability": rate(45, 50),
        "extent": rate(3, 400),
        "failures": [
            {
                "truth": [3],
                "found": [],
                "reason": "a | reason",
                "measures": None,
                "factors": {"stratum": "plain", "seed": 7, "width": 64},
            }
        ],
        "unseparable": [],
        "stores": [[1, "plain", True, [3], [], "none"], [2, "free: clean", True, [], [], "none"]],
    }


@pytest.fixture
def folder(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    return SimpleNamespace(
        results=results,
        document=tmp_path / "docs" / "discovery.md",
        put=lambda name, content: (results / name).write_text(json.dumps(content), encoding="utf-8"),
    )


def cells(text, *starts):
    """The cells of the table row that begins with `starts`."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return next(row for row in rows if tuple(row[: len(starts)]) == starts)


def test_bars_are_computed_for_every_variant_and_say_which_is_the_default():
    listed = {(bar["what"], bar["variant"]): bar for bar in bars(model())}
    assert listed["dims", None]["met"]
    assert listed["f1", "with BOS"] | {"value": 0.9612, "met": True, "default": True} == listed["f1", "with BOS"]
    assert not listed["f1", "without BOS"]["met"]
    assert not listed["f1", "without BOS"]["default"]
    assert listed["average_precision", "with BOS"]["met"]
    assert not listed["coverage", "without BOS"]["met"]
    assert ("causal check", None) not in listed


def test_a_wrong_set_of_dimensions_misses_its_bar_and_an_unknown_model_has_none():
    assert not bars(model() | {"dims": [5, 7]})[0]["met"]
    assert bars(model() | {"dims": [6, 5]})[0]["met"]
    assert bars(model() | {"expected": None, "barred": False}) == []
    assert bars(model() | {"expected": [[]], "dims": [], "barred": False})[0]["met"]


def test_the_document_holds_the_figures_of_both_benchmarks(folder):
    folder.put("real_models.json", real_results(model()))
    folder.put("discovery.json", known_results())
    written = write(folder.results, folder.document)
    text = folder.document.read_text(encoding="utf-8")
    assert written[0] == folder.document
    for path in written[1:]:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"images/{path.name})" in text
    assert cells(text, "F1 of flagged tokens", "Tiny, with BOS (as its tokenizer begins a text)")[2:] == [
        "0.9612",
        ">= 0.95",
        "met",
    ]
    assert cells(text, "F1 of flagged tokens", "Tiny, without BOS")[2:] == ["0.9404", ">= 0.95", "**not met**"]
    assert cells(text, "exact set on separable stores")[2:] == ["0.97", ">= 0.99", "**not met**"]
    assert cells(text, "Tiny", "{5} or {5, 6}")[2:] == ["**{5}**", "{5, 9}"]
    assert "1 of 2 (not 2)" in text
    assert "Tiny, without BOS (average precision and f1)" in " ".join(text.split())
    assert "massive tokens that draw less (34)" in " ".join(text.split())
    assert "Other was skipped: it is not installed." in text
    assert "| 12 |" in text
    assert "A rule is better in some strata: Sun 100 / 1000x in all stores (98.0 % against 97.0 %)" in text
    assert "clean (1 of 25)" in text
    assert "p-values fall below 0.01 more often than they should" in " ".join(text.split())
    assert "took 12.3 s and 0.90 GiB" in " ".join(text.split())


def test_tables_have_as_many_cells_in_every_row(folder):
    folder.put("real_models.json", real_results(model()))
    folder.put("discovery.json", known_results())
    write(folder.results, folder.document)
    width = None
    for line in folder.document.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            width = None
            continue
        width = width or line.count("|")
        assert line.count("|") == width, line


def test_either_result_alone_is_enough_and_none_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match="run python -m"):
        write(folder.results, folder.document)
    folder.put("discovery.json", known_results())
    write(folder.results, folder.document)
    assert "## Real models" not in folder.document.read_text(encoding="utf-8")
    (folder.results / "discovery.json").unlink()
    folder.put("real_models.json", real_results(model()))
    write(folder.results, folder.document)
    text = folder.document.read_text(encoding="utf-8")
    assert "## Real models" in text
    assert "## Known truth" not in text


def test_a_model_without_sinks_is_listed_and_draws_nothing(folder):
    none = model() | {"dims": [], "expected": [[]], "bands": [], "barred": False, "verdict": "none"}
    folder.put("real_models.json", real_results(none))
    assert write(folder.results, folder.document) == [folder.document]
    assert cells(folder.document.read_text(encoding="utf-8"), "Tiny", "none")[2] == "**none**"


def test_writing_twice_gives_the_same_document(folder):
    folder.put("real_models.json", real_results(model()))
    write(folder.results, folder.document)
    first = folder.document.read_bytes()
    write(folder.results, folder.document)
    assert folder.document.read_bytes() == first


def test_words():
    assert spans([9, 3, 4, 5]) == "3-5, 9"
    assert spans([]) == "none"
    assert braces([]) == "none"
    assert braces(range(9)) == "{0, 1, 2, 3, 4, 5, ... (9)}"
    assert table(["a", "b"], [[1, 2]]) == "| a | b |\n|---|---:|\n| 1 | 2 |"
    assert code("a|b") == "`a¦b`"
    assert code("`x`\n") == "`` `x`⏎ ``"
    assert code(" the ") == "`␣the␣`"
    assert code("  ") == "`␣␣`"
    assert code("abcdef", 4) == "`abc…`"
    assert code("abcdef", 4, end=True) == "`…def`"
    assert code("") == ""


def test_wrapped_text_never_starts_a_list_by_accident():
    text = paragraph("word " * 23 + "- 4. " + "word " * 30)
    assert all(len(line) <= 125 for line in text.splitlines())
    assert not any(line.startswith(("- ", "4. ")) for line in text.splitlines())
    assert bullet("word " * 40).splitlines()[1].startswith("  word")
