"""Questions about pictures in a file of JSON lines."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sinkscope.answering.inputs import check_picture
from sinkscope.errors import InputError
from sinkscope.files import check_readable

Identity: TypeAlias = str | int

PICTURE_FIELDS = ("image", "images")
PROMPT_FIELDS = ("prompt", "question")
ANSWER_FIELDS = ("answer", "plain")
EXAMPLE = '{"image": "...", "prompt": "..."}'


@dataclass(frozen=True)
class Question:
    """One usable line.

    Attributes
    ----------
    line : int
        Its number, from 1.
    identity : str or int
        Its ``id``; the line's number where it has none.
    images : tuple of Path
        Its pictures, in the order of their placeholders.
    prompt : str
        What is asked.
    fields : mapping
        The whole line as it was read.
    """

    line: int
    identity: Identity
    images: tuple[Path, ...]
    prompt: str
    fields: Mapping[str, Any]

    def answered(self, answer: str, plain: str | None) -> bytes:
        """The line of the answers: the question's own fields, then the answers with VAR and without."""
        row = {"id": self.identity} | {name: value for name, value in self.fields.items() if name != "id"}
        row |= {"answer": answer, "plain": plain}
        # An answer may end amid a character, which leaves half of it: no UTF-8, but JSON can escape it.
        try:
            return json.dumps(row, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            return json.dumps(row).encode() + b"\n"


@dataclass(frozen=True)
class Skipped:
    """A line without an answer, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class QuestionFile:
    """The questions of one file.

    Attributes
    ----------
    path : Path
    digest : str
        SHA-256 of the file, as hexadecimal digits.
    questions : tuple of Question
        At least one.
    skipped : tuple of Skipped
        Lines that cannot be used.
    """

    path: Path
    digest: str
    questions: tuple[Question, ...]
    skipped: tuple[Skipped, ...] = ()

    def named(self, skipped: Skipped) -> str:
        """One line for a person about a line that was skipped."""
        return f"line {skipped.line} of {self.path}: {skipped.reason}"


def read_questions(
    path: Path,
    *,
    keep_going: bool = False,
    answered: Collection[Identity] = (),
    report: Callable[[str], None] | None = None,
) -> QuestionFile:
    """Read questions, one JSON object a line, and check that each can be asked.

    A line holds ``image`` (or ``images``): a path or a list of paths, relative to the file; ``prompt`` (or
    ``question``); optionally ``id``: text or a whole number, unlike all others; and any fields besides, which go into
    the line of its answer. A byte order mark, carriage returns and blank lines are passed over.

    Parameters
    ----------
    keep_going : bool
        Skip lines that cannot be used, instead of stopping at the first.
    answered : collection of str or int
        Ids that are answered already, so that their pictures are needed no more.
    report : callable, optional
        Called with one line of text for each line that is skipped.

    Raises
    ------
    InputError
        If the file cannot be read or holds no usable question. Without `keep_going` also at the first line that cannot
        be used; its number is named.
    """
    try:
        check_readable(path)
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a file of JSON lines") from error
    reader = _Reader(path.parent, answered)
    questions: list[Question] = []
    skipped: list[Skipped] = []
    # Not splitlines: a lone carriage return or U+2028 ends no line of JSON.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            questions.append(reader.read(number, line))
        except InputError as error:
            skipped.append(Skipped(number, " ".join(str(error).split())))
            message = f"line {number} of {path}: {skipped[-1].reason}"
            if not keep_going:
                raise InputError(message) from error
            if report is not None:
                report(message)
    if not questions:
        which = "usable question" if skipped else "question"
        raise InputError(f"{path} holds no {which}; write one {EXAMPLE} a line")
    return QuestionFile(path, hashlib.sha256(content).hexdigest(), tuple(questions), tuple(skipped))


class _Reader:
    """Reads one line after the other. Every method raises `InputError` with the reason alone."""

    def __init__(self, folder: Path, answered: Collection[Identity]) -> None:
        self._folder, self._answered = folder, answered
        self._lines: dict[Identity, int] = {}
        self._checked: set[Path] = set()

    def read(self, number: int, line: bytes) -> Question:
        row = _decoded(line)
        # First of all, so that the same line owns an id whatever else is wrong with it today.
        identity = self._identity(number, row)
        taken = [name for name in ANSWER_FIELDS if name in row]
        if taken:
            raise InputError(f'"{taken[0]}" is where the answer is written; rename that field, say to "label"')
        images = tuple(self._folder / name for name in _picture_names(row))
        prompt = next((row[field] for field in PROMPT_FIELDS if row.get(field) is not None), "")
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"asks nothing; write {EXAMPLE}")
        if identity not in self._answered:
            for image in images:
                # Sets often ask much about each picture.
                if image not in self._checked:
                    check_picture(image)
                    self._checked.add(image)
        return Question(number, identity, images, prompt, row)

    def _identity(self, number: int, row: Mapping[str, Any]) -> Identity:
        identity = row.get("id")
        if identity is None:
            identity = number
        if not isinstance(identity, str | int) or isinstance(identity, bool):
            raise InputError('"id" must be a text or a whole number')
        first = self._lines.setdefault(identity, number)
        if first != number:
            raise InputError(f"has the same id as line {first}, {json.dumps(identity)}; give each line its own")
        return identity


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
        # What cannot be written again, such as NaN or half a character, could not go into the line of the answer.
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise InputError("holds half of a character (a lone surrogate)") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f"not a JSON object; write {EXAMPLE}")
    return row


def _picture_names(row: Mapping[str, Any]) -> list[str]:
    given = [row[field] for field in PICTURE_FIELDS if row.get(field) is not None]
    if len(given) > 1:
        raise InputError('has both "image" and "images"; keep one of them')
    names = given[0] if given and isinstance(given[0], list) else given
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(f"names no picture; write {EXAMPLE}, or a list of pictures")
    return names
