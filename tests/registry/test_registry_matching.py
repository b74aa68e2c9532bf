"""Matching profiles to backbones, and the check of the registry."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sinkscope.errors import InputError, ProfileError
from sinkscope.profile import Backbone, Profile, Provenance, SinkDimension
from sinkscope.registry import (
    check_backbone,
    check_registry,
    list_profiles,
    load_profile,
    match,
    only_match,
    packaged_folder,
)

LLAVA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 32,
    "vocab_size": 32064,
}


def make(name: str, kind: str = "measured", **fields: Any) -> Profile:
    return Profile(
        name=name,
        verdict="sinks",
        reason="made for a test",
        backbone=Backbone(**{"model_type": "llama", "hidden_size": 8, "num_layers": 2, **fields}),
        sink_dimensions=[SinkDimension(dim=3)],
        provenance=Provenance.model_validate({"kind": kind, "source": "a test"}),
    )


def packaged() -> list[Profile]:
    return [entry.profile for entry in list_profiles() if entry.profile is not None]


def test_the_packaged_profiles_by_fingerprint() -> None:
    assert [profile.name for profile in match(LLAVA, packaged())] == ["llava-1.5-7b"]
    both = match({**LLAVA, "vocab_size": 32000}, packaged())
    assert [profile.name for profile in both] == ["llama-2-7b", "llava-1.5-7b"]
    assert [p.name for p in match({**LLAVA, "num_kv_heads": 8, "model_type": "mistral"}, packaged())] == ["mistral-7b"]
    assert match({**LLAVA, "num_layers": 33}, packaged()) == []


def test_unknown_fields_agree_with_anything() -> None:
    profiles = [make("known", num_heads=4), make("unknown")]
    found = match({"hidden_size": 8, "num_layers": 2, "num_heads": 4}, profiles)
    assert [profile.name for profile in found] == ["known", "unknown"]
    found = match({"hidden_size": 8, "num_layers": 2, "num_heads": 2}, profiles)
    assert [profile.name for profile in found] == ["unknown"]
    assert match(Backbone(model_type="llama", hidden_size=8, num_layers=2), profiles) == profiles


def test_measured_before_literature() -> None:
    profiles = [make("a", kind="literature"), make("b")]
    assert [profile.name for profile in match({"hidden_size": 8, "num_layers": 2}, profiles)] == ["b", "a"]


def test_only_match() -> None:
    assert only_match(LLAVA, packaged()).name == "llava-1.5-7b"
    with pytest.raises(InputError, match=r"several profiles fit .*: llama-2-7b, llava-1\.5-7b; choose one"):
        only_match({**LLAVA, "vocab_size": None}, packaged())
    with pytest.raises(InputError, match=r"no profile fits this backbone \(hidden_size 5, .*sinkscope profile"):
        only_match({**LLAVA, "hidden_size": 5}, packaged())
    with pytest.raises(InputError, match="needs num_layers"):
        only_match({"hidden_size": 5}, packaged())


def test_check_backbone_names_the_first_difference() -> None:
    check_backbone(load_profile("llava-1.5-7b"), LLAVA)
    with pytest.raises(ProfileError, match=r"hidden_size is 4096, the model's is 576; choose a profile that fits"):
        check_backbone(load_profile("llava-1.5-7b"), {**LLAVA, "hidden_size": 576, "num_layers": 30})
    with pytest.raises(ProfileError, match="vocab_size is 32000, the model's is 32064"):
        check_backbone(load_profile("llama-2-7b"), LLAVA)


def test_the_packaged_registry_is_in_order() -> None:
    assert [str(problem) for problem in check_registry()] == []


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(packaged_folder(), tmp_path / "profiles"))


def test_every_kind_of_problem_is_found(copied: Path) -> None:
    (copied / "llama-2-7b.json").rename(copied / "renamed.json")
    shutil.copy(copied / "mistral-7b.json", copied / "zebra.json")
    (copied / "broken.json").write_text("{")
    document = json.loads((copied / "qwen2-vl-7b.json").read_text())
    document["provenance"]["source"] = " "
    (copied / "qwen2-vl-7b.json").write_text(json.dumps(document))
    schema = json.loads((copied / "schema.json").read_text())
    schema["title"] = "Something else"
    (copied / "schema.json").write_text(json.dumps(schema))
    text = "\n".join(str(problem) for problem in check_registry(copied))
    assert "renamed.json: holds the profile 'llama-2-7b'" in text
    assert "zebra.json: a second profile with the name 'mistral-7b'" in text
    assert "broken.json: " in text
    assert "qwen2-vl-7b.json: a literature profile must name its source" in text
    assert "schema.json: differs" in text
    assert len(text.splitlines()) == 6  # zebra.json has two: its name is neither its own nor its file's.


def test_a_missing_schema_or_folder(copied: Path, tmp_path: Path) -> None:
    (copied / "schema.json").unlink()
    assert [str(problem) for problem in check_registry(copied)] == [
        "schema.json: missing or unreadable; write it with `python -m sinkscope.registry.export_schema`"
    ]
    assert "no such folder" in str(check_registry(tmp_path / "nothing")[0])
