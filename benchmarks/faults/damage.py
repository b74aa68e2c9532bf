"""Run files with damaged bytes: each is read as what it was, or refused with one clear error.

A file that was being written may also be read as it was at an earlier commit: what a lost write leaves.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import sinkscope
from benchmarks.faults import run_forms
from benchmarks.faults.malformed.judging import DONE, judged
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.run_forms import Form, digest, discovered, forms
from benchmarks.faults.subject import RUN, Subject
from benchmarks.faults.watched import Watched, Work, write_files

PAGE = 4096
"""What file systems write at once, and so lose at once."""

Damage: TypeAlias = Callable[[Form, random.Random], bytes]


def _place(form: Form, draw: random.Random) -> int:
    """A place in the file: near where a dataset or chunk begins or ends, or anywhere."""
    if draw.random() < 0.5:
        return min(max(0, draw.choice(form.edges) + draw.choice((-1, 0, 1))), len(form.data) - 1)
    return draw.randrange(len(form.data))


def _page(form: Form, draw: random.Random) -> int:
    return _place(form, draw) // PAGE * PAGE


def cut(form: Form, draw: random.Random) -> bytes:
    return form.data[: _place(form, draw)]


def flip(form: Form, draw: random.Random, count: int = 1) -> bytes:
    data = bytearray(form.data)
    for _ in range(count):
        data[_place(form, draw)] ^= 1 << draw.randrange(8)
    return bytes(data)


def flip_many(form: Form, draw: random.Random) -> bytes:
    return flip(form, draw, draw.choice((2, 8, 64, 1000)))


def zero_pages(form: Form, draw: random.Random) -> bytes:
    data = bytearray(form.data)
    for _ in range(draw.choice((1, 1, 3))):
        page = data[(start := _page(form, draw)) : start + PAGE]
        data[start : start + PAGE] = bytes(len(page))
    return bytes(data)


def zero_tail(form: Form, draw: random.Random) -> bytes:
    start = _page(form, draw)
    return form.data[:start] + bytes(len(form.data) - start)


def append(form: Form, draw: random.Random) -> bytes:
    return form.data + draw.choice((b"\0", bytes(PAGE), draw.randbytes(100), form.data, form.data[-PAGE:]))


def insert(form: Form, draw: random.Random) -> bytes:
    place = _place(form, draw)
    return form.data[:place] + draw.randbytes(draw.choice((1, 16))) + form.data[place:]


def remove(form: Form, draw: random.Random) -> bytes:
    place = _place(form, draw)
    return form.data[:place] + form.data[place + draw.choice((1, 16, PAGE)) :]


def swap_pages(form: Form, draw: random.Random) -> bytes:
    data = bytearray(form.data)
    one, other = _page(form, draw), _page(form, draw)
    first, second = data[one : one + PAGE], data[other : other + PAGE]
    size = min(len(first), len(second))
    data[one : one + size], data[other : other + size] = second[:size], first[:size]
    return bytes(data)


def copy_page(form: Form, draw: random.Random) -> bytes:
    data = bytearray(form.data)
    one, other = _page(form, draw), _page(form, draw)
    size = min(PAGE, len(data) - max(one, other))
    data[one : one + size] = data[other : other + size]
    return bytes(data)


def tail_of_another(form: Form, draw: random.Random) -> bytes:
    other = draw.choice(form.others)
    place = _place(form, draw)
    return form.data[:place] + other[draw.choice((place, max(0, len(other) - len(form.data) + place))) :]


def stale_pages(form: Form, draw: random.Random) -> bytes:
    """Some pages as they were at an earlier moment: the writes to them were lost."""
    if not form.older:
        return zero_pages(form, draw)
    data, before = bytearray(form.data), draw.choice(form.older)
    changed = [
        start for start in range(0, len(data), PAGE) if data[start : start + PAGE] != before[start : start + PAGE]
    ]
    for start in draw.sample(changed, draw.randint(1, len(changed))):
        data[start : start + PAGE] = before[start : start + PAGE]
    return bytes(data)


DAMAGES: dict[str, Damage] = {
    damage.__name__.replace("_", " "): damage
    for damage in (
        cut,
        flip,
        flip_many,
        zero_pages,
        zero_tail,
        append,
        insert,
        remove,
        swap_pages,
        copy_page,
        tail_of_another,
        stale_pages,
    )
}

# How a file is read, and how often. Each prints a digest of what came of it, but for `info`.
READINGS = {"read": 12, "resume": 3, "discover": 1, "merge": 1, "info": 2, "profile": 1}


def check(folder: Path, count: int, seed: int) -> Outcome:
    """`count` damaged files."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    subject = Subject.make(folder / "subject")
    loaded = sinkscope.load(subject.model, device_map="cpu")
    made = forms(folder, loaded, subject)
    profiles = {name: discovered(Path(form.rest)) for name, form in made.items() if name != "keep none"}

    def prepare() -> None:
        import sinkscope.pipeline

        sinkscope.pipeline.load = lambda *_, **__: loaded

    functions = {
        "read": lambda _, path: print(digest(Path(path))),
        "resume": lambda _, path, name: print(run_forms.resume(made[name], Path(path))),
        "discover": lambda path: print(discovered(Path(path))),
    }
    endings: Counter[str] = Counter()
    problems: list[str] = []
    with Watched(folder, functions, prepare) as child:
        for number in range(count):
            draw = random.Random(f"{seed} {number}")
            name, damage = draw.choice(sorted(made)), draw.choice(sorted(DAMAGES))
            reading = _reading(name, draw)
            form = made[name]
            call, wanted = {
                # The tail of the finished run makes it of an unfinished one.
                "read": (("read", "--run", RUN), form.states | {form.finished}),
                "resume": (("resume", "--run", RUN, name), {form.finished}),
                "discover": (("discover", RUN), {profiles.get(name)}),
                "merge": (("merge", RUN, "other.h5", "-o", "merged.h5"), {made["merged"].current}),
                "info": (("info", RUN), None),
                "profile": (tuple(subject.profiling("--resume")), {form.finished}),
            }[reading]
            work = Work(call, {RUN: DAMAGES[damage](form, draw), "other.h5": made["second part"].data})
            ending = child.run(work)
            kind, wrong = judged(work, ending)
            if kind == DONE and not wrong and wanted is not None and _came_of(reading, child, ending.out) not in wanted:
                wrong = ["was read as something that it never was"]
            if kind == DONE and reading == "read" and ending.out.strip() != form.current:
                kind = "an earlier state"
            endings[f"{reading}: {kind}"] += 1
            if wrong:
                kept = folder / "problems" / f"{number}"
                write_files(work.files, kept)
                problems.append(
                    f"{name}, {damage}, {' '.join(call)}: {'; '.join(wrong)}: {ending.err.strip()[-300:]!r} "
                    f"(number {number} of seed {seed}; files in {kept})"
                )
    return Outcome(count, problems, {"forms": {name: len(form.data) for name, form in made.items()}} | dict(endings))


def _reading(name: str, draw: random.Random) -> str:
    """How the file of a form is read: some commands take some forms only."""
    while True:
        reading = draw.choices(list(READINGS), list(READINGS.values()))[0]
        if reading == "merge" and name != "part":
            continue
        if reading == "profile" and name not in ("complete", "unfinished"):
            continue
        if reading == "discover" and name in ("keep none", "unfinished"):
            continue
        return reading


def _came_of(reading: str, child: Watched, out: str) -> str:
    """The digest of what came of it."""
    if reading in ("merge", "profile"):
        return digest(child.folder / ("merged.h5" if reading == "merge" else RUN))
    return out.strip()
