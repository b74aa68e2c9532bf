"""What a command shows: to a person on a terminal, or one JSON document; progress always on stderr."""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from sinkscope.errors import FULL_DISK
from sinkscope.processes import this_process

if TYPE_CHECKING:
    from sinkscope.cli.events import EventLog

JSON_HELP = "Print one JSON document on stdout, and nothing else there."


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--json``, passed on as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=JSON_HELP)(function)


# What a terminal acts on, or that turns the direction of what it shows; but not the ends of our own lines.
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with escapes in the place of control characters, which names and texts of others may hold."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def shortened(text: str, characters: int = 2000) -> str:
    """The text without the middle of it, where it is longer: names and values of others may have any length."""
    half = characters // 2
    return text if len(text) <= characters else f"{text[:half]} ... {text[-half:]}"


@dataclass(frozen=True)
class _Printable:
    """Something for rich whose texts become printable when it is shown; its colours stay."""

    shown: Any

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        for segment in console.render(self.shown, options):
            yield segment._replace(text=printable(segment.text))


def print_json(document: str | Mapping[str, Any]) -> None:
    """Print one JSON document on stdout: a mapping, or a text that is JSON already."""
    text = document if isinstance(document, str) else json.dumps(document, indent=2, ensure_ascii=False)
    print(text.rstrip("\n"))


def print_rich(*renderables: Any) -> None:
    """Print texts and tables for a person on stdout, coloured where it is a terminal."""
    from rich.console import Console

    # Outside a terminal the width is that of a wide one, so that tables keep their columns and paths stay whole.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
    with console.capture() as captured:
        for renderable in renderables:
            text = isinstance(renderable, str)
            console.print(printable(renderable) if text else _Printable(renderable), soft_wrap=text, markup=False)
    # Tables are padded to the full width, which only makes files and copied text larger.
    for line in captured.get().splitlines():
        print(line.rstrip())


def note(text: str) -> None:
    """Tell a person something on stderr. Where that is a file on a full disk, nothing more is told."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Let all that a stream is told vanish, also what it still holds: at its end, the process would fail on that."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_closed_streams() -> None:
    """Let outputs that were closed (``2>&-``), which Python has as None, lead nowhere.

    Called before anything else is opened: a file of ours would get the number of the output, and what libraries print.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what libraries print to stderr, so that stdout holds only what the command says."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers' notes and bars out of the output; what matters in them is an error or is said by us."""
    import warnings

    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@dataclass(frozen=True)
class Measure:
    """How far one part of the work is.

    Attributes
    ----------
    stage : str
        The part of the work.
    unit : str or None
        What is counted; None where nothing is.
    done, total : int
        In that unit; the total is None where it is not known.
    rate : float or None
        Units a second since the part began here; None as long as it is not known.
    details : mapping of str to int
        What else is known, such as layers and bytes.
    """

    stage: str
    unit: str | None
    done: int
    total: int | None
    rate: float | None = None
    details: Mapping[str, int] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float | None:
        """None where it is not known."""
        return None if self.rate is None or self.total is None else max(0, self.total - self.done) / self.rate

    def told(self) -> str:
        """For a person, on one line."""
        unit = "" if self.unit in ("bytes", self.stage) else f" {self.unit}"
        parts = [f"{self._counted(self.done)} of {self._counted(self.total or 0)}{unit}"]
        if self.rate is not None:
            slow = self.unit != "bytes" and self.rate < 1
            parts.append(f"{1 / self.rate:.1f} s each" if slow else f"{self._counted(self.rate)} a second")
        if self.seconds_left:
            parts.append(f"{readable_span(self.seconds_left)} left")
        for name, value in self.details.items():
            parts.append(readable_bytes(value) if name == "bytes" else f"{value:,} {name}")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The fields of a progress event."""
        left = self.seconds_left
        return {
            "stage": self.stage,
            "unit": self.unit,
            "done": self.done,
            "total": self.total,
            "rate": None if self.rate is None else round(self.rate, 3),
            "seconds_left": None if left is None else round(left, 1),
            **self.details,
        }

    def _counted(self, number: float) -> str:
        if self.unit == "bytes":
            return readable_bytes(number)
        return f"{number:,.1f}" if isinstance(number, float) and number < 100 else f"{number:,.0f}"


def readable_bytes(number: float) -> str:
    """A number of bytes in decimal units, such as "12.3 MB"."""
    from rich.filesize import decimal

    return decimal(int(number))


def readable_span(seconds: float) -> str:
    """A time such as "8.5 s" or "1:02:03"."""
    return f"{seconds:.1f} s" if seconds < 10 else str(timedelta(seconds=round(seconds)))


class ProgressBar:
    """Progress of a run on stderr: a bar on a terminal, else a plain line every few seconds.

    `stage` gives the callback ``(done, total)`` for one part of the work. Rate and time left count from its first call.
    On other ranks than the first of several processes, and where events go to stderr, nothing is shown.

    Parameters
    ----------
    events : EventLog, optional
        Gets the progress too.
    """

    SECONDS_BETWEEN_LINES = 5.0

    def __init__(self, events: "EventLog | None" = None) -> None:
        self._events = events
        self._bar: Any = None
        self._silent = (events is not None and events.on_stderr) or not this_process().is_first

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self._silent:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[told]}", markup=False),
                # The stream itself, because a load may redirect sys.stderr for its time.
                console=Console(file=sys.stderr),
            )
            self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    @contextlib.contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Show on a terminal that something without a measure of progress is going on."""
        if self._events is not None:
            self._events.progress(Measure(name, None, 0, None), due=True)
        task = None if self._bar is None else self._bar.add_task(name, total=None, told="")
        try:
            yield
        finally:
            if task is not None:
                self._bar.remove_task(task)

    def stage(
        self, name: str, unit: str | None = None, details: Callable[[], Mapping[str, int]] | None = None
    ) -> Callable[[int, int], None]:
        """The callback of the part of the work called `name`, which appears with its first call.

        Parameters
        ----------
        name : str
        unit : str, optional
            What is counted, where that is not the name; "bytes" are shown as such.
        details : callable, optional
            Gives what else is to be told, by name.
        """
        task: Any = None
        first, started, shown_at, shown = 0, 0.0, 0.0, -1

        def show(done: int, total: int) -> None:
            nonlocal task, first, started, shown_at, shown
            now = time.monotonic()
            if shown < 0:
                first, started = done, now
            rate = (done - first) / (now - started) if done > first and now > started else None
            measure = Measure(name, unit or name, done, total, rate, details() if details is not None else {})
            due = shown < 0 or (done >= total > shown) or now - shown_at >= self.SECONDS_BETWEEN_LINES
            if self._bar is not None:
                if task is None:
                    task = self._bar.add_task(name, total=total, told="")
                self._bar.update(task, completed=done, total=total, told=measure.told())
            elif due and not self._silent:
                note(f"{name}: {measure.told()}")
            if self._events is not None:
                self._events.progress(measure, due)
            if due:
                shown_at, shown = now, done

        return show
