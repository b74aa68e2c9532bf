"""Datasets of the hub, streamed from a stand-in on this machine: what is fetched, what is recorded, what goes wrong."""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from hub_stand_in import Hub, Outcome, Repository, save_tiny_llama, serve_hub
from PIL import Image
from pyarrow import parquet

from sinkscope.calibration import dataset
from sinkscope.store.reader import RunReader

ROWS, CHARACTERS = 24_000, 1500
COMMIT = Repository.commit
CASES: dict[str, tuple[str, list[object]]] = {
    "parquet": ("some/corpus@v1.0", ["--samples", 20]),
    "again": ("some/corpus@v1.0", ["--samples", 20]),
    "lines": ("some/lines:en:train", ["--tokens", 2000]),
    "missing": ("some/nothing", []),
    "revision": ("some/corpus@v9", []),
    "config": ("some/corpus:fr", []),
    "split": ("some/lines:en:test", []),
    "gated": ("some/gated", []),
    "stops": ("some/stops", []),
    "stalls": ("some/stalls", []),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large Parquet dataset, a large one of JSON lines with configs, and one of pictures."""
    folder = tmp_path_factory.mktemp("hub")
    chooser = random.Random(0)
    letters = "".join(chooser.choices("abcdefghijklmnop ", k=100_000))
    texts = []
    for row in range(ROWS):
        start = chooser.randrange(len(letters) - CHARACTERS)
        texts.append(f"row {row} {letters[start : start + CHARACTERS]}")
    for name in ("corpus/data", "lines", "photos"):
        (folder / name).mkdir(parents=True)
    table = pyarrow.table({"url": [f"u{row}" for row in range(ROWS)], "text": texts})
    place = folder / "corpus/data/train-00000-of-00001.parquet"
    parquet.write_table(table, place, row_group_size=500, compression="none", use_dictionary=False)
    (folder / "lines/de.jsonl").write_text(json.dumps({"content": "ein Satz"}))
    (folder / "lines/en.jsonl").write_text("\n".join(json.dumps({"content": text}) for text in texts))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("de", "en"))
    (folder / "lines/README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for shade in range(6):
        Image.new("RGB", (20, 10 + shade), (shade * 40, 0, 0)).save(folder / f"photos/{shade}.png")
    captions = [{"file_name": f"{shade}.png", "text": f"What is {shade}?"} for shade in range(6)]
    (folder / "photos/metadata.jsonl").write_text("\n".join(map(json.dumps, captions)))
    return folder


@dataclass(frozen=True)
class Answers:
    """What the commands gave, by case, and what the hub was asked for."""

    outcomes: dict[str, Outcome]
    hub: Hub
    out: Path

    def source(self, case: str) -> str:
        """Where the calibration data of a run came from, as its file and its profile say."""
        outcome = self.outcomes[case]
        assert outcome.code == 0, outcome.err
        with RunReader(self.out / f"{case}.h5") as reader:
            source = str(reader.attributes.calibration["source"])
        profile = json.loads((self.out / f"{case}.json").read_text())
        assert profile["provenance"]["calibration"]["source"] == source
        return source


@pytest.fixture(scope="module")
def answers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """All commands in one process, because importing the libraries takes longer than they do."""
    repositories = {
        "datasets/some/corpus": Repository(folder / "corpus", tags=("v1.0",)),
        "datasets/some/lines": Repository(folder / "lines"),
        "datasets/some/gated": Repository(folder / "corpus", closed="gated"),
        "datasets/some/stops": Repository(folder / "corpus", stops_after=2**20),
        "datasets/some/stalls": Repository(folder / "corpus", stalls=True),
    }
    out = tmp_path_factory.mktemp("out")
    model = save_tiny_llama(folder / "model")
    calls: list[list[object]] = [
        ["profile", model, "--dataset", name, "--run", out / f"{case}.h5", "-o", out / f"{case}.json", *options]
        for case, (name, options) in CASES.items()
    ]
    with serve_hub(repositories) as hub:
        outcomes = hub.commands(tmp_path_factory.mktemp("home"), *calls)
        return Answers(dict(zip(CASES, outcomes, strict=True)), hub, out)


def test_of_a_large_parquet_file_a_small_part_is_fetched(answers: Answers, folder: Path) -> None:
    expected = f"dataset some/corpus@{COMMIT} (default, train), 20 rows of text"
    assert answers.source("parquet") == answers.source("again") == expected
    with RunReader(answers.out / "parquet.h5") as one, RunReader(answers.out / "again.h5") as other:
        assert one.attributes.calibration["fingerprint"] == other.attributes.calibration["fingerprint"]
    size = (folder / "corpus/data/train-00000-of-00001.parquet").stat().st_size
    # One or two times `READ_AHEAD`, to the ends of blocks and of row groups, and what is in the file about its columns.
    assert 0 < answers.hub.covered("datasets/some/corpus") < 6 * dataset.READ_AHEAD < 0.75 * size


def test_of_json_lines_the_first_part_is_fetched(answers: Answers, folder: Path) -> None:
    assert answers.source("lines").startswith(f"dataset some/lines@{COMMIT} (en, train), ")
    assert answers.source("lines").endswith(" rows of content")
    size = (folder / "lines/en.jsonl").stat().st_size
    # `datasets` reads 10 MiB at once, in blocks of 5: so much of a file of any size.
    assert 0 < answers.hub.covered("datasets/some/lines") < 16 * 2**20 < size / 2


@pytest.mark.parametrize(
    ("case", "fragments"),
    [
        ("missing", ("some/nothing", "doesn't exist on the Hub or cannot be accessed", "`hf auth login`")),
        ("revision", ("some/corpus@v9", "Revision 'v9' doesn't exist", "check the name and the revision")),
        ("config", ("some/corpus:fr", "'fr' not found", "name it as ID[@REVISION][:CONFIG[:SPLIT]]")),
        ("split", ("some/lines:en:test", "has no split test; there are train")),
        ("gated", ("some/gated", "gated dataset", "`hf auth login`")),
        ("stops", ("some/stops", "Server Disconnected", "check the network, and try again later")),
        ("stalls", ("some/stalls", "Server Disconnected", "check the network, and try again later")),
    ],
)
def test_a_hub_that_does_not_give_is_one_line(answers: Answers, case: str, fragments: tuple[str, ...]) -> None:
    answers.outcomes[case].refused("cannot read the dataset" if case != "split" else "the dataset", *fragments)
    assert not list(answers.out.glob(f"{case}.*"))


@pytest.mark.parametrize("case", ["stops", "stalls"])
def test_a_hub_that_goes_away_has_been_tried_again(answers: Answers, case: str) -> None:
    asked = Counter(entry for entry in answers.hub.asked if entry[0] == f"datasets/some/{case}")
    assert max(asked.values()) > dataset.RETRIES, "the libraries' own tries come on top"
    assert "Retrying" not in answers.hub.noise


PICTURES = """
from sinkscope.calibration import read_dataset
found = read_dataset(json.load(sys.stdin), samples=4, seed=1)
pictures = [sample.open_images()[0] for sample in found.samples]
print(json.dumps([found.source, [(picture.size, picture.getpixel((0, 0))[0]) for picture in pictures],
    [sample.prompt for sample in found.samples]]))
"""


def test_pictures_come_with_their_prompts(folder: Path, tmp_path: Path) -> None:
    with serve_hub({"datasets/some/photos": Repository(folder / "photos", tags=("v2",))}) as hub:
        source, pictures, prompts = hub.python(tmp_path, PICTURES, "some/photos@v2")
    assert source == f"dataset some/photos@{COMMIT} (default, train), 4 rows of image"
    shades = [red // 40 for _, red in pictures]
    assert len(set(shades)) == 4
    assert [size for size, _ in pictures] == [[20, 10 + shade] for shade in shades]
    assert prompts == [f"What is {shade}?" for shade in shades]


def test_the_libraries_are_as_patient_afterwards_as_before(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}')
    before = {name: value for name, value in vars(datasets.config).items() if name.startswith("STREAMING")}
    assert before["STREAMING_READ_MAX_RETRIES"] > dataset.RETRIES
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        real = dataset._open

        def opened(*arguments: Any) -> Any:
            seen.append((datasets.config.STREAMING_READ_MAX_RETRIES, datasets.config.STREAMING_READ_RETRY_INTERVAL))
            return real(*arguments)

        patch.setattr(dataset, "_open", opened)
        dataset.read_dataset(str(tmp_path / "texts.jsonl"))
    assert seen == [(dataset.RETRIES, dataset.RETRY_SECONDS)]
    assert before == {name: value for name, value in vars(datasets.config).items() if name.startswith("STREAMING")}
