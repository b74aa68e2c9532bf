"""Datasets, streamed from local folders and files: columns, choice, limits, and what is wrong with them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from sinkscope.calibration import Sample, dataset, gather, read_dataset, read_texts
from sinkscope.errors import InputError

ROWS = 300


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two splits of texts beside shorter columns, one of the texts very long."""
    folder = tmp_path / "corpus"
    (folder / "data").mkdir(parents=True)
    for split, rows in (("train", ROWS), ("test", 5)):
        texts = [f"{split} text number {row}" if row % 10 else "" for row in range(rows)]
        texts[1] += "!" * 100_000
        table = pyarrow.table({"url": [f"u{row}" for row in range(rows)], "content": texts, "score": range(rows)})
        parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of pictures as `datasets` reads it."""
    folder = tmp_path / "photos"
    (folder / "train").mkdir(parents=True)
    for shade in range(6):
        Image.new("RGB", (20, 10 + shade), (shade * 40, 0, 0)).save(folder / "train" / f"{shade}.png")
    lines = [{"file_name": f"{shade}.png", "text": f"What is {shade}?"} for shade in range(6)]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_texts_are_a_seeded_choice_of_rows(corpus: Path) -> None:
    found = read_dataset(str(corpus), samples=20, seed=3)
    assert not found.pictures
    assert found.source == "dataset corpus (default, train), 20 rows of content"
    texts = [sample.text or "" for sample in found.samples]
    assert len(set(texts)) == 20
    assert all(text.startswith("train text number ") for text in texts)
    assert read_dataset(str(corpus), samples=20, seed=3) == found
    assert read_dataset(str(corpus), samples=20, seed=4).samples != found.samples
    assert len(read_dataset(str(corpus)).samples) == dataset.DEFAULT_ROWS
    everything = [sample.text or "" for sample in read_dataset(str(corpus), samples=10_000).samples]
    assert len(everything) == ROWS - ROWS // 10, "empty rows are left out"
    assert max(map(len, everything)) == dataset.ROW_CHARACTERS


def test_reading_stops_after_enough_tokens(corpus: Path) -> None:
    few = read_dataset(str(corpus), tokens=50)
    characters = [len(sample.text or "") for sample in few.samples]
    assert sum(characters) >= 50 * dataset.TOKEN_CHARACTERS > sum(characters[:-1])


def test_only_what_is_used_is_read(monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    opened = []
    real = datasets.load_dataset_builder

    def endless(*arguments: object, **options: object) -> object:
        builder = real(*arguments, **options)

        def rows() -> object:
            number = 0
            while True:
                opened.append(number)
                yield {"text": "" if number > 5000 else f"row {number}"}
                number += 1

        builder.as_streaming_dataset = lambda: {"train": datasets.IterableDataset.from_generator(rows)}
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", endless)
    assert len(read_dataset(str(corpus), samples=4).samples) == 4
    assert len(opened) < 100
    opened.clear()
    assert len(read_dataset(str(corpus), tokens=10**9).samples) == 5001, "no more than empty rows follow"
    assert len(opened) < 5001 + 2 * dataset.SHUFFLED_ROWS + dataset.EMPTY_ROWS


@pytest.mark.parametrize("place", ["corpus:default:test", "corpus::test", "corpus/data/test-00000-of-00001.parquet"])
def test_splits_configs_and_files(corpus: Path, place: str) -> None:
    found = read_dataset(f"{corpus.parent}/{place}", samples=9)
    assert len(found.samples) == 4
    assert all((sample.text or "").startswith("test text") for sample in found.samples)


def test_a_folder_of_several_kinds_says_which_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    table = pyarrow.table(
        {"text": [None] * 20 + ["words"], "time": pyarrow.array([10**12] * 21, pyarrow.timestamp("s"))}
    )
    parquet.write_table(table, folder / "a.parquet")
    (folder / "._a.txt").write_bytes(b"\0\5\26\7")
    assert read_dataset(str(folder)).source == "dataset mixed (default, train), 1 rows of text"
    (folder / "b.txt").write_text("other words")
    assert read_dataset(str(folder)).source == "dataset mixed (default, train, only its .parquet files), 1 rows of text"


def test_pictures_with_their_prompts(photos: Path, tmp_path: Path) -> None:
    found = read_dataset(str(photos), samples=4, seed=1)
    assert found.pictures
    for sample in found.samples:
        shade = sample.open_images()[0].getpixel((0, 0))[0] // 40  # type: ignore[index]
        assert sample.prompt == f"What is {shade}?"
    # The same pictures inside a table, several in a row, without prompts.
    rows = {"images": [[{"bytes": path.read_bytes(), "path": None} for path in sorted(photos.glob("train/*.png"))]]}
    features = datasets.Features({"images": datasets.List(datasets.Image())})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "table.parquet"))
    (sample,) = read_dataset(str(tmp_path / "table.parquet")).samples
    assert [picture.size for picture in sample.open_images()] == [(20, 10 + shade) for shade in range(6)]
    assert sample.prompt == "Describe the picture."


def test_a_dataset_takes_the_place_of_texts_or_pictures(corpus: Path, photos: Path, tmp_path: Path) -> None:
    given = gather(dataset=str(corpus), samples=3)
    assert given.pictures is None
    assert [sample.text for sample in given.samples(pictures=False)] == [sample.text for sample in given.texts or ()]
    given = gather(texts=["a"], dataset=str(photos), samples=3)
    assert given.source(pictures=True) == "given texts and dataset photos (default, train), 3 rows of image"
    assert [bool(sample.images) for sample in given.samples(pictures=True)] == [False, True, True, True]
    with pytest.raises(InputError, match="holds texts, and --texts gives others"):
        gather(texts=["a"], dataset=str(corpus))
    with pytest.raises(InputError, match="holds pictures, and --images gives others"):
        gather(images=[Sample(images=(Image.new("RGB", (4, 4)),))], dataset=str(photos))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corpus::nope", "has no split nope; there are .*train"),
        ("corpus:nope", "'nope' not found"),
        ("corpus:a:b:c", "names no dataset"),
        ("empty", "cannot read the dataset"),
        ("numbers.jsonl", r"neither texts nor pictures \(number\)"),
        ("blank.jsonl", "hold nothing in text"),
        ("broken.jsonl", "cannot read the dataset"),
        ("broken", "cannot read the picture row [12] of"),
        ("notes.md", "is no dataset file"),
    ],
)
def test_datasets_that_cannot_be_used(corpus: Path, photos: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "numbers.jsonl").write_text('{"number": 1}\n{"number": 2}\n')
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n' * 3)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": ')
    (tmp_path / "notes.md").write_text("notes")
    features = datasets.Features({"image": datasets.Image()})
    pictures = [{"bytes": b"no picture", "path": None}] * 2
    (tmp_path / "broken").mkdir()
    datasets.Dataset.from_dict({"image": pictures}, features=features).to_parquet(str(tmp_path / "broken/a.parquet"))
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(f"{tmp_path}/{name}")
    assert "\n" not in str(caught.value)


def test_a_dataset_of_the_hub_is_asked_for_by_revision_and_told_by_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def builder(*arguments: object, **options: object) -> object:
        asked.append((arguments, options))
        rows = datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset()
        return SimpleNamespace(
            base_path="hf://datasets/some/corpus@0123abcd/",
            config=SimpleNamespace(name="en"),
            as_streaming_dataset=lambda: {"validation": rows, "test": rows},
        )

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    found = read_dataset("some/corpus@main:en")
    assert asked == [(("some/corpus", "en"), {"revision": "main"})]
    assert found.source == "dataset some/corpus@0123abcd (en, validation), 1 rows of text"
    assert read_dataset("some/corpus::test").source == "dataset some/corpus@0123abcd (en, test), 1 rows of text"
    assert asked[1] == (("some/corpus", None), {"revision": None})


def test_the_hub_out_of_reach_is_one_line() -> None:
    with pytest.raises(InputError, match="cannot read the dataset nobody/nothing@main:en") as caught:
        read_dataset("nobody/nothing@main:en")
    assert "\n" not in str(caught.value)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    for package in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"needs datasets, which is not installed; pip install 'sinkscope\[data\]'"):
        read_dataset(str(corpus))
    with pytest.raises(InputError, match=r"needs pyarrow, .* pip install 'sinkscope\[data\]'"):
        read_texts(next(corpus.rglob("*.parquet")))
