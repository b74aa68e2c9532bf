"""``sinkscope apply --batch``: a file of questions, answered into a file of answers."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkscope.cli.output import ProgressBar, note, print_rich, readable_span, shortened

if TYPE_CHECKING:
    from sinkscope.answering.answer_file import AnswerFile
    from sinkscope.answering.batch import Totals
    from sinkscope.answering.questions import Question, QuestionFile
    from sinkscope.backbone.loading import LoadedModel
    from sinkscope.profile import Profile


@dataclass(frozen=True)
class Batch:
    """Questions and the file for their answers, both checked, and what is asked of the model."""

    source: "QuestionFile"
    target: "AnswerFile"
    settings: dict[str, Any]
    keep_going: bool


def prepare_batch(
    path: Path,
    out: Path,
    settings: dict[str, Any],
    *,
    model: str,
    revision: str | None,
    profile: "Profile | None",
    resume: bool,
    keep_going: bool,
) -> Batch:
    """Read the questions and check all that can be checked before the model is loaded."""
    from sinkscope.answering.answer_file import AnswerFile
    from sinkscope.answering.questions import read_questions

    target = AnswerFile(out, resume=resume)
    source = read_questions(path, keep_going=keep_going, answered=target.answered, report=_report)
    known = {"model": model, "revision": revision, **_profile_settings(profile), **settings}
    # A p or rho that is not given is the profile's, and a revision the hub's, which may not be known yet.
    target.check({name: value for name, value in known.items() if value is not None})
    target.check({"questions_sha256": source.digest})
    return Batch(source, target, settings, keep_going)


def answer_batch(batch: Batch, loaded: "LoadedModel", profile: "Profile") -> "Totals":
    """Answer the questions of `batch`, with progress and skipped questions on stderr."""
    from sinkscope.answering import answer, read_picture
    from sinkscope.answering.batch import answer_questions

    settings = {
        "model": loaded.model_id,
        "revision": loaded.revision,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        **_profile_settings(profile),
        **batch.settings,
        "questions_sha256": batch.source.digest,
    }
    for name, default in (("p", profile.var.p), ("rho", profile.var.rho)):
        settings[name] = default if settings[name] is None else settings[name]

    def ask(question: "Question") -> tuple[str, str | None]:
        pictures = [read_picture(image) for image in question.images]
        answers = answer(loaded, profile, pictures, question.prompt, **batch.settings)
        return answers.var, answers.plain

    with ProgressBar() as bar:
        return answer_questions(
            batch.source,
            batch.target,
            ask,
            settings,
            keep_going=batch.keep_going,
            progress=bar.stage("questions"),
            report=_report,
        )


def print_totals(totals: "Totals", out: Path) -> None:
    """What became of the questions, for a person."""
    print_rich(f"{totals.answered} of {totals.questions} questions answered in {readable_span(totals.seconds)}: {out}")
    if totals.resumed:
        print_rich(f"{totals.resumed} of them were answered before")
    if totals.changed is not None:
        print_rich(f"VAR changed {totals.changed} of {totals.answered} answers")
    if totals.skipped:
        lines = ", ".join(str(entry.line) for entry in totals.skipped[:10])
        rest = ", ..." if len(totals.skipped) > 10 else ""
        print_rich(f"{len(totals.skipped)} skipped: line{'s' if len(totals.skipped) > 1 else ''} {lines}{rest}")


def _profile_settings(profile: "Profile | None") -> dict[str, Any]:
    if profile is None:
        return {}
    return {"profile": profile.name, "profile_sha256": hashlib.sha256(profile.to_json().encode()).hexdigest()}


def _report(skipped: str) -> None:
    note(shortened(f"skipped {skipped}"))
