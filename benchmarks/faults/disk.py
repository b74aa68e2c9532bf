"""A disk that fills up: in the run, at its end, while it is compressed, while the profile is saved, while files merge.

A full disk is a file system in memory of which another file takes the rest, at a moment that is chosen by what the run
does. Where no file system can be mounted, the kernel's limit on the size of a file stands in for it.
"""

import resource
import shutil
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.faults.children import command
from benchmarks.faults.comparing import contents, differences, leftovers
from benchmarks.faults.kills import Unbroken, ready
from benchmarks.faults.moments import acting_when, in_small_steps
from benchmarks.faults.mounting import NotAllowed, apart, mount_limited
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.subject import PROFILE, RUN, Subject

ROOM = 2**25
FEWER = 5
"""Merges, and limits on files, are so many times fewer than moments of a run."""
EATER = "another file"

FREE, LARGER, AGAIN = "free space", "larger files", "--resume"
"""What the line of error must say."""


def check(folder: Path, count: int, seed: int) -> Outcome:
    """Fill the disk at `count` moments: those below, then as many writes as are left, spread evenly over a run."""
    subject, whole = ready(folder)
    tried, problems = limited_files(subject, folder / "limited", whole, -(-count // FEWER))
    figures: dict[str, Any] = {"file system": "limited"}
    try:
        more, others, endings = apart(_on_a_small_disk, subject, folder, whole, count)
    except NotAllowed as error:
        more, others, endings, figures["file system"] = 0, [], {}, f"not tried: {error}"
    return Outcome(tried + more, problems + others, figures | {"moments": endings})


def eat(folder: Path, left: int = 0) -> None:
    """Take all space of the disk at `folder` but for some bytes."""
    with (folder / EATER).open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - left))


def emptied(folder: Path) -> None:
    """Remove all files of a folder."""
    for path in folder.iterdir():
        path.unlink()


def eaten_when(name: str, before: int, left: int = 0) -> None:
    """In a child: let the disk be full from call number `before` of a function on."""
    acting_when(name, before, partial(eat, Path(), left))


MAKING, WRITING = "sinkscope.store.writer:create_file", "sinkscope.store.places:OpenPlaces.put"
COMPRESSING = "sinkscope.store.compression:_copy"
GZIP = ("--compress", "gzip")

MOMENTS: dict[str, tuple[str, int, int, tuple[str, ...]]] = {
    "in the middle of the run": (WRITING, 150, 0, ()),
    "as the run file is made, with room for half": (MAKING, 0, 100_000, ()),
    "as half is compressed": (COMPRESSING, 0, 100_000, GZIP),
    "as the profile is saved": ("sinkscope.profile.schema:Profile.save", 0, 0, ()),
    "as the run file is made": (MAKING, 0, 0, ()),
    "as the structure of the run file is written": (MAKING, 0, 20_000, ()),
    "as the run file is sealed": ("sinkscope.store.structure:apply_seal", 0, 0, ()),
    "as the run is complete": ("sinkscope.store.writer:RunWriter.complete", 0, 0, ()),
    "as the file is compressed": (COMPRESSING, 0, 0, GZIP),
    "as most is compressed": (COMPRESSING, 0, 300_000, ("--compress", "blosc2")),
    "as the compressed file is sealed": ("sinkscope.store.compression:apply_seal", 0, 0, GZIP),
}
"""A function that is called then, how often it was called before, bytes left, and options."""

MERGING = {
    "in a merge": (WRITING, 150),
    "as a merged file is begun": ("sinkscope.store.merge:_plan", 0),
    "as a merged file is made": (MAKING, 0),
}


def _on_a_small_disk(
    subject: Subject, folder: Path, whole: Unbroken, count: int
) -> tuple[int, list[str], dict[str, str]]:
    disk = folder / "disk"
    disk.mkdir()
    mount_limited(disk, ROOM)
    moments = dict(islice(MOMENTS.items(), count))
    writes = count - len(moments)
    for number in range(writes):
        moments[f"at write {whole.length.arrays * number // writes}"] = (
            WRITING,
            whole.length.arrays * number // writes,
            0,
            (),
        )
    problems: list[str] = []
    endings = {}
    for moment, (name, before, left, options) in moments.items():
        prepare = partial(eaten_when, name, before, left)
        wrong, message = _filled(subject, disk, whole, prepare, options)
        problems += [f"disk full {moment}: {problem}" for problem in wrong]
        endings[moment] = message
    for moment, (name, before) in islice(MERGING.items(), -(-count // FEWER)):
        wrong, message = _filled_in_merge(subject, disk, partial(eaten_when, name, before))
        problems += [f"disk full {moment}: {problem}" for problem in wrong]
        endings[moment] = message
    return len(endings), problems, endings


def _filled(
    subject: Subject, here: Path, whole: Unbroken, prepare: Callable[[], None], options: tuple[str, ...]
) -> tuple[list[str], str]:
    """A run on the disk, which becomes full; then space is freed and the run goes on."""

    emptied(here)
    ending = command(subject.profiling(*options), here, prepare)
    wrong = ending.unclear(1, FREE) if ending.code else []
    if (here / RUN).exists():
        wrong += [] if ending.code == 0 or AGAIN in ending.message else [f"{ending.message} does not say {AGAIN}"]
    wrong += leftovers(here, RUN, EATER, *([PROFILE] if ending.code == 0 else []))
    if not (here / EATER).exists():
        wrong.append("the disk was never full")
    (here / EATER).unlink(missing_ok=True)
    then = command(subject.profiling("--resume", *options), here, in_small_steps)
    if then.code:
        return [*wrong, f"exit code {then.code} with space again: {then.err[-300:]}"], ending.message
    found = differences(here, whole.folder)
    if options:
        found = [problem for problem in found if problem != "run file: attribute compression differs"]
    return wrong + found + leftovers(here, RUN, PROFILE), ending.message or "not needed any more"


def _filled_in_merge(subject: Subject, disk: Path, prepare: Callable[[], None]) -> tuple[list[str], str]:
    here, parts = disk, ("a.h5", "b.h5")
    emptied(here)
    halves(subject, here)
    merging = ["merge", *parts, "-o", "merged.h5"]
    ending = command(merging, here, prepare)
    wrong = ending.unclear(1, FREE) + leftovers(here, *parts, EATER)
    (here / EATER).unlink(missing_ok=True)
    if (then := command(merging, here)).code:
        return [*wrong, f"exit code {then.code} with space again: {then.err[-300:]}"], ending.message
    whole = here / "whole.h5"
    shutil.copy(here / "merged.h5", whole)
    (here / "merged.h5").unlink()
    again = command(merging, here)
    if again.code or contents(whole) != contents(here / "merged.h5"):
        wrong.append("two merges of the same differ")
    return wrong, ending.message


def halves(subject: Subject, here: Path) -> None:
    """Run files over the two halves of the texts."""
    texts = subject.texts.read_text(encoding="utf-8").split("\n\n")
    for number, name in enumerate("ab"):
        (here / "texts.txt").write_text("\n\n".join(texts[number::2]), encoding="utf-8")
        files = ["--texts", "texts.txt", "--run", f"{name}.h5", "-o", f"{name}.json"]
        if (ending := command(["profile", str(subject.model), *files], here, in_small_steps)).code:
            raise RuntimeError(f"the run without faults failed: {ending.err}")
        (here / f"{name}.json").unlink()
    (here / "texts.txt").unlink()


def limited_files(subject: Subject, folder: Path, whole: Unbroken, count: int) -> tuple[int, list[str]]:
    """No file may become larger than some bytes: a part of the run file, or of the profile."""
    problems: list[str] = []
    size = (whole.folder / RUN).stat().st_size
    limits = [size // 100, 2**10, size // 2, size - 1][:count]
    for number, most in enumerate(limits):
        here = folder / str(number)
        here.mkdir(parents=True)
        ending = command(subject.profiling(), here, partial(_limited, most))
        wrong = ending.unclear(1, LARGER) + leftovers(here)
        then = command(subject.profiling("--resume"), here, in_small_steps)
        wrong += [f"exit code {then.code} without the limit"] if then.code else differences(here, whole.folder)
        problems += [f"files of at most {most} bytes: {problem}" for problem in wrong]
    return len(limits), problems


def _limited(most: int) -> None:
    in_small_steps()
    # What the child prints is a file as well, and may be longer.
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
