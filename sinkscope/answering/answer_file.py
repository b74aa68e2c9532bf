"""The file of answers while it is being made, so that a run that was stopped can go on."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from sinkscope.answering.questions import Identity, Question
from sinkscope.errors import InputError, SinkscopeError, StoreError
from sinkscope.files import check_readable
from sinkscope.store.lock import WriterLock

CONTENTS = {"questions_sha256": "questions", "profile_sha256": "contents of the profile"}
"""Settings that are digests, of which nobody can read the difference."""


@dataclass
class AnswerLines:
    """The answers so far, each the line as it is written; `add` puts one more on the disk before it returns."""

    lines: dict[Identity, bytes]
    file: FileIO = field(repr=False)
    added: int = 0

    def add(self, question: Question, line: bytes) -> None:
        rest = line
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            raise _unwritable(Path(str(self.file.name)), error) from error
        self.lines[question.identity] = line
        self.added += 1

    def changed(self) -> int:
        """How many answers VAR changed."""
        rows = (json.loads(line) for line in self.lines.values())
        return sum(row["plain"] is not None and row["plain"] != row["answer"] for row in rows)


class AnswerFile:
    """One file of answers, which is there when it is whole.

    ::

        OUT                 the answers, in the order of the questions
        OUT.settings.json   what made them
        OUT.partial         the answers so far, in the order in which they came; gone when OUT is whole

    Parameters
    ----------
    out : Path
    resume : bool
        Go on with the answers that are there.

    Raises
    ------
    InputError
        If there are answers already and `resume` is not set, or they cannot be read.
    """

    def __init__(self, out: Path, *, resume: bool = False) -> None:
        self.out, self.resume = out, resume
        self.partial = out.with_name(out.name + ".partial")
        self.settings_path = out.with_name(out.name + ".settings.json")
        found = self._found()
        self.check({})
        self.answered: frozenset[Identity] = frozenset(read_answers(found) if found is not None else ())

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise `InputError` where there are answers that these settings did not make, naming the first difference.

        Settings that are left out are not compared, so that what is known before the model is loaded can be checked
        then.
        """
        found = self._found()
        if found is None:
            return
        if not self.resume:
            raise InputError(f"{found} exists already; go on with it: --resume, or keep it and choose another: --out")
        before = self._settings(found)
        for name, now in settings.items():
            if name in before and before[name] == now:
                continue
            if name in CONTENTS:
                difference = f"other {CONTENTS[name]}"
            else:
                difference = f"{name} {_shown(before.get(name))}, not {_shown(now)}"
            raise InputError(
                f"{found} was made with {difference}; repeat its settings to resume it, or choose another --out"
            )

    @contextlib.contextmanager
    def open(self, settings: Mapping[str, Any], questions: Sequence[Question]) -> Iterator[AnswerLines]:
        """Take up the answers that are there, and write OUT when the block ends without an error.

        Raises
        ------
        InputError
            As `check`; and if another run writes this file.
        SinkscopeError
            If it cannot be written.
        """
        with _lock(self.out):
            # Another run may have ended between the first check and the lock.
            self.check(settings)
            found = self._found()
            lines = {} if found is None else read_answers(found)
            strange = lines.keys() - {question.identity for question in questions}
            if strange:
                raise InputError(f"{found} answers {sorted(map(str, strange))[0]!r}, which is none of the questions")
            if found is None:
                write_whole(self.settings_path, json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n")
            # Written anew rather than continued: this also drops a half-written last line.
            write_whole(self.partial, b"".join(lines.values()))
            answers = None
            try:
                # Without a buffer, which would hold back and then repeat what a full disk did not take.
                with self.partial.open("ab", buffering=0) as file:
                    answers = AnswerLines(lines, file)
                    yield answers
                ordered = [lines[question.identity] for question in questions if question.identity in lines]
                write_whole(self.out, b"".join(ordered))
                self.partial.unlink()
            except BaseException:
                if found != self.partial and (answers is None or not answers.added):
                    self._leave_nothing(new=found is None)
                raise

    def _leave_nothing(self, *, new: bool) -> None:
        """Remove what holds no more than was there before."""
        for path in (self.partial, self.settings_path) if new else (self.partial,):
            path.unlink(missing_ok=True)

    def _found(self) -> Path | None:
        """Where the answers so far are. After a resume of a whole file was stopped, the partial one has more."""
        return next((path for path in (self.partial, self.out) if os.path.lexists(path)), None)

    def _settings(self, found: Path) -> dict[str, Any]:
        settings: Any = None
        with contextlib.suppress(OSError, ValueError, RecursionError):
            check_readable(self.settings_path)
            settings = json.loads(self.settings_path.read_bytes())
        if not isinstance(settings, dict):
            raise InputError(
                f"cannot tell what made {found}: {self.settings_path} is missing or damaged; keep both and choose "
                "another --out"
            )
        return settings


def read_answers(path: Path) -> dict[Identity, bytes]:
    """The whole lines of a file of answers by id; a last line without an end is left out.

    Raises
    ------
    InputError
        If it cannot be read, or a line is no answer.
    """
    try:
        check_readable(path)
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; choose another --out") from error
    lines: dict[Identity, bytes] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            identity, answer, plain = row["id"], row["answer"], row["plain"]
            good = isinstance(identity, str | int) and isinstance(answer, str) and isinstance(plain, str | None)
        except (ValueError, RecursionError, LookupError, TypeError):
            good = False
        if not good or identity in lines:
            raise InputError(
                f"line {number} of {path} is damaged or was not written by this command; remove the line, or choose "
                "another --out"
            )
        lines[identity] = line + b"\n"
    return lines


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    SinkscopeError
        If it cannot be written.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        try:
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    try:
        lock = WriterLock(out)
    except StoreError as error:
        # The lock is that of run files and names their option.
        raise InputError(str(error).replace("--run", "--out")) from error
    with lock:
        yield


def _unwritable(path: Path, error: OSError) -> SinkscopeError:
    return SinkscopeError(
        f"cannot write {path}: {error.strerror}; make room and go on with --resume, or choose another --out"
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
