"""Malformed run files, at every command and function that reads one."""

import random

from hypothesis import strategies as st

from benchmarks.faults.malformed.base import NamedPipe, run_file, run_plan
from benchmarks.faults.malformed.forging import STEPS, Forged
from benchmarks.faults.malformed.lying import Lie
from benchmarks.faults.malformed.mangling import flipped
from benchmarks.faults.watched import Content, Work

CALLS: tuple[tuple[str, ...], ...] = (
    ("info", "run.h5"),
    ("info", "run.h5", "--json"),
    ("discover", "run.h5"),
    ("discover", "run.h5", "-o", "p.json"),
    ("merge", "run.h5", "other.h5", "-o", "merged.h5"),
    ("read all", "run.h5"),
    ("resume", "run.h5"),
)


@st.composite
def works(draw: st.DrawFn) -> Work:
    """A malformed run file, what it points to, and what reads it."""
    run_plan()  # Made here once, so that every child finds it made.
    seed = draw(st.integers(0, 2**32))
    kind = draw(st.sampled_from(["forged"] * 4 + ["lie"] * 4 + ["flipped"]))
    content: bytes | Content = Lie(seed, draw(st.integers(1, 3)))
    if kind == "forged":
        steps = tuple(draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=3)))
        content = Forged(steps, seed, draw(st.sampled_from([True, True, True, False])))
    elif kind == "flipped":
        content = flipped(run_file(), random.Random(seed), draw(st.sampled_from([1, 4])))
    # Whatever a file names beside itself must not be read: the pipe would keep the reader for ever.
    files = {"run.h5": content, "other.h5": run_file(1), "secret.h5": run_file(), "pipe": NamedPipe()}
    return Work(draw(st.sampled_from(CALLS)), files)


def read_all(path: str) -> None:
    """Everything that a reader gives."""
    from sinkscope.store.reader import RunReader

    with RunReader(path) as reader:
        reader.verify()
        for layer in range(reader.attributes.num_layers + 1):
            reader.largest(layer)
            reader.sampled(layer)
            reader.peak_states(layer)
        assert reader.attention is None or len(reader.attention.token) >= 0
        for sample in range(reader.plan.num_samples):
            reader.rows(sample)


def resume(path: str) -> None:
    """Go on with the run that the good file was made by."""
    from sinkscope.store.writer import RunWriter

    with RunWriter.resume(path, run_plan()) as writer:
        writer.statistics()


FUNCTIONS = {"read all": read_all, "resume": resume}
