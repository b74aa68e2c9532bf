"""The causal check as part of a profile, from Python and from the command line."""

import json
from pathlib import Path

import pytest
from causal_models import SINK, make_llama, make_texts

from sinkscope.backbone.loading import LoadedModel
from sinkscope.causal import CausalSettings
from sinkscope.cli.main import run
from sinkscope.pipeline import profile_model
from sinkscope.profile import Profile, read_profile

QUICK = CausalSettings(texts=4, draws=2, resamples=100)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [sample.text or "" for sample in make_texts(40, 120)]


@pytest.fixture(scope="module")
def profile(llama: LoadedModel, texts: list[str]) -> Profile:
    return profile_model(llama, texts=texts, causal=QUICK)


def test_a_profile_carries_its_check(profile: Profile, tmp_path: Path) -> None:
    """Discovery finds both planted dimensions, for both are massive on tokens that draw attention."""
    assert SINK in profile.dims
    causal = profile.evidence.causal
    assert causal is not None
    assert causal["separates"] is True
    assert [(band["first_layer"], band["last_layer"]) for band in causal["bands"]] == [
        (band.first_layer, band.last_layer) for band in profile.bands
    ]
    assert read_profile(profile.save(tmp_path / "profile.json")) == profile


def test_it_is_done_on_request_only(llama: LoadedModel, texts: list[str], profile: Profile) -> None:
    done: list[tuple[int, int]] = []
    plain = profile_model(llama, texts=texts, causal_progress=lambda *state: done.append(state))
    assert plain.evidence.causal is None
    assert done == []
    assert plain.dims == profile.dims


def test_the_command_line_checks_too(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = make_llama()
    loaded.model.save_pretrained("model")
    loaded.tokenizer.save_pretrained("model")
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert run(["profile", "./model", "--texts", "texts.jsonl", "--causal", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["evidence"]["causal"]["status"] == "tested"
    assert "causal check: " in captured.err
    saved = read_profile(tmp_path / "model.profile.json")
    assert saved.evidence.causal is not None
    assert saved.evidence.causal["settings"]["seed"] == 0
