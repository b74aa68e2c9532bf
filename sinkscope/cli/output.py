"""What a command shows: to a person on a terminal, or one JSON document; progress always on stderr."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import click

JSON_HELP = "Print one JSON document on stdout, and nothing else there."


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--json``, passed on as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=JSON_HELP)(function)


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
            console.print(renderable, soft_wrap=isinstance(renderable, str), markup=False)
    # Tables are padded to the full width, which only makes files and copied text larger.
    for line in captured.get().splitlines():
        print(line.rstrip())


def note(text: str) -> None:
    """Tell a person something on stderr."""
    print(text, file=sys.stderr, flush=True)


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


class ProgressBar:
    """Progress of a run on stderr: a bar on a terminal, else a plain line every few seconds.

    `stage` gives the callback ``(done, total)`` for one part of the work.
    """

    SECONDS_BETWEEN_LINES = 5.0

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
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
        task = None if self._bar is None else self._bar.add_task(name, total=None)
        try:
            yield
        finally:
            if task is not None:
                self._bar.remove_task(task)

    def stage(self, name: str) -> Callable[[int, int], None]:
        """The callback of the part of the work called `name`."""
        task = None if self._bar is None else self._bar.add_task(name, total=None)
        shown_at = -math.inf
        finished = False

        def show(done: int, total: int) -> None:
            nonlocal shown_at, finished
            if task is not None:
                self._bar.update(task, completed=done, total=total)
            elif finished:
                return
            elif done >= total or time.monotonic() - shown_at >= self.SECONDS_BETWEEN_LINES:
                shown_at, finished = time.monotonic(), done >= total
                note(f"{name}: {done} of {total}")

        return show
