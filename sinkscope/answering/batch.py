"""Many questions about pictures, answered one by one into a file.

questions.jsonl ──> read_questions ──> QuestionFile ─┐
                                                     ├─> answer_questions ──> AnswerFile ──> answers.jsonl
                         (answer, or a stand-in) ask ┘
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from sinkscope.answering.answer_file import AnswerFile
from sinkscope.answering.questions import Question, QuestionFile, Skipped
from sinkscope.errors import InputError, SinkscopeError

Ask: TypeAlias = Callable[[Question], tuple[str, str | None]]
"""Gives the answer with VAR, and the one without or None."""

# By name, because a machine's memory and that of each accelerator run out with errors of their own.
MEMORY_ERRORS = ("OutOfMemoryError", "MemoryError")


@dataclass(frozen=True)
class Totals:
    """What became of a file of questions.

    Attributes
    ----------
    questions : int
        All lines that are not blank: those answered and those skipped.
    answered : int
        Answers in the file.
    resumed : int
        Those of them that were there before.
    skipped : tuple of Skipped
        Lines without an answer, in their order.
    changed : int or None
        Answers that VAR changed; None where they were not compared.
    seconds : float
        That answering took this time.
    """

    questions: int
    answered: int
    resumed: int
    skipped: tuple[Skipped, ...]
    changed: int | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        skipped = [{"line": entry.line, "reason": entry.reason} for entry in self.skipped]
        return vars(self) | {"skipped": skipped, "seconds": round(self.seconds, 2)}


def answer_questions(
    source: QuestionFile,
    target: AnswerFile,
    ask: Ask,
    settings: Mapping[str, Any],
    *,
    keep_going: bool = False,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> Totals:
    """Answer all questions that `target` has no answer to.

    Parameters
    ----------
    settings : mapping
        All that must be the same where answers are taken up; ready for JSON. ``compare`` tells whether there are
        answers without VAR.
    keep_going : bool
        Skip questions that cannot be answered, instead of stopping at the first. They are tried again when the file is
        resumed.
    progress : callable, optional
        Called with how many questions are done, and how many there are; first with those done before.
    report : callable, optional
        Called with one line of text for each question that is skipped.

    Raises
    ------
    InputError
        As `AnswerFile.open`; and at the first question that cannot be answered. The answers before it are kept.
    SinkscopeError
        If a question fails for another reason than itself, or the file cannot be written.
    """
    started = time.monotonic()
    skipped = list(source.skipped)
    with target.open(settings, source.questions) as answers:
        missing = [question for question in source.questions if question.identity not in answers.lines]
        resumed = len(answers.lines)
        for done, question in enumerate(missing, start=resumed):
            if progress is not None:
                progress(done, len(source.questions))
            try:
                line = question.answered(*ask(question))
            except Exception as error:
                failed = Skipped(question.line, _reason(error))
                if not keep_going:
                    if type(error).__name__ in MEMORY_ERRORS:
                        raise
                    kind = InputError if isinstance(error, InputError) else SinkscopeError
                    raise kind(f"{source.named(failed)}; {_advice(len(answers.lines))}") from error
                skipped.append(failed)
                if report is not None:
                    report(source.named(failed))
                continue
            answers.add(question, line)
        if progress is not None:
            progress(len(source.questions), len(source.questions))
        changed = answers.changed() if settings.get("compare") else None
        answered = len(answers.lines)
    skipped.sort(key=lambda entry: entry.line)
    seconds = time.monotonic() - started
    return Totals(answered + len(skipped), answered, resumed, tuple(skipped), changed, seconds)


def _reason(error: Exception) -> str:
    if type(error).__name__ in MEMORY_ERRORS:
        return "out of memory"
    told = str(error) if isinstance(error, SinkscopeError) else f"unexpected {type(error).__name__}: {error}"
    return " ".join(told.split())


def _advice(kept: int) -> str:
    if kept == 0:
        return "--keep-going leaves such lines out"
    return (
        f"{kept} answer{'s are' if kept > 1 else ' is'} kept, go on with --resume; --keep-going leaves such lines out"
    )
