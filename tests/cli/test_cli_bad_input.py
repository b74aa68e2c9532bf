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
        (["-o", "same.h5", "--run", "same.h5"], ["-o and --run are one file, same.h5"]),
        (["-o", "same.h5", "--run", "folder/../same.h5"], ["-o and --run"]),
        (["-o", "t.txt", "--texts", "t.txt"], ["-o and --texts are one file, t.txt"]),
        (["--run", "t.txt", "--texts", "t.txt", "--resume"], ["--run and --texts"]),
        (["--events", "t.txt", "--texts", "t.txt"], ["--events and --texts"]),
        (["--events", "link.txt", "--texts", "t.txt"], ["--events and --texts"]),
        (["--events", "hard.txt", "--texts", "t.txt"], ["--events and --texts"]),
        (["--events", "t.txt", "--images", "t.txt"], ["--events and --images"]),
        (["--events", "t.txt", "--dataset", "t.txt"], ["--events and --dataset"]),
        (["--events", "x.json", "-o", "x.json"], ["-o and --events"]),
        (["--events", "x.h5", "--run", "x.h5"], ["--run and --events"]),
        (["-o", "t.txt"], ["t.txt is there and is no profile", "-o"]),
        (["-o", "other.json"], ["other.json is there and is no profile", "-o"]),
        (["--events", "t.txt"], ["t.txt is there and holds no events", "--events"]),
    ],
)
def test_no_file_is_destroyed(sinkscope, here, no_model, arguments, fragments):
    (here / "folder").mkdir()
    (here / "t.txt").write_text("a text")
    (here / "link.txt").symlink_to("t.txt")
    (here / "hard.txt").hardlink_to(here / "t.txt")
    (here / "other.json").write_text('{"name": "somebody else\'s"}')
    before = listing(here)
    sinkscope("profile", "demo:llm", *arguments).refused(*fragments)
    assert listing(here) == before


def test_a_model_is_no_output(sinkscope, here, no_model):
    (here / "model.gguf").write_bytes(b"GGUF")
    sinkscope("profile", "model.gguf", "--events", "model.gguf").refused("--events and MODEL are one file")
    assert (here / "model.gguf").read_bytes() == b"GGUF"


def test_files_of_ones_own_may_be_written_again(here):
    from sinkscope.cli.events import EventLog
    from sinkscope.cli.places import check_profile

    path = small_profile().save(here / "p.json")
    check_profile(path, "-o")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": "9.0"}))
    check_profile(path, "-o")
    (here / "empty").touch()
    check_profile(here / "empty", "-o")
    for _ in range(2):
        EventLog("empty").started()
    assert len((here / "empty").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["profile", "demo:llm", "-o", "n" * 260], ["File name too long", "-o"]),
        (["profile", "demo:llm", "--run", "n" * 260], ["File name too long", "--run"]),
        (["profile", "demo:llm", "--run", "n" * 251], ["File name too long", "--run"]),
        (["profile", "demo:llm", "--texts", "n" * 260], ["File name too long", "--texts"]),
        (["profile", "demo:llm", "--name", "n" * 257], ["--name", "257 characters", "256"]),
        (["profile", "demo:llm", "--name", "\udcff"], ["--name", "UTF-8"]),
        (["discover", "run.h5", "--name", "n" * 257], ["--name", "257 characters", "256"]),
        (["profile", "demo:llm", "--seed", 2**63], ["--seed", "range"]),
        (["profile", "demo:llm", "--samples", 2**70], ["--samples", "range"]),
        (["profile", "demo:llm", "--tokens", 2**63], ["--tokens", "range"]),
        (["profile", "demo:llm", "--keep", "none", "--causal"], ["--keep none", "--causal"]),
        (["profile", "demo:llm", "--keep", "none", "--plots", "p"], ["--keep none", "--plots"]),
    ],
)
def test_what_no_run_could_use_is_refused_before_it(sinkscope, here, no_model, arguments, fragments):
    sinkscope(*arguments).refused(*fragments)
    assert not list(here.iterdir())


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
        (["--batch", "in.jsonl", "--out", "text.png"], ["text.png exists already", "--resume", "--out"]),
        (["--batch", "in.jsonl", "--out", "text.png", "--resume"], ["cannot tell what made text.png", "--out"]),
        (["--batch", "in.jsonl", "--out", "in.jsonl", "--resume"], ["--out and --batch are one file, in.jsonl"]),
        (["--image", "picture.png", "--prompt", "What?", "--attention", "picture.png"], ["--attention and --image"]),
        (["--image", "a-edited.png", "--prompt", "What?", "--attention", "a.png"], ["--attention and --image"]),
        (["--batch", "in.jsonl", "--out", "no/out.jsonl"], ["no/out.jsonl", "no folder", "--out"]),
    ],
)
def test_apply_refuses_before_loading(sinkscope, here, picture, no_model, arguments, fragments):
    (here / "text.png").write_text("not a picture")
    (here / "cut.png").write_bytes(picture.read_bytes()[:60])
    (here / "broken.json").write_text('{"name": ')
    (here / "in.jsonl").write_text('{"image": "picture.png", "prompt": "What?"}\n{"image": \n')
    (here / "empty.jsonl").write_text("\n")
    (here / "a-edited.png").write_bytes(picture.read_bytes())
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
    for name in ("run.h5", "text.txt"):
        (here / name).write_bytes(b"precious")
    sinkscope("discover", "run.h5", "-o", "run.h5").refused("-o and RUN.h5 are one file, run.h5")
    sinkscope("discover", "run.h5", "-o", "text.txt").refused("text.txt is there and is no profile", "-o")
    assert listing(here) == {str(here / name): b"precious" for name in ("run.h5", "text.txt")}


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
