"""Finding profiles: by path, name and model id, in the user's folder and in the packaged registry."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sinkscope.errors import InputError, ProfileError
from sinkscope.profile import Backbone, Profile, Provenance, SinkDimension
from sinkscope.registry import list_profiles, load_profile, packaged_folder, user_folder


def make(name: str, dim: int = 3, models: tuple[str, ...] = ()) -> Profile:
    return Profile(
        name=name,
        verdict="sinks",
        reason="made for a test",
        backbone=Backbone(model_type="llama", hidden_size=8, num_layers=2),
        models=list(models),
        sink_dimensions=[SinkDimension(dim=dim)],
        provenance=Provenance(kind="measured"),
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the user's own."""
    place = tmp_path / "own"
    place.mkdir()
    monkeypatch.setenv("SINKSCOPE_PROFILES", str(place))
    return place


def test_packaged_profiles_by_name_and_model_id(folder: Path) -> None:
    assert load_profile("llava-1.5-7b").dims == (2533, 1415)
    assert load_profile("llava-hf/llava-1.5-7b-hf").name == "llava-1.5-7b"
    assert load_profile("LLaVA-HF/llava-1.5-7b-HF").name == "llava-1.5-7b"
    assert load_profile("Llama-2-7B").name == "llama-2-7b"


def test_by_path(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("anything").save(tmp_path / "other.json")
    assert load_profile(path).name == "anything"
    assert load_profile(str(path)).name == "anything"
    monkeypatch.chdir(tmp_path)
    assert load_profile("other.json").name == "anything"
    assert load_profile("./other.json").name == "anything"


def test_the_users_profile_comes_first(folder: Path) -> None:
    make("llama-2-7b", dim=7).save(folder / "llama-2-7b.json")
    assert load_profile("llama-2-7b").dims == (7,)
    assert load_profile("meta-llama/Llama-2-7b-hf").dims == (2533, 1415)
    make("mine", models=("meta-llama/Llama-2-7b-hf",)).save(folder / "mine.json")
    assert load_profile("meta-llama/Llama-2-7b-hf").name == "mine"


def test_a_local_model_folder_does_not_hide_the_id(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meta-llama" / "Llama-2-7b-hf").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_profile("meta-llama/Llama-2-7b-hf").name == "llama-2-7b"


def test_unknown_names_come_with_suggestions(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"no profile named 'llava-1\.5-7'; did you mean llava-1\.5-7b or .*\? available: .*mistral-7b"
    ):
        load_profile("llava-1.5-7")
    with pytest.raises(InputError, match=r"did you mean llava-1\.5-13b or llava-1\.5-7b"):
        load_profile("llava")
    with pytest.raises(InputError, match=r"did you mean meta-llama/Llama-2-7b-hf"):
        load_profile("meta-llama/Llama-2-7b")
    with pytest.raises(InputError) as caught:
        load_profile("zzzzzzzz")
    assert "did you mean" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(folder: Path) -> None:
    with pytest.raises(ProfileError, match=r"cannot read profile nowhere/x\.json: there is no such file"):
        load_profile("nowhere/x.json")


def test_ambiguity_names_the_candidates(folder: Path) -> None:
    make("first", models=("a/b",)).save(folder / "first.json")
    make("second", models=("a/b",)).save(folder / "second.json")
    with pytest.raises(InputError, match=r"several profiles: first \(.*first\.json\), second \(.*second\.json\)"):
        load_profile("a/b")
    make("first").save(folder / "third.json")
    with pytest.raises(InputError, match="several profiles"):
        load_profile("first")


def test_exact_case_wins_over_another(folder: Path) -> None:
    make("Toy", dim=1).save(folder / "a.json")
    make("toy", dim=2).save(folder / "b.json")
    assert load_profile("toy").dims == (2,)
    assert load_profile("Toy").dims == (1,)
    with pytest.raises(InputError, match="several profiles"):
        load_profile("TOY")


def test_a_broken_file_is_listed_with_its_error_and_breaks_nothing_else(folder: Path) -> None:
    (folder / "broken.json").write_text('{"name": NaN}')
    make("good").save(folder / "good.json")
    (folder / "schema.json").write_text("{}")
    (folder / "notes.txt").write_text("not a profile")
    own = [entry for entry in list_profiles() if entry.origin == "user"]
    assert [(entry.name, entry.profile is None) for entry in own] == [("broken", True), ("good", False)]
    assert "not a finite number" in str(own[0].error)
    assert load_profile("good").name == "good"
    with pytest.raises(ProfileError, match="not a finite number"):
        load_profile("broken")


def test_list_names_origin_and_path(folder: Path) -> None:
    make("mine").save(folder / "mine.json")
    entries = list_profiles()
    assert entries[0].origin == "user"
    assert entries[0].path == folder / "mine.json"
    packaged = [entry for entry in entries if entry.origin == "packaged"]
    assert {"llama-2-7b", "llava-1.5-7b", "qwen2-vl-7b"} <= {entry.name for entry in packaged}
    assert [entry.name for entry in packaged] == sorted(entry.name for entry in packaged)
    assert all(entry.path.parent == packaged_folder() for entry in packaged)


def test_user_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SINKSCOPE_PROFILES", str(tmp_path / "not there yet"))
    assert user_folder() == tmp_path / "not there yet"
    assert all(entry.origin == "packaged" for entry in list_profiles())
    monkeypatch.delenv("SINKSCOPE_PROFILES")
    assert user_folder().parts[-2:] == ("sinkscope", "profiles")


def test_a_name_in_a_path_is_never_followed_out_of_the_registry(folder: Path, tmp_path: Path) -> None:
    make("outside").save(tmp_path / "outside.json")
    with pytest.raises(InputError, match="no profile named"):
        load_profile("../outside")


def test_loading_a_profile_imports_no_torch() -> None:
    code = "import sys, sinkscope; sinkscope.load_profile('llama-2-7b'); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert run.stdout.strip() == "False"


def test_export_writes_the_schema(tmp_path: Path) -> None:
    from sinkscope.profile import json_schema
    from sinkscope.registry.export_schema import main

    assert main([str(tmp_path / "schema.json")]) == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == json_schema()
