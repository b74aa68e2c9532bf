"""``sinkscope apply --batch`` as a command, with a stand-in for the model."""

import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from sinkscope.cli.apply import describe
from sinkscope.cli.output import print_rich
from sinkscope.errors import InputError
from sinkscope.profile import Backbone, Profile, Provenance, SinkDimension

BATCH = ("apply", "stand-in", "--batch", "q.jsonl", "--out", "a.jsonl", "--profile", "hand.json")


@pytest.fixture
def folder(here: Path) -> Path:
    """Four questions, of which the third asks about a picture that breaks off, and a profile."""
    Image.new("RGB", (64, 64), "red").save(here / "picture.png")
    Image.effect_noise((64, 64), 50).save(here / "noise.png")
    (here / "cut.png").write_bytes((here / "noise.png").read_bytes()[:1500])
    pictures = ["picture.png", ["picture.png", "noise.png"], "cut.png", "picture.png"]
    rows = [{"image": image, "prompt": f"What {line}?", "label": line} for line, image in enumerate(pictures, start=1)]
    (here / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    Profile(
        name="hand",
        verdict="sinks",
        reason="by hand",
        backbone=Backbone(model_type="llama", hidden_size=64, num_layers=3),
        sink_dimensions=[SinkDimension(dim=3)],
        provenance=Provenance(kind="measured"),
    ).save(here / "hand.json")
    return here


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in whose `asked` lists the questions; it answers with the number of pictures."""
    state = SimpleNamespace(asked=[], error=None)
    fingerprint = {"model_type": "llama", "hidden_size": 64, "num_layers": 3}
    loaded = SimpleNamespace(
        model_id="stand-in",
        revision=None,
        model=SimpleNamespace(dtype="torch.float32"),
        note=None,
        anatomy=SimpleNamespace(fingerprint=lambda: fingerprint),
    )

    def answer(loaded, profile, pictures, prompt, *, compare, **settings):
        state.asked.append(prompt)
        if state.error is not None:
            raise state.error
        return SimpleNamespace(var=str(len(pictures)), plain="1" if compare else None)

    pipeline = types.ModuleType("sinkscope.pipeline")
    pipeline.load = lambda *_, **__: loaded
    monkeypatch.setitem(sys.modules, "sinkscope.pipeline", pipeline)
    monkeypatch.setattr("sinkscope.answering.answer", answer)
    monkeypatch.setattr("sinkscope.answering.check_answerable", lambda loaded: None)
    return state


def answers(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]


def test_a_bad_line_stops_before_the_model_is_loaded(sinkscope, folder, no_model):
    with (folder / "q.jsonl").open("a") as file:
        file.write('\n{"image": "absent.png", "prompt": "What?"}')
    sinkscope(*BATCH).refused("line 5 of q.jsonl: there is no picture at absent.png")
    (folder / "q.jsonl").write_text("3\n[]")
    outcome = sinkscope(*BATCH, "--keep-going")
    outcome.refused("q.jsonl holds no usable question")
    assert outcome.err.count("skipped line") == 2
    assert not list(folder.glob("a.jsonl*"))


def test_a_question_that_fails_stops_and_the_rest_goes_on_later(sinkscope, folder, model):
    outcome = sinkscope(*BATCH)
    outcome.refused("line 3 of q.jsonl: cannot read the picture cut.png", "2 answers are kept", "--resume")
    assert not (folder / "a.jsonl").exists()
    outcome = sinkscope(*BATCH)
    outcome.refused("a.jsonl.partial exists already", "--resume")

    outcome = sinkscope(*BATCH, "--resume", "--keep-going", "--json")
    assert outcome.code == 1
    assert model.asked == ["What 1?", "What 2?", "What 4?"]
    facts = json.loads(outcome.out)
    assert {name: facts[name] for name in ("model", "profile", "out", "questions", "answered", "resumed")} == {
        "model": "stand-in",
        "profile": "hand",
        "out": "a.jsonl",
        "questions": 4,
        "answered": 3,
        "resumed": 2,
    }
    assert facts["changed"] is None
    assert facts["seconds"] >= 0
    assert [entry["line"] for entry in facts["skipped"]] == [3]
    assert "cut.png" in facts["skipped"][0]["reason"]
    assert [line for line in outcome.err.splitlines() if "skipped" in line] == [
        f"skipped line 3 of q.jsonl: {facts['skipped'][0]['reason']}"
    ]
    assert [(row["id"], row["label"], row["answer"], row["plain"]) for row in answers(folder)] == [
        (1, 1, "1", None),
        (2, 2, "2", None),
        (4, 4, "1", None),
    ]
    assert answers(folder)[1]["image"] == ["picture.png", "noise.png"]

    # The picture is repaired: only its question is asked, and the exit code is good.
    (folder / "cut.png").write_bytes((folder / "noise.png").read_bytes())
    outcome = sinkscope(*BATCH, "--resume")
    assert outcome.code == 0, outcome.err
    assert model.asked[3:] == ["What 3?"]
    assert [row["id"] for row in answers(folder)] == [1, 2, 3, 4]
    assert "4 of 4 questions answered" in outcome.out
    assert "3 of them were answered before" in outcome.out
    sinkscope(*BATCH).refused("a.jsonl exists already", "--resume", "--out")


def test_the_summary_for_a_person(sinkscope, folder, model):
    outcome = sinkscope(*BATCH, "--compare", "--keep-going")
    assert outcome.code == 1
    told = outcome.out.splitlines()
    assert told[0].startswith("3 of 4 questions answered in ")
    assert told[1:] == ["VAR changed 1 of 3 answers", "1 skipped: line 3"]
    assert "questions: 4 of 4" in outcome.err


def test_an_interrupted_batch_says_how_to_go_on(sinkscope, folder, model):
    model.error = KeyboardInterrupt()
    outcome = sinkscope(*BATCH)
    outcome.refused("interrupted; nothing was kept", code=130)
    assert not list(folder.glob("a.jsonl*"))
    model.error = None
    sinkscope(*BATCH).refused("line 3")
    model.error = KeyboardInterrupt()
    (folder / "cut.png").write_bytes((folder / "noise.png").read_bytes())
    outcome = sinkscope(*BATCH, "--resume")
    outcome.refused("a.jsonl.partial keeps", f"`sinkscope {' '.join(BATCH)} --resume`", code=130)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--p", "0.3"], "p 0.6, not 0.3"),
        (["--rho", "0.5"], "rho 0.8, not 0.5"),
        (["--max-new-tokens", "5"], "max_new_tokens 64, not 5"),
        (["--compare"], "compare false, not true"),
        (["--raw"], "raw false, not true"),
        (["--revision", "main"], "revision null, not main"),
        (["--profile", "other.json"], "profile hand, not other"),
    ],
)
def test_other_settings_are_refused_before_the_model_is_loaded(
    sinkscope, folder, model, monkeypatch, options, fragment
):
    assert sinkscope(*BATCH, "--keep-going").code == 1
    data = json.loads((folder / "hand.json").read_text())
    (folder / "other.json").write_text(json.dumps(data | {"name": "other"}))
    monkeypatch.delattr(sys.modules["sinkscope.pipeline"], "load")
    sinkscope(*BATCH, "--resume", *options).refused("a.jsonl was made with", fragment)


def test_other_questions_profiles_and_models_are_refused(sinkscope, folder, model):
    assert sinkscope(*BATCH, "--keep-going").code == 1
    again = [*BATCH, "--resume", "--keep-going"]
    sinkscope(*again[:1], "other", *again[2:]).refused("model stand-in, not other")
    # The defaults of the profile, named or not, are the same settings.
    assert sinkscope(*again, "--p", 0.6, "--rho", 0.8).code == 1
    kept = (folder / "q.jsonl").read_text()
    (folder / "q.jsonl").write_text(kept.replace("What 4?", "What 5?"))
    sinkscope(*again).refused("a.jsonl was made with other questions")
    (folder / "q.jsonl").write_text(kept)
    data = json.loads((folder / "hand.json").read_text())
    (folder / "hand.json").write_text(json.dumps(data | {"reason": "by another hand"}))
    sinkscope(*again).refused("a.jsonl was made with other contents of the profile")
    assert len(answers(folder)) == 3


def test_two_answers_are_shown_side_by_side(capsys):
    both = SimpleNamespace(plain="a [red] cat", var="a dog", changed=True, layers=(), p=0.6, rho=0.8)
    print_rich(*describe(both))
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["plain          VAR", "a [red] cat    a dog"]
    same = SimpleNamespace(plain="a dog", var="a dog", changed=False, layers=(), p=0.6, rho=0.8)
    print_rich(*describe(same))
    assert "VAR (the same)" in capsys.readouterr().out


def test_prompts_longer_than_the_context_are_refused():
    import torch
    from transformers import LlamaConfig, PreTrainedConfig

    from sinkscope.answering.inputs import room_to_answer

    def loaded(config):
        return SimpleNamespace(model_id="m", model=SimpleNamespace(config=config))

    inputs = {"input_ids": torch.zeros(1, 10, dtype=torch.long)}
    assert room_to_answer(loaded(LlamaConfig(max_position_embeddings=12)), inputs, 64) == 2
    assert room_to_answer(loaded(LlamaConfig(max_position_embeddings=100)), inputs, 64) == 64
    assert room_to_answer(loaded(PreTrainedConfig()), inputs, 64) == 64
    with pytest.raises(InputError, match=r"10 tokens.*fewer than 10"):
        room_to_answer(loaded(LlamaConfig(max_position_embeddings=10)), inputs, 64)
