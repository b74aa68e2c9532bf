"""A wall clock that jumps at every look at it, by seconds to decades, forwards and backwards, while a run is made.

Only the wall clock can jump: the kernel's monotonic clock, from which rates and times left come, never does.
"""

import datetime as datetimes
import json
import math
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.children import Child, Ending, Prepare, command
from benchmarks.faults.comparing import differences, leftovers
from benchmarks.faults.kills import ready
from benchmarks.faults.moments import Moment, in_small_steps, struck
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.subject import PROFILE, RUN, Subject

EVENTS = "events.jsonl"
DAY = 86_400.0
JUMPS = (0.0, 2.0, -2.0, 3600.0, -3600.0, DAY, -DAY, 400 * DAY, -400 * DAY, 20_000 * DAY, -30_000 * DAY)
"""Seconds; the last two are the year 2080 and one before 1970."""


def check(folder: Path, count: int, seed: int) -> Outcome:
    """`count` runs under clocks that jump differently, each of them killed once and looked at by `sinkscope info`."""
    subject, whole = ready(folder)
    problems: list[str] = []
    events = 0
    for number in range(count):
        here = folder / f"jumping{number}"
        here.mkdir()
        jumping = partial(_jumping, f"{seed} clock {number}")
        random_numbers = random.Random(f"{seed} kill {number}")
        write = random_numbers.randrange(whole.length.write)
        struck(partial(_start, subject, here, jumping), Moment("write", write), signal.SIGKILL)
        wrong = _told_wrong(command(["info", RUN, "--json"], here, jumping))
        ending = command(subject.profiling("--resume", "--events", EVENTS), here, partial(_slowly, jumping))
        wrong += [f"exit code {ending.code}: {ending.err[-300:]}"] if ending.code else differences(here, whole.folder)
        seen, more = _events((here / EVENTS).read_text())
        wrong += more + leftovers(here, RUN, PROFILE, EVENTS)
        events += seen
        problems += [f"seed {seed}, clock {number}, killed at write {write}: {problem}" for problem in wrong]
    return Outcome(count, problems, {"events": events})


def _start(subject: Subject, folder: Path, jumping: Prepare, prepare: Prepare) -> Child:
    def both() -> None:
        jumping()
        prepare()

    return Child(subject.profiling("--events", EVENTS), folder, both)


def _slowly(jumping: Prepare) -> None:
    """With jumps, in small steps, and with every event told."""
    from sinkscope.cli.output import ProgressBar

    jumping()
    in_small_steps()
    ProgressBar.SECONDS_BETWEEN_LINES = 0.0


def _jumping(seed: str) -> None:
    """In a child: let every look at the wall clock be off by another jump."""
    random_numbers = random.Random(seed)
    honest = time.time

    def now() -> float:
        return honest() + random_numbers.choice(JUMPS)

    class Jumping(datetimes.datetime):
        @classmethod
        def now(cls, tz: datetimes.tzinfo | None = None) -> Any:
            return datetimes.datetime(1970, 1, 1, tzinfo=tz) + datetimes.timedelta(seconds=now())

    time.time = now
    time.time_ns = lambda: int(now() * 1e9)
    from sinkscope.cli import events, info

    events.datetime = Jumping  # type: ignore[misc]
    info.datetime = Jumping  # type: ignore[misc]
    datetimes.datetime = Jumping  # type: ignore[misc]


def _told_wrong(ending: Ending) -> list[str]:
    """What is wrong with what `sinkscope info` says about a run that was killed."""
    if ending.code:
        return [f"info: exit code {ending.code}: {ending.err[-300:]}"]
    facts = json.loads(ending.out)
    rate = facts["rate"]
    wrong = [] if rate is None or (math.isfinite(rate) and rate > 0) else [f"info: {rate} tokens a second"]
    return wrong + ([] if facts["resume"] else ["info: no command to go on with"])


def _events(text: str) -> tuple[int, list[str]]:
    """How many events there are, and what is wrong with them."""
    events = [json.loads(line) for line in text.splitlines()]
    wrong = []
    before: dict[str, Any] = {}
    for event in events:
        datetimes.datetime.fromisoformat(event["time"])
        if event["event"] == "started":
            before = {}
        if event["event"] != "progress":
            continue
        if any(event[name] is not None and not 0 <= event[name] < 1e9 for name in ("rate", "seconds_left")):
            wrong.append(f"{event['rate']} a second, {event['seconds_left']} s left")
        if before.get("stage") == event["stage"] and event["done"] < before["done"]:
            wrong.append(f"{event['done']} done after {before['done']}")
        before = event
    if events[-1]["event"] != "finished":
        wrong.append(f"the last event is {events[-1]}")
    return len(events), wrong
