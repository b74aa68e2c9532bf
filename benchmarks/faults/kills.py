"""SIGKILL at any moment of a run, up to three times, then `--resume`: the same profile and the same run file."""

import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.faults.children import Child, Ending, Prepare, command, warm
from benchmarks.faults.comparing import differences, leftovers, state
from benchmarks.faults.moments import Length, counted, counting, in_small_steps, struck
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.subject import PROFILE, RUN, Subject
from sinkscope.processes import share_path

MOST_KILLS = 3
RANKS = 2
EVERY_RANKS = 10
"""One run of several processes for so many of one."""


@dataclass(frozen=True)
class Unbroken:
    """The run that nothing disturbs: where its files are, and how long it is."""

    folder: Path
    length: Length


def unbroken(subject: Subject, folder: Path, *options: str) -> Unbroken:
    """Make that run; what follows makes no sense if it fails."""
    folder.mkdir(parents=True)
    counts = folder.with_name("counts")
    ending = command(subject.profiling(*options), folder, partial(counting, counts))
    if ending.code != 0:
        raise RuntimeError(f"the run without faults failed: {ending.err}")
    return Unbroken(folder, counted(counts, ending.seconds))


def ready(folder: Path) -> tuple[Subject, Unbroken]:
    """What every part begins with: a model, and the run on it that nothing disturbs."""
    warm()
    subject = Subject.make(folder / "subject")
    return subject, unbroken(subject, folder / "whole")


def check(folder: Path, count: int, seed: int) -> Outcome:
    """Kill `count` runs of one process, and one of several processes for every ten of them."""
    subject, whole = ready(folder)
    problems: list[str] = []
    states: Counter[str] = Counter()
    kills = 0
    for number in range(count):
        random_numbers = random.Random(f"{seed} {number}")
        here = folder / f"killed{number}"
        here.mkdir()
        told = []
        for _ in range(random_numbers.choice([1] * 7 + [2] * 2 + [MOST_KILLS])):
            arguments = subject.profiling(*(["--resume"] if (here / RUN).exists() else []))
            moment = whole.length.moment(random_numbers)
            ending = struck(partial(_start, arguments, here), moment, signal.SIGKILL)
            if ending.code != -signal.SIGKILL:
                break
            kills += 1
            reached, wrong = state(here)
            states[reached] += 1
            told += [f"killed {moment}", *wrong]
            problems += [f"seed {seed}, run {number}, killed {moment}: {problem}" for problem in wrong]
        else:
            ending = command(subject.profiling("--resume"), here, in_small_steps)
        wrong = [f"exit code {ending.code}: {ending.err[-300:]}"] if ending.code else differences(here, whole.folder)
        wrong += leftovers(here, RUN, PROFILE, *_torn_profiles(here))
        problems += [f"seed {seed}, run {number}, {', '.join(told)}: {problem}" for problem in wrong]
    together, more = _several(subject, folder, whole, -(-count // EVERY_RANKS), seed)
    return Outcome(
        count + together,
        problems + more,
        {
            "runs": count,
            "kills": kills,
            "moments of a run": {kind: getattr(whole.length, kind) for kind in ("change", "write", "commit")},
            "found in the folder": dict(states),
            "runs of two processes": together,
        },
    )


def _start(arguments: list[str], folder: Path, prepare: Prepare) -> Child:
    return Child(arguments, folder, prepare)


def _torn_profiles(folder: Path) -> list[str]:
    """What a process that dies while it saves the profile leaves under a name that is not the profile's."""
    return [path.name for path in folder.glob(f".{PROFILE}.*.partial")]


def _several(subject: Subject, folder: Path, whole: Unbroken, count: int, seed: int) -> tuple[int, list[str]]:
    """Kill one process of several, or all of them, and start all again: the profile of one process alone."""
    problems = []
    for number in range(count):
        random_numbers = random.Random(f"{seed} ranks {number}")
        here = folder / f"ranks{number}"
        here.mkdir()
        victims = random_numbers.choice([[0], [1], [0, 1]])
        after = random_numbers.uniform(0, 1.5 * whole.length.time)
        endings = ranks(subject, here, after, victims)
        told = f"seed {seed}, ranks {victims} of run {number} killed after {after:.3f} s"
        for rank in set(range(RANKS)) - set(victims):
            if endings[rank].code not in (0, -signal.SIGKILL):
                problems += [f"{told}: {wrong}" for wrong in endings[rank].unclear(1, "--resume")]
        endings = ranks(subject, here)
        wrong = [f"exit code {ending.code}: {ending.err[-300:]}" for ending in endings if ending.code]
        wrong = wrong or differences(here, whole.folder)
        shares = [share_path(Path(RUN), rank).name for rank in range(RANKS)]
        wrong += leftovers(here, RUN, PROFILE, *shares, *_torn_profiles(here))
        problems += [f"{told}: {problem}" for problem in wrong]
    return count, problems


def ranks(subject: Subject, folder: Path, after: float = 0, victims: Sequence[int] = ()) -> list[Ending]:
    """Run all processes of a run as torchrun does, and kill the victims after some seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1"}
    children = [
        Child(
            subject.profiling("--resume"),
            folder,
            in_small_steps,
            {**shared, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            name=f"rank{rank}",
        )
        for rank in range(RANKS)
    ]
    time.sleep(after)
    for rank in victims:
        children[rank].send(signal.SIGKILL)
    return [child.ended() for child in children]
