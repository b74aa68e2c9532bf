"""Ctrl-C and SIGTERM at any moment: one line that says how to go on where there is something to go on with."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import sinkscope
from benchmarks.faults.children import Child, Ending, Prepare, command
from benchmarks.faults.comparing import differences, leftovers, state
from benchmarks.faults.kills import ready
from benchmarks.faults.moments import in_small_steps, struck
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.subject import PROFILE, RUN, Subject

NOTHING = "interrupted; nothing was kept"
GO_ON = "go on with `"
EVENTS = "events.jsonl"
EVERY_OWN = 25


def check(folder: Path, count: int, seed: int) -> Outcome:
    """Interrupt `count` runs, and one as a process of its own for every 25 of them."""
    subject, whole = ready(folder)
    problems: list[str] = []
    states: Counter[str] = Counter()
    for number in range(count):
        random_numbers = random.Random(f"{seed} interrupt {number}")
        here = folder / f"interrupted{number}"
        here.mkdir()
        sent = random_numbers.choice([signal.SIGINT, signal.SIGTERM])
        moment = whole.length.moment(random_numbers)
        ending = struck(partial(_start, subject, here), moment, sent)
        reached, wrong = state(here)
        states[f"{reached}, {'ended before' if ending.code == 0 else 'interrupted'}"] += 1
        if ending.code != 0:
            wrong += resumed(ending, here)
        # A lock file that an interrupt leaves, as a kill does, holds no lock.
        wrong += leftovers(here, RUN, PROFILE, *([] if (here / RUN).exists() else [f"{RUN}.lock"]))
        if ending.code == 0 or (here / RUN).exists():
            wrong += differences(here, whole.folder)
        problems += [f"seed {seed}, run {number}, {sent.name} {moment}: {problem}" for problem in wrong]
    own = count // EVERY_OWN
    for number in range(own):
        wrong = _of_its_own(subject, folder / f"own{number}", random.Random(f"{seed} own {number}"))
        problems += [f"seed {seed}, process {number}: {problem}" for problem in wrong]
    return Outcome(count + own, problems, {"found in the folder": dict(states), "processes of their own": own})


def resumed(ending: Ending, folder: Path, prepare: Prepare | None = in_small_steps) -> list[str]:
    """Do what the last line of an interrupted run says; what was wrong with it."""
    if not (folder / RUN).exists():
        return ending.unclear(130, NOTHING)
    wrong = ending.unclear(130, RUN, GO_ON)
    if wrong:
        return wrong
    program, *again = shlex.split(ending.message.partition(GO_ON)[2].rstrip("`"))
    then = command(again, folder, prepare)
    return [f"{program} {again}: exit code {then.code}, {then.err[-300:]}"] if then.code else []


def _of_its_own(subject: Subject, folder: Path, random_numbers: random.Random) -> list[str]:
    """`python -m sinkscope` as a shell starts it, interrupted at some moment after its imports."""
    here, whole = folder / "here", folder / "whole"
    here.mkdir(parents=True)
    whole.mkdir()
    if (ending := command(subject.profiling(), whole)).code:
        raise RuntimeError(f"the run without faults failed: {ending.err}")
    process = subprocess.Popen(
        [sys.executable, "-m", "sinkscope", *subject.profiling("--events", EVENTS)],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(Path(sinkscope.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not (here / EVENTS).exists():
        time.sleep(0.01)
    seconds = random_numbers.uniform(0, 12)
    time.sleep(seconds)
    process.send_signal(random_numbers.choice([signal.SIGINT, signal.SIGTERM]))
    err = process.communicate()[1]
    ending = Ending(process.returncode, "", err, seconds)
    wrong = resumed(ending, here, prepare=None) if ending.code else []
    if (here / RUN).exists():
        wrong += differences(here, whole)
    return [f"after {seconds:.3f} s: {problem}" for problem in wrong]


def _start(subject: Subject, folder: Path, prepare: Prepare) -> Child:
    return Child(subject.profiling(), folder, prepare)
