"""Bad input at every command: one clear line, exit code 2, nothing written, and no model loaded for nothing."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sinkscope.profile import Backbone, Profile, Provenance, SinkDimension


@pytest.fixture
def picture(here: Path) -> Path:
    path = here / "picture.png"
    Image.new("RGB", (48, 48), "red").save(path)
    return path


def small_profile(**changes: object) -> Profile:
    fields = {
        "name": "small",
        "verdict": "sinks",
        "reason": "for a test",
        "backbone": Backbone(model_type="llama", hidden_size=64, num_layers=4),
        "sink_dimensions": [SinkDimension(dim=3)],
        "provenance": Provenance(kind="measured"),
    }
    return Profile(**(fields | changes))


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["-o", "nowhere/p.json"], ["nowhere/p.json", "no folder", "-o"]),
        (["-o", "."], ["is a folder", "-o"]),
        (["-o", "file.txt/p.json"], ["file.txt/p.json", "-o"]),
        (["-o", "/proc/p.json"], ["cannot write /proc/p.json", "-o"]),
        (["--run", "nowhere/r.h5"], ["nowhere/r.h5", "no folder", "--run"]),
        (["--run", "old.h5"], ["old.h5 exists already", "--resume", "--run"]),
        (["--texts", "absent.txt"], ["absent.txt", "--texts"]),
        (["--images", "absent"], ["absent", "--images"]),
        (["--plots", "file.txt"], ["file.txt", "--plots"]),
    ],
)
def test_profile_refuses_before_loading(sinkscope, here, no_model, arguments, fragments):
    (here / "file.txt").write_text("text")
    (here / "old.h5").write_bytes(b"a run")
    before = listing(here)
    sinkscope("profile", "demo:llm", *arguments).refused(*fragments)
    assert listing(here) == before


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["--image", "--help"]),
        (["--image", "picture.png"], ["--prompt"]),
        (["--image", "picture.png", "--prompt", " "], ["--prompt"]),
        (["--image", "absent.png", "--prompt", "What?"], ["no picture at absent.png"]),
        (["--image", "text.png", "--prompt", "What?"], ["text.png", "cannot read the picture"]),
        (["--image", "cut.png", "--prompt", "What?"], ["cut.png", "cannot read the picture"]),
        (["--image", "picture.png", "--prompt", "What?", "--p", "1.5"], ["--p", "1.5"]),
        (["--image", "picture.png", "--prompt", "What?", "--rho", "nan"], ["--rho"]),
        (["--image", "picture.png", "--prompt", "What?", "--profile", "llama-2-7"], ["llama-2-7b"]),
        (["--image", "picture.png", "--prompt", "What?", "--profile", "absent.json"], ["absent.json"]),
        (
            ["--image", "picture.png", "--prompt", "What?", "--profile", "broken.json"],
            ["broken.json", "not valid JSON"],
        ),
        (
            ["--image", "picture.png", "--prompt", "What?", "--attention", "no/where.png"],
            ["no/where.png", "--attention"],
        ),
        (["--batch", "in.jsonl"], ["--out"]),
        (["--out", "out.jsonl"], ["--batch"]),
        (["--image", "picture.png", "--prompt", "What?", "--resume"], ["--resume", "--batch"]),
        (["--image", "picture.png", "--prompt", "What?", "--keep-going"], ["--keep-going", "--batch"]),
        (["--batch", "in.jsonl", "--out", "o", "--prompt", "What?"], ["--prompt"]),
        (["--batch", "absent.jsonl", "--out", "out.jsonl"], ["absent.jsonl"]),
        (["--batch", "empty.jsonl", "--out", "out.jsonl"], ["empty.jsonl", "no question"]),
        (["--batch", "in.jsonl", "--out", "out.jsonl"], ["line 2 of in.jsonl", "not JSON"]),
        (["--batch", "in.jsonl", "--out", "in.jsonl"], ["in.jsonl exists already", "--resume", "--out"]),
        (["--batch", "in.jsonl", "--out", "in.jsonl", "--resume"], ["cannot tell what made in.jsonl", "--out"]),
        (["--batch", "in.jsonl", "--out", "no/out.jsonl"], ["no/out.jsonl", "no folder", "--out"]),
    ],
)
def test_apply_refuses_before_loading(sinkscope, here, picture, no_model, arguments, fragments):
    (here / "text.png").write_text("not a picture")
    (here / "cut.png").write_bytes(picture.read_bytes()[:60])
    (here / "broken.json").write_text('{"name": ')
    (here / "in.jsonl").write_text('{"image": "picture.png", "prompt": "What?"}\n{"image": \n')
    (here / "empty.jsonl").write_text("\n")
    before = listing(here)
    sinkscope("apply", "demo:lmm", *arguments).refused(*fragments)
    assert listing(here) == before


@pytest.mark.parametrize("command", ["info", "discover"])
@pytest.mark.parametrize(
    ("name", "fragments"),
    [("absent.h5", ["absent.h5"]), ("text.h5", ["text.h5"]), ("cut.h5", ["cut.h5"]), ("empty.h5", ["empty.h5"])],
)
def test_unreadable_run_files(sinkscope, here, command, name, fragments):
    import h5py

    (here / "text.h5").write_text("not HDF5")
    with h5py.File(here / "whole.h5", "w") as file:
        file["numbers"] = list(range(10000))
    (here / "cut.h5").write_bytes((here / "whole.h5").read_bytes()[:3000])
    (here / "empty.h5").write_bytes(b"")
    before = listing(here)
    sinkscope(command, name).refused(*fragments)
    sinkscope(command, name, "--json").refused(*fragments)
    assert listing(here) == before


def test_discover_refuses_an_output_that_cannot_be_written(sinkscope, here):
    sinkscope("discover", "run.h5", "-o", "nowhere/p.json").refused("nowhere/p.json", "-o")


def test_registry_lists_shows_and_checks(sinkscope, here):
    listed = json.loads(sinkscope("registry", "list", "--json").out)["profiles"]
    assert {"llama-2-7b", "qwen2-vl-7b"} <= {entry["name"] for entry in listed}
    table = sinkscope("registry", "list")
    assert table.code == 0
    assert "llama-2-7b" in table.out
    shown = json.loads(sinkscope("registry", "show", "llama-2-7b", "--json").out)
    assert [entry["dim"] for entry in shown["sink_dimensions"]] == [2533, 1415]
    checked = sinkscope("registry", "check", "--json")
    assert checked.code == 0, checked.err
    assert json.loads(checked.out) == {"ok": True, "checked": len(listed), "problems": []}
    assert "no problem found" in sinkscope("registry", "check", "llama-2-7b").out


def test_registry_check_fails_on_a_broken_profile(sinkscope, here):
    data = json.loads(small_profile().to_json())
    data["sink_dimensions"][0]["dim"] = 64
    (here / "broken.json").write_text(json.dumps(data))
    outcome = sinkscope("registry", "check", "broken.json")
    outcome.refused("broken.json", "not below the hidden size 64", code=1)
    outcome = sinkscope("registry", "check", "broken.json", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["problems"][0]["profile"] == "broken.json"


@pytest.mark.parametrize("arguments", [["show", "llama-2-7"], ["check", "llama-2-7"]])
def test_registry_names_close_profiles(sinkscope, here, arguments):
    sinkscope("registry", *arguments).refused("llama-2-7", "did you mean llama-2-7b")


def test_a_newer_profile_names_the_upgrade(sinkscope, here):
    data = json.loads(small_profile().to_json()) | {"schema_version": "2.0"}
    (here / "newer.json").write_text(json.dumps(data))
    sinkscope("registry", "show", "newer.json").refused("2.0", "pip install --upgrade sinkscope")
