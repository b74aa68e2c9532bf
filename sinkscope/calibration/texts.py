"""Calibration texts: the embedded ones, and readers for the user's own."""

import json
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from sinkscope.calibration.columns import read_parquet
from sinkscope.calibration.folders import files_in
from sinkscope.calibration.lines import parse_objects, read_lines
from sinkscope.calibration.samples import Sample
from sinkscope.errors import InputError

# Paragraphs are joined up to this length, so that most samples have many later tokens that can attend to earlier ones.
PIECE_CHARACTERS = 600

# A file without empty lines, such as one sentence per line, is cut at a line end after so many characters.
LONGEST_PARAGRAPH = 8192

SUFFIXES = (".txt", ".jsonl", ".parquet")


def default_texts() -> list[Sample]:
    """The embedded texts: prose in eight languages, code, tables, numbers, lists, dialogue, legal text and more.

    No passage occurs twice. All of them together have about 9,000 tokens in a vocabulary of 49,000. Written for this
    project, but for short pieces of old literature and law that are in the public domain.
    """
    content = files("sinkscope.calibration").joinpath("data/texts.jsonl").read_text(encoding="utf-8")
    return [Sample(text=json.loads(line)["text"]) for line in content.splitlines()]


def read_texts(path: str | os.PathLike[str]) -> list[Sample]:
    """Texts from a file or folder.

    Parameters
    ----------
    path : path
        A ``.jsonl`` file with one object with a "text" field per line; a ``.parquet`` file, of which the column "text"
        is read, or else the column with the longest strings; any other file as plain text, cut at empty lines into
        pieces of about 600 characters; or a folder of ``.txt``, ``.jsonl`` and ``.parquet`` files, taken by name, but
        for hidden ones.

    Returns
    -------
    list of Sample
        At least one.

    Raises
    ------
    InputError
        If the path is missing, holds no text, is not UTF-8, or has a malformed line; or for a ``.parquet`` file without
        pyarrow.
    """
    path = Path(path)
    if path.is_dir():
        found = files_in(path, SUFFIXES)
        if not found:
            raise InputError(
                f"the folder {path} holds no .txt, .jsonl or .parquet files; give a folder or file with texts"
            )
    else:
        found = [path]
    samples = [Sample(text=text) for entry in found for text in _read_file(entry)]
    if not samples:
        raise InputError(f"{path} holds no text; give a file with at least one paragraph")
    return samples


def _read_file(path: Path) -> Iterator[str]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(path)
    return _read_objects(path) if suffix == ".jsonl" else _pieces(path)


def _read_objects(path: Path) -> Iterator[str]:
    for number, entry in parse_objects(path, "the texts "):
        text = entry.get("text")
        if not isinstance(text, str):
            raise InputError(f'line {number} of {path} has no "text" field with a string; write {{"text": "..."}}')
        if text.strip():
            yield text


def _pieces(path: Path) -> Iterator[str]:
    piece = ""
    for paragraph in _paragraphs(path):
        if piece and len(piece) + len(paragraph) <= PIECE_CHARACTERS:
            piece += "\n\n" + paragraph
            continue
        if piece:
            yield piece
        piece = paragraph
    if piece:
        yield piece


def _paragraphs(path: Path) -> Iterator[str]:
    """Runs of lines that are not blank, without the last line end."""
    lines: list[str] = []
    characters = 0
    for _, line in read_lines(path, "the texts "):
        if line.strip():
            lines.append(line)
            characters += len(line)
        if lines and (not line.strip() or characters >= LONGEST_PARAGRAPH):
            yield "".join(lines).rstrip("\r\n")
            lines, characters = [], 0
    if lines:
        yield "".join(lines).rstrip("\r\n")
