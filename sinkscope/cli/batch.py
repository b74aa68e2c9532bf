"""Many questions about pictures: JSON lines in, JSON lines out."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkscope.cli.output import ProgressBar
from sinkscope.errors import InputError

if TYPE_CHECKING:
    from sinkscope.backbone.loading import LoadedModel
    from sinkscope.profile import Profile

PROMPT_FIELDS = ("prompt", "question")


@dataclass(frozen=True)
class Question:
    """One line of the input: its id (the line's number where it has none), its picture, and the prompt."""

    identity: Any
    image: Path
    prompt: str


def read_questions(path: Path) -> list[Question]:
    """Read questions, one JSON object a line: ``image``, ``prompt`` or ``question``, and optionally ``id``.

    Pictures are looked up beside the file where their paths are relative.

    Raises
    ------
    InputError
        Names the first line that cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"cannot read {path}: {reason}; give a file of JSON lines") from error
    questions = [_question(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        raise InputError(f'{path} holds no question; write one {{"image": "...", "prompt": "..."}} a line')
    return questions


def answer_batch(
    loaded: "LoadedModel", profile: "Profile", questions: list[Question], out: Path, settings: dict[str, Any]
) -> dict[str, int]:
    """Answer `questions` one by one and write `out`, whole or not at all.

    Returns
    -------
    dict
        ``questions``, and ``changed``: how many answers VAR changed (where they were compared).
    """
    from sinkscope.answering import answer, read_picture

    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    changed = 0
    try:
        with partial.open("w", encoding="utf-8") as file, ProgressBar() as bar:
            progress = bar.stage("questions")
            for done, question in enumerate(questions, start=1):
                answers = answer(loaded, profile, [read_picture(question.image)], question.prompt, **settings)
                changed += bool(answers.changed)
                row = {"id": question.identity, "image": str(question.image), "prompt": question.prompt}
                row |= {"answer": answers.var, "plain": answers.plain}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                progress(done, len(questions))
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return {"questions": len(questions), "changed": changed}


def _question(path: Path, number: int, line: str) -> Question:
    where = f"line {number} of {path}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        raise InputError(f'{where} names no image; write {{"image": "...", "prompt": "..."}}')
    prompt = next((row[field] for field in PROMPT_FIELDS if isinstance(row.get(field), str)), "")
    if not prompt.strip():
        raise InputError(f'{where} asks nothing; write {{"image": "...", "prompt": "..."}}')
    image = path.parent / row["image"]
    if not image.is_file():
        raise InputError(f"{where}: there is no picture at {image}")
    return Question(row.get("id", number), image, prompt)
