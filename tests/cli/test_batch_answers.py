"""Files of answers, with a stand-in for the model: stops, resumes, failures and settings."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sinkscope.answering.answer_file import AnswerFile
from sinkscope.answering.batch import Totals, answer_questions
from sinkscope.answering.questions import Question, read_questions
from sinkscope.errors import InputError, SinkscopeError

SETTINGS = {"model": "stand-in", "p": 0.6, "profile_sha256": "ab", "compare": True, "questions_sha256": "cd"}
COUNT = 6


def stand_in(question: Question) -> tuple[str, str]:
    return f"ü\n{question.prompt}", "ü\nWhat 3?"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    rows = [{"image": "picture.png", "prompt": f"What {number}?", "label": number} for number in range(COUNT)]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "q.jsonl"


def run(questions: Path, name: str = "a.jsonl", ask=stand_in, *, resume=False, settings=SETTINGS, **options) -> Totals:
    target = AnswerFile(questions.parent / name, resume=resume)
    source = read_questions(questions, answered=target.answered)
    return answer_questions(source, target, ask, settings, **options)


@pytest.fixture
def whole(questions: Path) -> bytes:
    """The answers of a run that was never stopped."""
    totals = run(questions, "whole.jsonl")
    assert (totals.questions, totals.answered, totals.resumed, totals.skipped) == (COUNT, COUNT, 0, ())
    assert totals.changed == COUNT - 1
    return (questions.parent / "whole.jsonl").read_bytes()


def others(questions: Path) -> set[str]:
    return {path.name for path in questions.parent.iterdir() if path.name.startswith((".", "a."))}


def stop_at(number: int, error: BaseException):
    def ask(question: Question) -> tuple[str, str]:
        if question.line == number:
            raise error
        return stand_in(question)

    return ask


def test_answers_are_on_the_disk_as_they_come(questions, whole):
    seen: list[bytes] = []

    def ask(question: Question) -> tuple[str, str]:
        seen.append((questions.parent / "a.jsonl.partial").read_bytes())
        return stand_in(question)

    progress: list[tuple[int, int]] = []
    run(questions, ask=ask, progress=lambda *numbers: progress.append(numbers))
    lines = whole.splitlines(keepends=True)
    assert seen == [b"".join(lines[:number]) for number in range(COUNT)]
    assert progress == [(number, COUNT) for number in range(COUNT + 1)]
    assert others(questions) == {"a.jsonl", "a.jsonl.settings.json"}
    assert json.loads((questions.parent / "a.jsonl.settings.json").read_bytes()) == SETTINGS


def test_a_killed_run_goes_on_to_the_same_bytes(questions, whole):
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_batch_answers as here
def ask(question):
    if question.line == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return here.stand_in(question)
here.run(here.Path(sys.argv[1]), ask=ask)
"""
    killed = subprocess.run([sys.executable, "-c", program, questions], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    lines = whole.splitlines(keepends=True)
    partial = questions.parent / "a.jsonl.partial"
    assert partial.read_bytes() == b"".join(lines[:3])
    with pytest.raises(InputError, match=r"a\.jsonl\.partial exists already.*--resume"):
        run(questions)
    totals = run(questions, resume=True)
    assert (totals.answered, totals.resumed, totals.changed) == (COUNT, 3, COUNT - 1)
    assert (questions.parent / "a.jsonl").read_bytes() == whole
    assert others(questions) == {"a.jsonl", "a.jsonl.settings.json"}


def test_a_half_written_line_is_dropped_wherever_it_ends(questions, whole):
    run(questions, resume=True)
    out, partial = questions.parent / "a.jsonl", questions.parent / "a.jsonl.partial"
    for end in range(0, len(whole) + 1, 17):
        out.unlink()
        partial.write_bytes(whole[:end])
        asked: list[int] = []

        def ask(question: Question, asked: list[int] = asked) -> tuple[str, str]:
            asked.append(question.line)
            return stand_in(question)

        run(questions, ask=ask, resume=True)
        assert out.read_bytes() == whole
        assert asked == list(range(whole[:end].count(b"\n") + 1, COUNT + 1))


def test_an_interrupted_run_keeps_its_answers_or_leaves_nothing(questions, whole):
    with pytest.raises(KeyboardInterrupt):
        run(questions, ask=stop_at(1, KeyboardInterrupt()))
    assert others(questions) == set()
    with pytest.raises(KeyboardInterrupt):
        run(questions, ask=stop_at(3, KeyboardInterrupt()))
    assert others(questions) == {"a.jsonl.partial", "a.jsonl.settings.json"}
    run(questions, resume=True)
    assert (questions.parent / "a.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("error", "kind", "fragment"),
    [
        (InputError("the prompt is\ntoo long"), InputError, "line 4 of .*: the prompt is too long; 3 answers are kept"),
        (RuntimeError("odd"), SinkscopeError, "line 4 of .*: unexpected RuntimeError: odd; 3 answers.*--resume"),
        (MemoryError("all of it"), MemoryError, "all of it"),
    ],
)
def test_a_question_that_fails_stops_the_run_or_is_skipped_and_tried_again(questions, whole, error, kind, fragment):
    failing = stop_at(4, error)
    with pytest.raises(kind, match=fragment):
        run(questions, ask=failing)
    told: list[str] = []
    totals = run(questions, ask=failing, resume=True, keep_going=True, report=told.append)
    assert [entry.line for entry in totals.skipped] == [4]
    assert (totals.questions, totals.answered, totals.resumed) == (COUNT, COUNT - 1, 3)
    assert totals.to_dict()["skipped"] == [{"line": 4, "reason": totals.skipped[0].reason}]
    assert len(told) == 1
    lines = whole.splitlines(keepends=True)
    assert (questions.parent / "a.jsonl").read_bytes() == b"".join(lines[:3] + lines[4:])
    # A stop while the whole file is completed loses nothing, and the answer gets its place.
    with pytest.raises(KeyboardInterrupt):
        run(questions, ask=stop_at(4, KeyboardInterrupt()), resume=True)
    assert others(questions) == {"a.jsonl", "a.jsonl.settings.json"}
    totals = run(questions, resume=True, keep_going=True)
    assert (totals.answered, totals.resumed, totals.skipped) == (COUNT, COUNT - 1, ())
    assert (questions.parent / "a.jsonl").read_bytes() == whole


def test_nothing_is_asked_where_all_is_answered(questions, whole):
    run(questions)
    totals = run(questions, ask=stop_at(1, AssertionError()), resume=True)
    assert (totals.answered, totals.resumed, totals.changed) == (COUNT, COUNT, COUNT - 1)
    assert (questions.parent / "a.jsonl").read_bytes() == whole
    # A question's picture may be gone once it is answered.
    (questions.parent / "picture.png").unlink()
    assert run(questions, resume=True).answered == COUNT


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        ({"p": 0.3}, "made with p 0.6, not 0.3; .* --out"),
        ({"model": "other"}, "made with model stand-in, not other"),
        ({"compare": False}, "made with compare true, not false"),
        ({"profile_sha256": "ef"}, "made with other contents of the profile"),
        ({"questions_sha256": "ef"}, "made with other questions"),
        ({"dtype": "bfloat16"}, "made with dtype null, not bfloat16"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused(questions, changed, fragment, finished):
    if finished:
        run(questions)
    else:
        with pytest.raises(InputError):
            run(questions, ask=stop_at(5, InputError("stop")))
    before = {path: path.read_bytes() for path in questions.parent.iterdir()}
    with pytest.raises(InputError, match=fragment):
        run(questions, resume=True, settings=SETTINGS | changed)
    with pytest.raises(InputError, match="exists already"):
        run(questions)
    assert {path: path.read_bytes() for path in questions.parent.iterdir()} == before


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"3", b"\0\0", b'{"id": 1, "answer": "twice", "plain": null}', b'{"id": 9, "answer": 3, "plain": 4}'],
)
def test_damaged_answers_are_named_and_kept(questions, line):
    with pytest.raises(InputError):
        run(questions, ask=stop_at(5, InputError("stop")))
    partial = questions.parent / "a.jsonl.partial"
    damaged = partial.read_bytes() + line + b"\n"
    partial.write_bytes(damaged)
    with pytest.raises(InputError, match=r"line 5 of .*a\.jsonl\.partial is damaged"):
        run(questions, resume=True)
    partial.write_bytes(damaged.replace(line + b"\n", b'{"id": "x", "answer": "", "plain": null}\n'))
    with pytest.raises(InputError, match="answers 'x', which is none of the questions"):
        run(questions, resume=True)
    (questions.parent / "a.jsonl.settings.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot tell what made .*a\.jsonl\.partial"):
        run(questions, resume=True)
    assert partial.exists()


def test_two_runs_do_not_write_one_file(questions):
    def ask(question: Question) -> tuple[str, str]:
        with pytest.raises(InputError, match=r"being written by another run.*--out"):
            run(questions, resume=True)
        return stand_in(question)

    assert run(questions, ask=ask).answered == COUNT


def test_a_full_disk_keeps_what_was_answered(questions, whole, monkeypatch):
    from sinkscope.answering import answer_file

    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 6:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(answer_file.os, "fsync", fsync)
        with pytest.raises(SinkscopeError, match=r"cannot write .*a\.jsonl\.partial: No space left.*--resume"):
            run(questions, keep_going=True)
    assert run(questions, resume=True).answered == COUNT
    assert (questions.parent / "a.jsonl").read_bytes() == whole
