"""``--events``: what a run does, as JSON lines for schedulers and scripts. The schema is in docs/progress.md."""

import json
import os
import stat
from datetime import UTC, datetime
from typing import Any

from sinkscope.cli.output import Measure, note
from sinkscope.errors import InputError
from sinkscope.processes import this_process

EVENTS_VERSION = "1.0"
BEGINNING = b'{"event": '


class EventLog:
    """Writes events, one JSON object a line, each at once.

    Parameters
    ----------
    target : str
        A file, to which lines are appended, or "-" for stderr.

    Raises
    ------
    InputError
        If the file cannot be written, or holds something else than events.
    """

    def __init__(self, target: str) -> None:
        self.on_stderr = target == "-"
        self._descriptor: int | None = None
        self._unsent: Measure | None = None
        self._result: dict[str, Any] = {}
        if not self.on_stderr:
            _refuse_foreign(target)
            try:
                # Appending, and a line is one write, so that ranks that share the file do not mix theirs.
                self._descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            except OSError as error:
                raise InputError(
                    f"cannot write {target}: {error.strerror}; choose another file with --events"
                ) from error

    def started(self, **facts: Any) -> None:
        """The first event of a command."""
        self._write("started", events_version=EVENTS_VERSION, pid=os.getpid(), **facts)

    def progress(self, measure: Measure, due: bool) -> None:
        """How far one part of the work is; written where it is `due`, and otherwise if nothing follows it."""
        self._unsent = None if due else measure
        if due:
            self._write("progress", **measure.to_json())

    def result(self, **facts: Any) -> None:
        """What the last event shall tell, once everything is done."""
        self._result = facts

    def failed(self, kind: str, message: str, exit_code: int, resumable: bool) -> None:
        """The last event of a command that ends with an error or was interrupted."""
        self._end("error", kind=kind, message=message, exit_code=exit_code, resumable=resumable)

    def finished(self) -> None:
        """The last event of a command that ends well."""
        self._end("finished", exit_code=0, **self._result)

    def _end(self, event: str, **facts: Any) -> None:
        if self._unsent is not None:
            self.progress(self._unsent, due=True)
        self._write(event, **facts)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, event: str, **facts: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"event": event, "time": now, "rank": this_process().rank, **facts})
        if self.on_stderr:
            note(line)
        elif self._descriptor is not None:
            try:
                os.write(self._descriptor, line.encode("ascii") + b"\n")
            except OSError as error:  # A full disk ends the events, not hours of work.
                note(f"no more events are written: {error.strerror}")
                os.close(self._descriptor)
                self._descriptor = None


def _refuse_foreign(target: str) -> None:
    """Refuse a file that begins with something else than an event; what is no file, such as a pipe, holds nothing."""
    try:
        if not stat.S_ISREG(os.stat(target).st_mode):
            return
        with open(target, "rb") as file:
            beginning = file.read(len(BEGINNING))
    except OSError:  # Not there yet, or told by those who write it.
        return
    if beginning and beginning != BEGINNING:
        raise InputError(f"{target} is there and holds no events; keep it and choose another: --events")
