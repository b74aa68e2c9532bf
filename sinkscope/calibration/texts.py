"""Calibration texts: the embedded ones, and readers for the user's own."""

import json
import os
import re
from importlib.resources import files
from pathlib import Path

from sinkscope.calibration.lines import parse_objects, read_utf8
from sinkscope.calibration.samples import Sample
from sinkscope.errors import InputError

# Paragraphs are joined up to this length, so that most samples have many later tokens that can attend to earlier ones.
PIECE_CHARACTERS = 600


def default_texts() -> list[Sample]:
    """The embedded texts: prose in nine languages, code, tables, numbers, dialogue, legal text and more.

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
        A ``.jsonl`` file with one object with a "text" field per line; or any other file as plain text, cut at empty
        lines into pieces of about 600 characters; or a folder of ``.txt`` and ``.jsonl`` files, taken by name.

    Returns
    -------
    list of Sample
        At least one.

    Raises
    ------
    InputError
        If the path is missing, holds no text, is not UTF-8, or has a malformed line.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in (".txt", ".jsonl"))
        if not found:
            raise InputError(f"the folder {path} holds no .txt or .jsonl files; give a folder or file with texts")
        samples = [sample for entry in found for sample in _read_file(entry)]
    else:
        samples = _read_file(path)
    if not samples:
        raise InputError(f"{path} holds no text; give a file with at least one paragraph")
    return samples


def _read_file(path: Path) -> list[Sample]:
    content = read_utf8(path, "the texts ")
    if path.suffix.lower() == ".jsonl":
        return _parse_lines(path, content)
    return [Sample(text=piece) for piece in _pieces(content)]


def _parse_lines(path: Path, content: str) -> list[Sample]:
    samples = []
    for number, entry in parse_objects(path, content):
        text = entry.get("text")
        if not isinstance(text, str):
            raise InputError(f'line {number} of {path} has no "text" field with a string; write {{"text": "..."}}')
        if text.strip():
            samples.append(Sample(text=text))
    return samples


def _pieces(content: str) -> list[str]:
    pieces: list[str] = []
    for paragraph in re.split(r"\r?\n[ \t]*\r?\n", content):
        text = paragraph.strip("\r\n")
        if not text.strip():
            continue
        if pieces and len(pieces[-1]) + len(text) <= PIECE_CHARACTERS:
            pieces[-1] += "\n\n" + text
        else:
            pieces.append(text)
    return pieces
