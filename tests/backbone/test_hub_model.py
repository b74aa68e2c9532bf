"""Models of the hub, from a stand-in on this machine: profiled by name and revision, predicted by byte ranges."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_stand_in import Outcome, Repository, save_tiny_llama, serve_hub

from sinkscope.store.reader import RunReader

COMMIT = Repository.commit
VOCABULARY = 60_000
"""Most of the checkpoint is the embedding, which predicting does not need."""
CASES: dict[str, tuple[str, list[str]]] = {
    "predicted": ("predict", ["some/other", "--json"]),
    "profiled": ("profile", ["some/tiny", "--revision", "v1.0", "--json"]),
    "resumed": ("profile", ["some/tiny", "--revision", "v1.0", "--resume"]),
    "newest": ("profile", ["some/tiny"]),
    "another revision": ("profile", ["some/tiny", "--resume"]),
    "missing": ("profile", ["some/nothing"]),
    "revision": ("profile", ["some/tiny", "--revision", "v9"]),
    "gated": ("profile", ["some/gated"]),
    "stops": ("profile", ["some/stops"]),
    "predict missing": ("predict", ["some/nothing"]),
    "predict gated": ("predict", ["some/gated"]),
    "predict stops": ("predict", ["some/stops"]),
}


@dataclass(frozen=True)
class Answers:
    """What the commands gave, by case; bytes of files asked for to predict, and of the checkpoint; and their folder."""

    outcomes: dict[str, Outcome]
    asked_to_predict: int
    checkpoint: int
    out: Path


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder, out = (tmp_path_factory.mktemp(name) for name in ("model", "out"))
    save_tiny_llama(folder, VOCABULARY)
    (out / "texts.txt").write_text("\n\n".join(f"A text of some words, number {number}." * 20 for number in range(4)))
    options: dict[str, list[object]] = {"predict": []}
    options["profile"] = ["--texts", out / "texts.txt", "--run", out / "run.h5", "-o", out / "profile.json"]
    calls = {case: [command, *own, *options[command]] for case, (command, own) in CASES.items()}
    for case in ("missing", "revision", "gated", "stops"):
        calls[case] += ["--run", out / f"{case}.h5"]
    calls["newest"] += ["--run", out / "newest.h5", "-o", out / "newest.json"]
    repositories = {
        "models/some/tiny": Repository(folder, tags=("v1.0",)),
        "models/some/other": Repository(folder),
        "models/some/gated": Repository(folder, closed="gated"),
        "models/some/stops": Repository(folder, stops_after=2**19),
    }
    with serve_hub(repositories) as hub:
        outcomes = hub.commands(tmp_path_factory.mktemp("home"), *calls.values())
    size = (folder / "model.safetensors").stat().st_size
    return Answers(dict(zip(calls, outcomes, strict=True)), hub.covered("models/some/other"), size, out)


def test_predicting_fetches_a_small_part(answers: Answers) -> None:
    outcome = answers.outcomes["predicted"]
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["sink_dimensions"] == []
    assert 0 < answers.asked_to_predict < 0.05 * answers.checkpoint


def test_a_profile_names_model_and_revision(answers: Answers) -> None:
    outcome = answers.outcomes["profiled"]
    assert outcome.code == 0, outcome.err
    profile = json.loads((answers.out / "profile.json").read_text())
    assert (profile["provenance"]["source"], profile["provenance"]["revision"]) == ("some/tiny", "v1.0")
    assert profile["models"] == ["some/tiny"]
    with RunReader(answers.out / "run.h5") as reader:
        assert (reader.attributes.model_id, reader.attributes.revision) == ("some/tiny", "v1.0")
    assert answers.outcomes["resumed"].code == 0, answers.outcomes["resumed"].err
    answers.outcomes["another revision"].refused(f"run.h5 is a run with revision 'v1.0', not '{COMMIT}'")
    assert answers.outcomes["newest"].code == 0, answers.outcomes["newest"].err
    assert json.loads((answers.out / "newest.json").read_text())["provenance"]["revision"] == COMMIT


@pytest.mark.parametrize("case", ["missing", "revision", "gated", "stops"])
def test_a_hub_that_does_not_give_is_one_line(answers: Answers, case: str) -> None:
    answers.outcomes[case].refused(CASES[case][1][0])
    assert not (answers.out / f"{case}.h5").exists()


@pytest.mark.parametrize("case", ["predict missing", "predict gated", "predict stops"])
def test_so_it_is_where_weights_are_predicted(answers: Answers, case: str) -> None:
    answers.outcomes[case].refused(CASES[case][1][0])
