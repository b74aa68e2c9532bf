"""Run files that HDF5 opens and that are wrong inside, sealed again as an attacker can."""

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from benchmarks.faults.malformed.base import run_file
from sinkscope.store.layout import JSON_ATTRIBUTES, NUMBER_ATTRIBUTES, TEXT_ATTRIBUTES
from sinkscope.store.seal import WORDS, apply_seal

ATTRIBUTES = (*TEXT_ATTRIBUTES, *JSON_ATTRIBUTES, *NUMBER_ATTRIBUTES, "status", "attention", "compression", "odd")
VALUES: tuple[Any, ...] = (
    0,
    -1,
    2**40,
    1.5,
    float("nan"),
    "",
    "odd",
    "2.0.0",
    "9" * 5000 + ".0",
    "\uff12.0",
    "[]",
    "null",
    "{}",
    '{"a": ' * 30_000,
    "[NaN]",
    "x" * 60_000,
    "\x1b[2J",
    b"\xff\xfe",
    np.arange(5),
    np.zeros((2, 2)),
    ["a", "b"],
    h5py.Empty("f4"),
    h5py.Empty("S4"),
    np.array([(1, 2.0)], "i4,f8"),
    np.void(b"opaque"),
)
DTYPES: tuple[Any, ...] = (
    "float64",
    "int8",
    "uint64",
    "bool",
    "complex64",
    "S5",
    ">f4",
    "i4,f8",
    "V7",
    h5py.string_dtype(),
    h5py.vlen_dtype("i4"),
    h5py.ref_dtype,
    h5py.enum_dtype({"a": 1}),
    "(3,)f4",
)


REFUSED = (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError)
"""What h5py raises where a step cannot be done, such as giving a group another dtype."""


@dataclass(frozen=True)
class Forged:
    """A run file after some steps, by their names; how they go is drawn from the seed."""

    steps: tuple[str, ...]
    seed: int
    sealed: bool

    def write(self, path: Path) -> None:
        path.write_bytes(run_file())
        generator = random.Random(self.seed)
        for step in self.steps:
            # A step that cannot be done leaves the file as the steps before made it.
            with contextlib.suppress(*REFUSED), h5py.File(path, "r+") as file:
                STEPS[step](file, generator)
        if self.sealed:
            seal_again(path)


def seal_again(path: Path) -> None:
    """Seal all of a file as it is, where it still has the place for it."""
    place = path.read_bytes().rfind(WORDS)
    if place >= 0:
        apply_seal(path, [], place, {})


def some(file: h5py.File, generator: random.Random) -> str:
    """The name of a dataset or, seldom, of a group; the seal is left alone."""
    names: list[str] = []
    file.visititems(
        lambda name, entry: names.append(name) if isinstance(entry, h5py.Dataset) or "/" not in name else None
    )
    return generator.choice([name for name in names if name not in ("progress/seal", "progress")])


def delete(file: h5py.File, generator: random.Random) -> None:
    del file[some(file, generator)]


def rename(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    file.move(name, generator.choice([name + "_", "elsewhere/" + name, some(file, generator) + "x"]))


def swap(file: h5py.File, generator: random.Random) -> None:
    one, other = some(file, generator), some(file, generator)
    file.move(one, "for now")
    file.move(other, one)
    file.move("for now", other)


def add(file: h5py.File, generator: random.Random) -> None:
    file.create_dataset(
        generator.choice(["extra", "statistics/extra", "peaks/place", "attention/extra"]), data=np.zeros(3)
    )


def replaced(file: h5py.File, name: str, **how: Any) -> None:
    shape, dtype, attributes = file[name].shape, file[name].dtype, dict(file[name].attrs)
    data = file[name][()]
    del file[name]
    made = file.create_dataset(name, **({"shape": shape, "dtype": dtype} | how))
    made.attrs.update(attributes)
    if not {"shape", "dtype", "external"} & how.keys():
        made[...] = data


def retype(file: h5py.File, generator: random.Random) -> None:
    replaced(file, some(file, generator), dtype=generator.choice(DTYPES))


def reshape(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    shape = file[name].shape
    odd = generator.choice([(), (0,), (1,), (*shape, 1), shape[::-1], (*shape[:-1], 0), (2,) * 20])
    replaced(file, name, shape=odd)


def enlarge(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    shape = file[name].shape
    odd = generator.choice([(2**40,), (2**20, *shape[1:]), (*shape[:-1], 2**32), (2**31,)])
    replaced(file, name, shape=odd, chunks=(1,) * len(odd))


def empty(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    dtype = file[name].dtype
    del file[name]
    file[name] = h5py.Empty(dtype)


def compress(file: h5py.File, generator: random.Random) -> None:
    replaced(file, some(file, generator), chunks=True, compression=generator.choice(["gzip", "lzf"]), shuffle=True)


def strange_filter(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    dataset = file[name]
    shape, dtype = dataset.shape, dataset.dtype
    del file[name]
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk(tuple(max(1, size) for size in shape))
    creation.set_filter(generator.choice([257, 305, 32008, 32026, 65000]), h5py.h5z.FLAG_OPTIONAL, (1, 2))
    kind = h5py.h5t.py_create(dtype)
    made = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), dcpl=creation)
    made.write_direct_chunk((0,) * len(shape), b"odd", 0)


def group(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    del file[name]
    file.create_group(name)


def soft_loop(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    del file[name]
    file[name] = h5py.SoftLink(generator.choice(["/" + name, "/nowhere", "/", "/" + some(file, generator)]))


def hard_loop(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    del file[name]
    file[name] = file["/"]


def external_link(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    del file[name]
    file[name] = h5py.ExternalLink(generator.choice(["secret.h5", "pipe", "/proc/self/mem", "run.h5"]), "/" + name)


def external_storage(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    size = max(1, file[name].nbytes)
    replaced(file, name, external=[(generator.choice(["secret.h5", "pipe", "/etc/passwd", "/dev/zero"]), 0, size)])


def virtual(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    shape, dtype = file[name].shape, file[name].dtype
    layout = h5py.VirtualLayout(shape=shape, dtype=dtype)
    place = generator.choice(["secret.h5", "pipe", "run.h5", "."])
    layout[...] = h5py.VirtualSource(place, name, shape=shape, dtype=dtype)
    del file[name]
    file.create_virtual_dataset(name, layout)


def attribute(file: h5py.File, generator: random.Random) -> None:
    name, value = generator.choice(ATTRIBUTES), generator.choice(VALUES)
    file.attrs[name] = value


def attribute_gone(file: h5py.File, generator: random.Random) -> None:
    del file.attrs[generator.choice(ATTRIBUTES)]


def levels(file: h5py.File, generator: random.Random) -> None:
    file["statistics/exceedance"].attrs["levels"] = generator.choice(VALUES)


def many_attributes(file: h5py.File, generator: random.Random) -> None:
    for number in range(500):
        file.attrs[f"odd {number}"] = "x" * generator.choice([1, 1000])


def values(file: h5py.File, generator: random.Random) -> None:
    name = some(file, generator)
    dataset = file[name]
    if dataset.dtype.kind in "iuf" and dataset.size:
        odd = [np.nan, np.inf, -1e30] if dataset.dtype.kind == "f" else [0, -1, 2**31 - 1, 2**62]
        flat = dataset[()].reshape(-1)
        flat[generator.randrange(flat.size)] = np.array(generator.choice(odd)).astype(flat.dtype)
        dataset[...] = flat.reshape(dataset.shape)


Step: TypeAlias = Callable[[h5py.File, random.Random], None]

STEPS: dict[str, Step] = {
    step.__name__: step
    for step in (
        delete,
        rename,
        swap,
        add,
        retype,
        reshape,
        enlarge,
        empty,
        compress,
        strange_filter,
        group,
        soft_loop,
        hard_loop,
        external_link,
        external_storage,
        virtual,
        attribute,
        attribute_gone,
        levels,
        many_attributes,
        values,
    )
}
