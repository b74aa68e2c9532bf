"""Several writers of one file: one writes, the others are told who it is; what a killed one leaves locks nobody out."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.faults.children import HANG_SECONDS, Child, Ending, command
from benchmarks.faults.comparing import contents, differences, leftovers
from benchmarks.faults.disk import halves
from benchmarks.faults.kills import Unbroken, ready
from benchmarks.faults.moments import Moment, acting_when, in_small_steps, struck
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.subject import PROFILE, RUN, Subject

AT_ONCE = 8
MERGED, PARTS = "merged.h5", ("a.h5", "b.h5")


def check(folder: Path, count: int, seed: int) -> Outcome:
    """Second writers, eight writers at once (`count` times), and locks that were left, `count` of them."""
    subject, whole = ready(folder)
    problems = _second_writers(subject, folder / "second", whole)
    problems += _mergers(subject, folder / "merging")
    winners = []
    for number in range(count):
        more, winner = _all_at_once(subject, folder / f"race{number}", whole)
        problems += [f"race {number}: {problem}" for problem in more]
        winners.append(winner)
        random_numbers = random.Random(f"{seed} lock {number}")
        more = _stale_lock(subject, folder / f"stale{number}", whole, random_numbers)
        problems += [f"seed {seed}, lock {number}: {problem}" for problem in more]
    return Outcome(5 + 2 * count, problems, {"writers at once": AT_ONCE, "races": count, "winners": winners})


def waiting(name: str, before: int, reached: str, go: str) -> None:
    """In a child: wait at a call of a function until the file `go` appears, after making the file `reached`."""

    def wait() -> None:
        Path(reached).touch()
        until(Path(go).exists)

    acting_when(name, before, wait)


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true; too long is an error."""
    end = time.monotonic() + HANG_SECONDS
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.002)


def _second_writers(subject: Subject, folder: Path, whole: Unbroken) -> list[str]:
    """While one is at work in the middle of a run, a new run, one that resumes, and a merge come upon its file."""
    here = folder / "here"
    here.mkdir(parents=True)
    for name in PARTS:
        shutil.copy(whole.folder / RUN, here / name)
    held = partial(waiting, "sinkscope.store.places:OpenPlaces.put", 150, "../reached", "../go")
    first = Child(subject.profiling(), here, held, name="first")
    until((folder / "reached").exists)
    problems = []
    before = (here / RUN).read_bytes()
    others = {
        "a new run": subject.profiling(),
        "a resumed run": subject.profiling("--resume"),
        "a merge": ["merge", *PARTS, "-o", RUN],
    }
    for what, arguments in others.items():
        ending = command(arguments, here, in_small_steps, name="second")
        problems += [f"{what} beside a writer: {wrong}" for wrong in ending.unclear(2, RUN, f"process {first.pid}")]
    if (here / RUN).read_bytes() != before:
        problems.append("a second writer has changed the file of the first")
    info = command(["info", RUN], here, name="second")
    if info.code or str(first.pid) not in info.out:
        problems.append(f"info does not name the writer: {info.out} {info.err}")
    (folder / "go").touch()
    ending = first.ended()
    problems += [f"the first: {ending.err[-300:]}"] if ending.code else differences(here, whole.folder)
    return problems + leftovers(here, RUN, PROFILE, *PARTS)


def _mergers(subject: Subject, folder: Path) -> list[str]:
    """While one merges into a file, another wants to do the same."""
    here = folder / "here"
    here.mkdir(parents=True)
    halves(subject, here)
    merging = ["merge", *PARTS, "-o", MERGED]
    held = partial(waiting, "sinkscope.store.places:OpenPlaces.put", 100, "../reached", "../go")
    first = Child(merging, here, held, name="first")
    until((folder / "reached").exists)
    ending = command(merging, here, name="second")
    problems = [f"a second merge: {wrong}" for wrong in ending.unclear(2, MERGED, f"process {first.pid}")]
    (folder / "go").touch()
    problems += [f"the first merge: {first.ended().err}"] if first.ended().code else []
    kept = contents(here / MERGED)
    problems += [f"merging again: {wrong}" for wrong in command(merging, here).unclear(2, MERGED, "exists already")]
    if contents(here / MERGED) != kept:
        problems.append("the merged file has changed")
    return problems + leftovers(here, MERGED, *PARTS)


def _all_at_once(subject: Subject, folder: Path, whole: Unbroken) -> tuple[list[str], int]:
    """All of them reach the moment at which the run file is made, and then go on together."""
    here = folder / "here"
    here.mkdir(parents=True)
    children = [
        Child(
            subject.profiling(),
            here,
            partial(waiting, "sinkscope.capture.runner:open_run", 0, f"../reached{number}", "../go"),
            name=str(number),
        )
        for number in range(AT_ONCE)
    ]
    until(lambda: all((folder / f"reached{number}").exists() for number in range(AT_ONCE)))
    (folder / "go").touch()
    endings = [child.ended() for child in children]
    winners = [number for number, ending in enumerate(endings) if ending.code == 0]
    problems = [] if len(winners) == 1 else [f"{len(winners)} of {AT_ONCE} writers have won"]
    for ending in endings:
        if ending.code:
            problems += _refused(ending, [child.pid for child in children])
    return problems + differences(here, whole.folder) + leftovers(here, RUN, PROFILE), (winners or [-1])[0]


def _refused(ending: Ending, processes: list[int]) -> list[str]:
    """What is wrong with the end of a writer that came too late."""
    if "exists already" in ending.message:
        return ending.unclear(2, RUN)
    named = any(f"(process {process})" in ending.message for process in processes)
    return ending.unclear(2, RUN, "being written") + ([] if named else [f"{ending.message!r} names no writer"])


def _stale_lock(subject: Subject, folder: Path, whole: Unbroken, random_numbers: random.Random) -> list[str]:
    """A writer is killed and leaves its lock file; then that names a process that lives, or nonsense, or nothing."""
    here = folder / "here"
    here.mkdir(parents=True)
    write = random_numbers.randrange(whole.length.write)
    struck(lambda prepare: Child(subject.profiling(), here, prepare), Moment("write", write), signal.SIGKILL)
    lock = here / f"{RUN}.lock"
    problems = [] if lock.exists() else ["the killed writer left no lock"]
    told = random_numbers.choice([None, f"{os.getpid()} 1e9 3 {os.uname().nodename}", "nonsense", "", "\0\xff" * 999])
    if told is not None:
        lock.write_text(told, encoding="latin-1")
    ending = command(subject.profiling("--resume"), here, in_small_steps)
    problems += [f"with the lock {told!r}: {ending.err[-300:]}"] if ending.code else differences(here, whole.folder)
    return problems + leftovers(here, RUN, PROFILE)
