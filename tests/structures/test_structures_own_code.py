"""Models that ship their own code: refused by default with nothing of it run, and found by structure where trusted."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from own_code import write_odd
from structure_models import DEPTH, SINK_DIM, WIDTH, text_model

import sinkscope
from sinkscope.cli.main import run as command_line
from sinkscope.errors import InputError
from sinkscope.pipeline import load
from sinkscope.weights import predict

COMMANDS = ("inspect", "profile", "predict")
LINE = "ships its own code; read it, then pass --trust-remote-code to run it"


@pytest.fixture(autouse=True)
def _modules_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers copies code that it runs into a folder, and imports it from there."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def call(capsys: Any, monkeypatch: Any, tmp_path: Path) -> Callable[..., tuple[int, str, list[str]]]:
    """Call the command line; gives its exit code, stdout, and the lines on stderr that are errors."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: object) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        code = command_line([str(argument) for argument in arguments])
        out, errors = capsys.readouterr()
        assert "Traceback" not in errors
        return code, out, [line for line in errors.splitlines() if line.startswith("sinkscope: error: ")]

    return called


def test_by_default_it_is_refused_in_one_line_and_nothing_is_run(call: Any, tmp_path: Path) -> None:
    notes = write_odd(tmp_path / "odd")
    for command in COMMANDS:
        code, out, (line,) = call(command, tmp_path / "odd")
        assert (code, out) == (2, "")
        assert line.endswith(f"odd {LINE}")
    for function in (load, predict, sinkscope.profile_model):
        with pytest.raises(InputError, match="--trust-remote-code"):
            function(tmp_path / "odd")
    assert not notes.exists()
    assert not (tmp_path / "modules").exists()


def test_where_it_is_trusted_structure_is_all_that_counts(call: Any, tmp_path: Path) -> None:
    notes = write_odd(tmp_path / "odd")
    code, out, _ = call("inspect", tmp_path / "odd", "--trust-remote-code", "--json")
    facts = json.loads(out)
    assert code == 0
    assert set(notes.read_text().split()) == {"configuration_odd", "modeling_odd"}
    assert (facts["model_type"], facts["layers_path"]) == ("odd-model", "tower")
    assert (facts["num_layers"], facts["hidden_size"], facts["attention_layers"]) == (DEPTH, WIDTH, [True] * DEPTH)
    assert facts["can"]["profile"]
    assert not facts["can"]["measure_attention"]

    options = ("--samples", 16, "--tokens", 2400, "--trust-remote-code", "--json")
    code, out, errors = call("profile", tmp_path / "odd", *options)
    assert code == 0, errors
    profile = json.loads(out)
    assert [entry["dim"] for entry in profile["sink_dimensions"]] == [SINK_DIM]
    assert profile["sink_dimensions"][0]["first_layer"] == 0

    code, out, errors = call("predict", tmp_path / "odd", "--trust-remote-code", "--json")
    assert code == 0, errors
    # What attention and MLP of each layer write; the embeddings are no part of that.
    assert (json.loads(out)["matrices"], json.loads(out)["verdict"]) == (2 * DEPTH, "none")


@pytest.mark.parametrize("command", COMMANDS)
def test_code_beside_a_known_type_is_not_run(call: Any, command: str, tmp_path: Path) -> None:
    """transformers has this type itself; the folder's own classes for it are left alone."""
    notes = write_odd(tmp_path / "known")
    own = {
        name: json.loads((tmp_path / "known" / name).read_text()) for name in ("config.json", "tokenizer_config.json")
    }
    text_model("llama").save_pretrained(tmp_path / "known")
    config = json.loads((tmp_path / "known" / "config.json").read_text())
    (tmp_path / "known" / "config.json").write_text(json.dumps(config | {"auto_map": own["config.json"]["auto_map"]}))
    options = ("--samples", 4, "--tokens", 400) if command == "profile" else ()
    code, _, errors = call(command, tmp_path / "known", *options)
    assert code == 0, errors
    assert not notes.exists()


def test_a_tokenizer_of_their_own_is_refused_in_the_same_words(call: Any, tmp_path: Path) -> None:
    notes = write_odd(tmp_path / "known")
    text_model("llama").save_pretrained(tmp_path / "known")
    place = tmp_path / "known" / "tokenizer_config.json"
    settings = {
        "tokenizer_class": "OddTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_odd.OddTokenizer", None]},
    }
    place.write_text(json.dumps(json.loads(place.read_text()) | settings))
    code, out, (line,) = call("profile", tmp_path / "known")
    assert (code, out) == (2, "")
    assert line.endswith(f"known {LINE}")
    assert not notes.exists()
