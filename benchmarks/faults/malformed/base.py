"""Good pictures, tables and run files, to be damaged."""

import functools
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str

    def write(self, path: Path) -> None:
        path.symlink_to(self.target)


@dataclass(frozen=True)
class Folder:
    """An empty folder."""

    def write(self, path: Path) -> None:
        path.mkdir()


@dataclass(frozen=True)
class NamedPipe:
    """A pipe without a writer: whoever opens it waits for ever."""

    def write(self, path: Path) -> None:
        os.mkfifo(path)


@functools.cache
def picture(form: str = "PNG", mode: str = "RGB", frames: int = 1) -> bytes:
    """A small picture in one of Pillow's forms and modes."""
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (24, 32, 3)).astype(np.uint8)) for _ in range(frames)]
    if mode in ("I;16", "F", "I"):
        dtype = {"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]
        pictures = [Image.fromarray(generator.integers(0, 65536, (24, 32)).astype(dtype))]
    else:
        pictures = [entry.convert(mode) for entry in pictures]
    file = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(file, form, **more)
    return file.getvalue()


@functools.cache
def parquet() -> bytes:
    """A table of texts."""
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["one text", "another text", None], "number": [1, 2, 3]}), file)
    return file.getvalue()


@functools.cache
def run_file(seed: int = 0) -> bytes:
    """A small complete run file with attention."""
    from sinkscope.capture.synthetic import write_synthetic

    generator = np.random.default_rng(seed)
    states = generator.normal(size=(4, 40, 16)).astype(np.float32)
    states[1:3, ::10, 5] = 60
    drawn = np.full((40, 3), 0.02, np.float32)
    drawn[::10] = 0.5
    with tempfile.TemporaryDirectory() as folder:
        path = write_synthetic(
            Path(folder) / "run.h5", states, np.repeat(np.arange(4), 10), ids=np.arange(40) % 7, drawn=drawn
        )
        return path.read_bytes()


@functools.cache
def run_plan() -> Any:
    """The plan of that file."""
    from sinkscope.store.reader import RunReader

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        path.write_bytes(run_file())
        with RunReader(path) as reader:
            return reader.plan
