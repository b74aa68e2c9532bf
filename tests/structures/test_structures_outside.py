"""Models whose attention does not go through transformers' attention interface: profiled without it, refused by VAR."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from structure_models import (
    DEPTH,
    OUTSIDE,
    SINK_DIM,
    Planted,
    layers_of,
    loaded,
    questions,
    seeing_model,
    text_model,
    tokenizer,
    written_texts,
)
from structure_oracle import profile_of

import sinkscope
from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.cli.main import run as command_line
from sinkscope.errors import UnsupportedModelError
from sinkscope.redistribution import var

WORDS = "does not go through transformers' attention interface"


@pytest.mark.parametrize("name", OUTSIDE)
def test_they_are_profiled_without_attention_which_is_said(name: str) -> None:
    model = text_model(name)
    Planted(model, layers_of(model)[0], visual=False)
    texts = [sample.text for sample in written_texts(24)]
    profile = sinkscope.profile_model(loaded(model), texts=texts)
    assert profile.dims == (SINK_DIM,)
    assert profile.sink_dimensions[0].last_layer == DEPTH - 1
    assert profile.evidence.attention is None
    assert any(WORDS in note for note in profile.evidence.notes)


@pytest.mark.parametrize("name", OUTSIDE)
@torch.no_grad()
def test_var_refuses_them_in_one_line_and_leaves_them_alone(name: str) -> None:
    model = seeing_model(name)
    anatomy = find_anatomy(model)
    assert anatomy.multimodal
    assert anatomy.attention_layers == (True,) * DEPTH
    assert not anatomy.attention_interface
    prompt = questions(name, "btttittt")
    plain = model(**prompt).logits
    with pytest.raises(UnsupportedModelError, match=WORDS) as refusal:
        var(model, profile_of(model))
    assert "\n" not in str(refusal.value)
    assert torch.equal(model(**prompt).logits, plain)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA on Falcon with its profile, and a picture."""
    place = tmp_path_factory.mktemp("models")
    model = seeing_model("falcon")
    model.save_pretrained(place / "llava-falcon")
    tokenizer().save_pretrained(place / "llava-falcon")
    profile_of(model).save(place / "planted.json")
    Image.new("RGB", (24, 24), "red").save(place / "red.png")
    return place


def call(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = command_line([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def test_the_command_line_says_the_same(folder: Path, capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "inspect", folder / "llava-falcon", "--json", "--no-weights")
    can = json.loads(out)["can"]
    assert code == 0
    assert (can["profile"], can["measure_attention"], can["var"]) == (True, False, False)
    assert WORDS in can["measure_attention_refusal"]
    assert WORDS in can["var_refusal"]

    question = ("--image", folder / "red.png", "--prompt", "What?", "--profile", folder / "planted.json")
    code, out, errors = call(capsys, "apply", folder / "llava-falcon", *question)
    assert (code, out) == (2, "")
    assert [line for line in errors.splitlines() if line.startswith("sinkscope: error: ")] == errors.splitlines()[-1:]
    assert WORDS in errors

    code, out, errors = call(capsys, "profile", folder / "llava-falcon", "--samples", 4, "--tokens", 400, "--json")
    assert code == 0, errors
    assert any(WORDS in note for note in json.loads(out)["evidence"]["notes"])
