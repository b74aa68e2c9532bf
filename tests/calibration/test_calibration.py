"""The embedded calibration data, and the readers of the user's own."""

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from sinkscope.calibration import (
    PictureBytes,
    Sample,
    default_images,
    default_samples,
    default_texts,
    fingerprint,
    read_images,
    read_texts,
)
from sinkscope.calibration.lines import LONGEST_LINE
from sinkscope.errors import InputError


def test_default_texts_are_many_varied_and_never_repeated() -> None:
    texts = [sample.text or "" for sample in default_texts()]
    assert len(texts) >= 50
    assert len(set(texts)) == len(texts)
    whole = "\n".join(texts)
    for part in (
        "„",
        "¿",
        "«",
        "春",
        "駅",
        "Все",
        "كان",
        "def ",
        "#include",
        "</html>",
        "\t",
        "|---",
        "SELECT",
        "3.14159",
    ):
        assert part in whole
    assert all(100 <= len(text.encode()) <= 1200 for text in texts)


def test_default_texts_cover_what_moves_sinks() -> None:
    """Languages, code, numbers, lists, dialogue, much punctuation: by what the texts hold, not by their labels."""
    texts = [sample.text or "" for sample in default_texts()]
    letters = Counter(unicodedata.name(character).split()[0] for character in "".join(texts) if character.isalpha())
    for script in ("LATIN", "CYRILLIC", "ARABIC", "CJK", "HIRAGANA"):
        assert letters[script] > 50, script
    words = [set(re.findall(r"[^\W\d_]+", text.lower())) for text in texts]
    for common in ({"the", "of", "and"}, {"der", "und", "die"}, {"le", "et", "les"}, {"el", "que", "una"}):
        assert any(common <= found for found in words), common

    def having(test: Callable[[str], float], least: float) -> int:
        return sum(test(text) >= least for text in texts)

    assert having(lambda text: sum(map(str.isdigit, text)) / len(text), 0.1) >= 5, "numbers"
    assert having(lambda text: sum(c in string.punctuation for c in text) / len(text), 0.12) >= 10, "punctuation"
    assert having(lambda text: len(re.findall(r"(?m)^\s*([-*•]|\d+[.)]) ", text)), 3) >= 2, "lists"
    assert having(lambda text: text.count('"') + len(re.findall(r"(?m)^\w[\w ]*[:.] ", text)), 6) >= 3, "dialogue"
    assert having(lambda text: len(re.findall(r"(?m)[;{}]$|^\s+\w|^(def|import|SELECT|use) ", text)), 5) >= 8, "code"


def test_default_images_are_seeded_and_varied() -> None:
    samples = default_images()
    assert len(samples) == 24
    assert fingerprint(samples) == fingerprint(default_images())
    assert fingerprint(samples) != fingerprint(default_images(seed=1))
    sizes = [picture.size for sample in samples for picture in sample.open_images()]
    assert all(96 <= side <= 224 for size in sizes for side in size)
    assert len({sample.prompt for sample in samples}) > 3
    assert len(default_samples(images=True)) == len(default_texts()) + 24
    assert default_samples(images=False) == default_texts()


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    assert fingerprint([Sample(text="ab"), Sample(text="c")]) != fingerprint([Sample(text="a"), Sample(text="bc")])
    picture = Image.new("RGB", (5, 4), "red")
    for name in ("one.png", "two.bmp"):
        picture.save(tmp_path / name)
    stored = [fingerprint([Sample(images=(tmp_path / name,), prompt="?")]) for name in ("one.png", "two.bmp")]
    assert stored[0] == stored[1] == fingerprint([Sample(images=(picture,), prompt="?")])
    assert stored[0] != fingerprint([Sample(images=(picture,), prompt="!")])
    in_memory = PictureBytes((tmp_path / "one.png").read_bytes(), "row 1")
    assert stored[0] == fingerprint([Sample(images=(in_memory,), prompt="?")])


def test_fingerprint_is_of_the_use_as_well() -> None:
    samples = default_texts()[:3]
    uses = [
        {},
        {"chat_template": True},
        {"chat_template": False},
        {"max_tokens": 100},
        {"max_tokens": 100, "seed": 1},
        {"max_tokens": 101},
        {"max_length": 128},
    ]
    prints = [fingerprint(samples, **use) for use in uses]
    assert len({*prints, fingerprint(samples[:2])}) == len(uses) + 1
    # The seed chooses nothing where all tokens are used.
    assert fingerprint(samples, seed=1) == fingerprint(samples, max_length=256) == prints[0]


def test_a_sample_is_either_text_or_pictures() -> None:
    for wrong in (Sample, lambda: Sample(text="a", images=(Image.new("RGB", (2, 2)),))):
        with pytest.raises(InputError, match="either a text or pictures"):
            wrong()
    with pytest.raises(InputError, match="half a character"):
        Sample(text="cut \ud83d")


def test_plain_text_is_cut_at_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n \r\n" + b"x" * 590 + b"\n\n\n" + b"y" * 700)
    assert [sample.text for sample in read_texts(path)] == ["one\r\ntwo\n\nthree", "x" * 590, "y" * 700]


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [{"text": "one\n\ntwo"}, {"text": "  "}, {"text": "three\u2028four", "more": 1}]
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    assert [sample.text for sample in read_texts(path)] == ["one\n\ntwo", "three\u2028four"]


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}')
    (tmp_path / "c.csv").write_text("not this")
    _table("d.parquet", text=["third", None, "fourth"], url=["https://a.example/long"] * 3)(tmp_path)
    assert [sample.text for sample in read_texts(tmp_path)] == ["first", "second", "third", "fourth"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for suffix in (".txt", ".png"):
        (tmp_path / f"._a{suffix}").write_bytes(b"\0\5\26\7")
        (tmp_path / f"sub{suffix}").mkdir()
    assert [sample.text for sample in read_texts(tmp_path)] == ["words"]
    assert [sample.images for sample in read_images(tmp_path)] == [(tmp_path / "a.png",)]


def test_only_the_column_of_texts_is_read_of_a_table(tmp_path: Path) -> None:
    late = pyarrow.array([10**12] * 40, pyarrow.timestamp("s"))  # A year that Python cannot hold.
    texts: list[object] = [None] * 30 + ["words"] * 10
    for name in ("text", "content"):
        path = _table(f"{name}.parquet", time=late, **{name: texts})(tmp_path)
        assert [sample.text for sample in read_texts(path)] == ["words"] * 10


def test_the_longest_strings_of_a_table_are_its_texts(tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "content": ["some words", "others"], "words": [2, 1]}
    assert [sample.text for sample in read_texts(_table("a.parquet", **columns)(tmp_path))] == columns["content"]


def test_a_file_without_empty_lines_is_cut_at_line_ends(tmp_path: Path) -> None:
    lines = [f"sentence number {number}" for number in range(2000)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    texts = [sample.text or "" for sample in read_texts(tmp_path / "a.txt")]
    assert len(texts) > 3
    assert max(map(len, texts)) < 9000
    assert "\n".join(texts).split("\n") == lines


def _write(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _table(name: str, **columns: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        parquet.write_table(pyarrow.table(columns), folder / name)
        return folder / name

    return make


@pytest.mark.parametrize(("make", "message"), [
    (lambda folder: folder / "missing.txt", "cannot read the texts .*missing.txt: No such file"),
    (lambda folder: folder, "holds no .txt, .jsonl or .parquet files"),
    (_write("a.txt", b" \n\n\t\n"), "holds no text"),
    (_write("a.txt", b"caf\xe9"), r"not UTF-8 \(byte 3\)"),
    (_write("a.txt", b"fine\n" + b"x" * 100 + b"\0\0"), "zero byte in line 2"),
    (_write("a.txt", b"fine\nx" + b"x" * LONGEST_LINE), "line 2 of .*a.txt has more than 16 MiB"),
    (_write("a.jsonl", b'{"text": "a"}\n{"text": "' + b"x" * LONGEST_LINE + b'"}'), "line 2 of .* more than 16 MiB"),
    (_write("a.jsonl", b'{"text": "a"}\n\n{"text": '), "line 3 of .*a.jsonl is not valid JSON"),
    (_write("a.jsonl", b'{"text": "a"}\n{"txt": "b"}'), 'line 2 of .* has no "text" field'),
    (_write("a.jsonl", b'["text"]'), 'line 1 of .* has no "text" field'),
    (_write("a.jsonl", b'{"text": 3}'), 'line 1 of .* has no "text" field'),
    (_write("a.jsonl", b"[" * 100000), "line 1 of .* is not valid JSON"),
    (_write("a.jsonl", b'{"text": "a"}\n{"text": "cut \\ud83d"}'), r"line 2 of .* \(the surrogate '\\ud83d'\)"),
    (_write("a.jsonl", b""), "holds no text"),
    (_write("a.parquet", b"PAR1 and then nothing"), "cannot read the texts .*a.parquet"),
    (_table("a.parquet", number=[1, 2], flag=[True, False]), r"a.parquet hold no strings \(number, flag\)"),
    (_table("a.parquet", text=["", None, " "]), "holds no text"),
])  # fmt: skip
def test_texts_that_cannot_be_read(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_texts(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_pictures_and_their_prompts(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp"):
        Image.new("RGB", (9, 7), "blue").save(tmp_path / name)
    (tmp_path / "b.txt").write_text(" What is it? \n")
    (tmp_path / "prompts.jsonl").write_text('{"image": "c.webp", "prompt": "How many?"}\n')
    samples = read_images(tmp_path)
    assert [sample.images[0].name for sample in samples] == ["a.JPG", "b.png", "c.webp"]  # type: ignore[union-attr]
    assert [sample.prompt for sample in samples] == ["Describe the picture.", "What is it?", "How many?"]
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.JPG", "text": "blue"}\n{"file_name": "b.png", "box": []}\n'
    )
    assert [sample.prompt for sample in read_images(tmp_path)] == ["blue", "What is it?", "How many?"]
    assert [sample.prompt for sample in read_images(tmp_path / "b.png")] == ["What is it?"]


@pytest.mark.parametrize(("name", "content", "message"), [
    (None, b"", "holds no pictures"),
    ("a.png", b"not a picture", "cannot read the picture .*a.png"),
    ("prompts.jsonl", b'{"image": "ok.png"}', 'line 1 of .* needs strings "image" and "prompt"'),
    ("prompts.jsonl", b"nonsense", "line 1 of .* is not valid JSON"),
    ("prompts.jsonl", b'{"image": "zz.png", "prompt": "?"}', "names zz.png, which is not in the folder"),
    ("prompts.jsonl", b"\xff", "not UTF-8"),
    ("prompts.jsonl", b'{"image": "ok.png", "prompt": "\\udc00?"}', "line 1 of .* holds half a character"),
    ("metadata.jsonl", b'{"file_name": "ok.png", "text": 3}', 'line 1 of .* needs strings "file_name" and "text"'),
    ("metadata.jsonl", b'{"file_name": "cats/ok.png", "text": "?"}', "names cats/ok.png, which is not in the folder"),
    ("ok.txt", b"\xff", "not UTF-8"),
])  # fmt: skip
def test_pictures_that_cannot_be_read(tmp_path: Path, name: str | None, content: bytes, message: str) -> None:
    if name is not None:
        (tmp_path / name).write_bytes(content)
        Image.new("RGB", (4, 4)).save(tmp_path / "ok.png")
    with pytest.raises(InputError, match=message) as caught:
        read_images(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_truncated_picture_and_a_missing_folder(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 80).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot read the picture"):
        read_images(tmp_path)
    with pytest.raises(InputError, match="no pictures at"):
        read_images(tmp_path / "nowhere")
