"""Folders that cannot be written, go away in the middle of a run, or stand where a file should be."""

import shutil
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks.faults.children import Ending, command
from benchmarks.faults.comparing import differences, leftovers
from benchmarks.faults.kills import Unbroken, ready
from benchmarks.faults.moments import acting_when, in_small_steps
from benchmarks.faults.mounting import NotAllowed, apart, mount_read_only, unmount
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.subject import PROFILE, RUN, Subject

GONE = {
    "in the run": ("sinkscope.store.places:OpenPlaces.put", 150),
    "as the run file is made": ("sinkscope.store.writer:create_file", 0),
    "before the first write": ("sinkscope.store.places:OpenPlaces.put", 0),
    "as the run is complete": ("sinkscope.store.writer:RunWriter.complete", 0),
    "before the run file is read": ("sinkscope.pipeline:discover", 0),
    "as the file is compressed": ("sinkscope.store.compression:_copy", 0),
    "as the profile is saved": ("sinkscope.profile.schema:Profile.save", 0),
}
"""A function that is called then, and how often it was called before."""


def check(folder: Path, count: int, seed: int) -> Outcome:
    """The folder goes at the first `count` of the moments; all other faults once. `seed` changes nothing."""
    subject, whole = ready(folder)
    problems: list[str] = []
    tried = 0
    for moment, (name, before) in islice(GONE.items(), count):
        here = folder / f"gone{tried}"
        (here / "sub").mkdir(parents=True)
        places = ["--run", f"sub/{RUN}", "-o", f"sub/{PROFILE}", "--compress", "gzip"]
        ending = command(subject.profiling(*places), here, partial(acting_when, name, before, partial(_remove, "sub")))
        wrong = _failed(ending) + leftovers(here)
        problems += [f"folder gone {moment}: {problem}" for problem in wrong]
        tried += 1
    for case, (prepare, places, fragments) in IN_THE_WAY.items():
        here = folder / f"way{tried}"
        here.mkdir()
        prepare(here)
        before = sorted(here.iterdir())
        ending = command(subject.profiling(*places), here, in_small_steps)
        wrong = ending.unclear(1 if case.startswith("a folder for the unfinished") else 2, *fragments)
        if sorted(here.iterdir()) != before:
            wrong.append("something is left behind")
        problems += [f"{case}: {problem}" for problem in wrong]
        tried += 1
    try:
        more, others = apart(_read_only, subject, folder, whole)
        figures = {"read-only file system": "mounted"}
    except NotAllowed as error:
        more, others, figures = 0, [], {"read-only file system": f"not tried: {error}"}
    return Outcome(tried + more, problems + others, figures)


def _remove(name: str) -> None:
    shutil.rmtree(name)


def _failed(ending: Ending) -> list[str]:
    """What is wrong with the end of a run whose files were taken away: wherever it notices, one line says so."""
    wrong = ending.unclear(ending.code, "sub/")
    return wrong if ending.code in (1, 2) else [*wrong, f"exit code {ending.code}"]


def _folder(name: str) -> Callable[[Path], None]:
    return lambda here: (here / name).mkdir()


def _file(name: str) -> Callable[[Path], None]:
    return lambda here: (here / name).write_text("mine")  # type: ignore[return-value]


IN_THE_WAY: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    "a folder for the profile": (_folder("place"), ["-o", "place"], ["place", "folder", "-o"]),
    "a folder for the run file": (_folder("place"), ["--run", "place"], ["place", "folder", "--run"]),
    "a folder for the lock": (_folder(f"{RUN}.lock"), [], [RUN, "--run"]),
    "a folder for the unfinished run file": (_folder(f".{RUN}.partial"), [], [RUN]),
    "a file for a folder": (_file("place"), ["-o", f"place/{PROFILE}"], ["place", "-o"]),
    "no folder for the run file": (lambda here: None, ["--run", f"nowhere/{RUN}"], ["nowhere", "--run"]),
}
"""What stands in the way, the options that name it, and what the line of error must say."""


def _read_only(subject: Subject, folder: Path, whole: Unbroken) -> tuple[int, list[str]]:
    problems = []
    for number, (name, elsewhere) in enumerate(
        {"-o": ["--run", f"../{RUN}"], "--run": ["-o", f"../{PROFILE}"]}.items()
    ):
        here = folder / f"readonly{number}" / "here"
        here.mkdir(parents=True)
        mount_read_only(here)
        ending = command(subject.profiling(*elsewhere), here, in_small_steps)
        wrong = ending.unclear(2, "Read-only file system", name) + leftovers(here)
        wrong += leftovers(here.parent, "here", "here.child.out", "here.child.err")
        problems += [f"read-only folder for {name}: {problem}" for problem in wrong]
        unmount(here)
    # A finished run file that may not be written is still read.
    here = folder / "readonly2" / "here"
    here.mkdir(parents=True)
    shutil.copy(whole.folder / RUN, here)
    mount_read_only(here)
    ending = command(["discover", RUN, "-o", f"../{PROFILE}"], here, in_small_steps)
    problems += [f"discover in a read-only folder: {ending.err[-300:]}"] if ending.code else []
    ending = command(subject.profiling("--resume"), here, in_small_steps)
    problems += [f"resume in a read-only folder: {problem}" for problem in ending.unclear(2, "Read-only file system")]
    unmount(here)
    ending = command(subject.profiling("--resume"), here, in_small_steps)
    wrong = [f"exit code {ending.code}"] if ending.code else differences(here, whole.folder)
    return 5, problems + [f"resume in a folder that can be written again: {problem}" for problem in wrong]
