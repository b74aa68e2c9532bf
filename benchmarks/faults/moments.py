"""When a fault strikes: after a random time, right before a random change to a file, or in the middle of a write."""

import importlib
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.children import Child, Ending, Prepare

BATCH_TOKENS = 256

CHANGES = frozenset({"open", "os.rename", "os.remove", "os.truncate"})
"""Audit events of files that are opened, renamed and removed."""


def in_small_steps() -> None:
    """Small batches, and a commit after each of them, so that a short run has many states to be stopped in."""
    from sinkscope.capture import batch_size, measuring
    from sinkscope.store.background import BackgroundWriter

    batch_size.BATCH_TOKENS = BATCH_TOKENS
    measuring.BackgroundWriter = lambda writer, _: BackgroundWriter(writer, 0)


def acting_when(name: str, before: int, act: Callable[[], None], *, in_steps: bool = True) -> None:
    """In a child: do something at call number `before` of a function.

    Parameters
    ----------
    name : str
        The module, and after a colon a function, or a class and its method.
    before : int
    act : callable
    in_steps : bool
        Whether the child works in small steps.
    """
    if in_steps:
        in_small_steps()
    module, _, rest = name.partition(":")
    holder: Any = importlib.import_module(module)
    *parts, last = rest.split(".")
    for part in parts:
        holder = getattr(holder, part)
    wrapped, left = getattr(holder, last), [before]

    def acting(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            act()
        return wrapped(*arguments, **options)

    setattr(holder, last, acting)


@dataclass(frozen=True)
class Moment:
    """A moment of a run.

    Attributes
    ----------
    kind : str
        "time"; "change": right before a file of the folder is opened for writing, renamed or removed; or when half of
        an array is in the run file, "write": of the rows of a sample, "commit": of what commits them.
    place : float
        Seconds after the start, or how many of the kind there were before.
    """

    kind: str
    place: float

    def __str__(self) -> str:
        return f"after {self.place:.3f} s" if self.kind == "time" else f"at {self.kind} {self.place:.0f}"


@dataclass(frozen=True)
class Length:
    """How long a run is: seconds, its changes to files, its writes of rows and those of commits."""

    time: float
    change: int
    write: int
    commit: int

    @property
    def arrays(self) -> int:
        """How often something is written into the run file."""
        return self.write + self.commit

    def moment(self, random_numbers: random.Random) -> Moment:
        """A moment of it, of a kind that is drawn as well."""
        kind = random_numbers.choice(["time", "time", "change", "write", "commit"])
        place = random_numbers.uniform(0, getattr(self, kind))
        return Moment(kind, place if kind == "time" else int(place))


def struck(start: Callable[[Prepare], Child], moment: Moment, number: int) -> Ending:
    """Start a child that works in small steps, send it a signal at a moment, and wait for its end."""
    if moment.kind != "time":
        return start(partial(_trap, moment, number)).ended()
    child = start(in_small_steps)
    time.sleep(moment.place)
    child.send(number)
    return child.ended()


def counting(counts: Path) -> None:
    """In a child: keep in a file how many changes, writes and commits there were."""
    in_small_steps()
    seen = {"change": 0, "write": 0, "commit": 0}
    descriptor = os.open(counts, os.O_WRONLY | os.O_CREAT)

    def count(kind: str) -> bool:
        seen[kind] += 1
        os.pwrite(descriptor, " ".join(map(str, seen.values())).encode("ascii"), 0)
        return False

    _watch(count, 0)


def counted(counts: Path, seconds: float) -> Length:
    """What `counting` has kept."""
    return Length(seconds, *map(int, counts.read_text().split()))


def _trap(moment: Moment, number: int) -> None:
    in_small_steps()
    left = [moment.place]

    def spring(kind: str) -> bool:
        left[0] -= kind == moment.kind
        now = kind == moment.kind and left[0] == -1
        if now and kind == "change":
            os.kill(os.getpid(), number)
        return now

    _watch(spring, number)


def _watch(act: Callable[[str], bool], number: int) -> None:
    """Call `act` before every change and write; where it is true of a write, the signal comes when half is written."""
    from sinkscope.store.layout import ROW_DATASETS
    from sinkscope.store.places import OpenPlaces

    rows = (*ROW_DATASETS, "checksums/")
    here, put = os.getcwd(), OpenPlaces.put

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and (event != "open" or _writes(arguments[2])):
            name = arguments[0]
            if isinstance(name, str | os.PathLike) and os.path.abspath(name).startswith(here):
                act("change")

    def halved(self: OpenPlaces, name: str, array: Any, row: int = 0) -> None:
        if act("write" if name.startswith(rows) else "commit"):
            put(self, name, array.reshape(-1)[: array.size // 2], row)
            os.kill(os.getpid(), number)
        put(self, name, array, row)

    sys.addaudithook(hear)
    OpenPlaces.put = halved  # type: ignore[method-assign]


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
