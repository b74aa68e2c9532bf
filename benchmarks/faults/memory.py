"""Out of memory: batches that do not fit go in halves; what does not fit at all ends with one line, and goes on later.

The limit is the kernel's, on the data of the process (RLIMIT_DATA), so allocations really fail.
"""

import resource
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.children import command, warm
from benchmarks.faults.comparing import leftovers
from benchmarks.faults.moments import acting_when
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.subject import PROFILE, RUN, Subject, planted_model
from sinkscope.profile import read_profile

FINDING = "sinkscope.pipeline:discover"
WIDE = 8192
"""Of the MLP: a batch takes many MB in it, the run's own arrays few."""
MIB = 2**20

MEASURING = "sinkscope.capture.runner:measure"
HALVED = (64, 128)
"""MiB that are left while batches run: some of them fit, the first one does not."""

TOO_LITTLE = {
    "for one sample": (MEASURING, 1, True),
    "for the model": ("sinkscope.pipeline:load_model", 1, False),
    "to find the dimensions": (FINDING, 0, True),
    "to read the weights": ("sinkscope.pipeline:_with_weights", 0, True),
}
"""What the memory is too little for, the function at whose call it is limited, MiB left, and whether a run is kept."""


def check(folder: Path, count: int, seed: int) -> Outcome:
    """The first `count` limits of each kind; `seed` changes nothing."""
    warm()
    subject = Subject.make(folder / "subject", planted_model(intermediate_size=WIDE))
    whole = folder / "whole"
    whole.mkdir()
    if (ending := command(subject.profiling(), whole)).code:
        raise RuntimeError(f"the run without faults failed: {ending.err}")
    problems: list[str] = []
    figures: dict[str, Any] = {}
    halved, too_little = HALVED[:count], dict(islice(TOO_LITTLE.items(), count))
    for left in halved:
        here = folder / f"halved{left}"
        here.mkdir()
        passes = folder / f"passes{left}"
        ending = command(subject.profiling(), here, partial(_limited, MEASURING, left, passes))
        wrong = [f"exit code {ending.code}: {ending.err[-300:]}"] if ending.code else unlike(here, whole)
        sizes = [int(size) for size in passes.read_text().split()]
        figures[f"{left} MiB left"] = {"largest pass, tokens": max(sizes, default=0), "passes": len(sizes)}
        if len(sizes) <= _passes(subject, folder, whole):
            wrong.append("no batch was halved")
        problems += [f"{left} MiB left: {problem}" for problem in wrong]
    for what, (name, left, kept) in too_little.items():
        here = folder / f"too-little-{what.replace(' ', '-')}"
        here.mkdir()
        ending = command(subject.profiling(), here, partial(_limited, name, left))
        wrong = ending.unclear(1, "out of memory") + leftovers(here, *([RUN] if kept else []))
        if kept != (here / RUN).exists():
            wrong.append(f"the run file is {'not ' if kept else ''}there")
        if any(word in ending.message for word in ("damaged", "delete")):
            wrong.append(f"it gives bad advice: {ending.message}")
        figures[f"too little {what}"] = ending.message
        then = command(subject.profiling("--resume"), here)
        wrong += [f"exit code {then.code} without the limit"] if then.code else unlike(here, whole)
        problems += [f"too little {what}: {problem}" for problem in wrong]
    return Outcome(len(halved) + len(too_little), problems, figures)


def unlike(folder: Path, whole: Path) -> list[str]:
    """What differs in the findings of two runs with other batches, which may round otherwise."""
    found, wanted = (read_profile(place / PROFILE) for place in (folder, whole))
    problems = [f"{name} differs" for name in ("verdict", "dims") if getattr(found, name) != getattr(wanted, name)]
    layers = [[(band.first_layer, band.last_layer) for band in one.bands] for one in (found, wanted)]
    return problems + ([] if layers[0] == layers[1] else [f"bands are {layers[0]}, not {layers[1]}"])


def _passes(subject: Subject, folder: Path, whole: Path) -> int:
    """Passes of the whole run."""
    here, passes = folder / "counted", folder / "passes"
    if not passes.exists():
        here.mkdir()
        command(subject.profiling(), here, partial(_count_passes, passes))
    return len(passes.read_text().split())


def _limited(name: str, left: int, passes: Path | None = None) -> None:
    acting_when(name, 0, partial(_leave, left * MIB), in_steps=False)
    if passes is not None:
        acting_when(FINDING, 0, _leave, in_steps=False)
        _count_passes(passes)


def _leave(left: int | None = None) -> None:
    """Let this process have so many more bytes of data than it has; by default as many as there are."""
    allowed = resource.RLIM_INFINITY if left is None else psutil.Process().memory_info().data + left
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, resource.RLIM_INFINITY))


def _count_passes(passes: Path) -> None:
    """Write the tokens of every pass that succeeds to a file."""
    from sinkscope.capture.measuring import Passes

    passes.touch()
    one = Passes._one

    def counted(self: Passes, batch: tuple[int, ...], positions: int) -> Any:
        rows = one(self, batch, positions)
        if rows is not None:
            with passes.open("a") as file:
                file.write(f"{positions}\n")
        return rows

    Passes._one = counted  # type: ignore[method-assign]
