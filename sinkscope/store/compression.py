"""Compressing a complete run file.

A running file is never compressed: every compressed write would change its structure, which must stay as it is to
survive a kill (see `RunWriter`). A complete one is written anew and put in the place of the old one at once.
"""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sinkscope.errors import InputError, StoreError
from sinkscope.store.creating import new_file
from sinkscope.store.disk import wait_for_disk, writing
from sinkscope.store.layout import STATUS_COMPLETE, row_layout
from sinkscope.store.lock import WriterLock, real_place, unfinished_place
from sinkscope.store.reader import RunReader
from sinkscope.store.seal import SEAL_BYTES, apply_seal
from sinkscope.store.structure import allocate, mutable_datasets, open_file, require_plugin

METHODS = ("blosc2", "gzip")
"""Blosc2 with zstd, for readers that have hdf5plugin; and gzip, which every reader of HDF5 opens."""

CHUNK_BYTES = 2**18
"""Of one layer, which is what readers ask for; larger chunks compress no better (`python -m benchmarks.profile`)."""

SMALLEST = 2**16
"""Bytes of a dataset that is worth it."""

LEFT_OUT = 100
"""Ranges of compressed data that the seal leaves out, the longest ones: their content has checksums of its own."""


def compress(path: str | os.PathLike[str], method: str) -> None:
    """Compress a complete run file; one that is compressed so already is left as it is.

    Parameters
    ----------
    path : path
    method : str
        One of `METHODS`.

    Raises
    ------
    InputError
        If the method is unknown or needs a package that is missing.
    StoreError
        If the file cannot be read or written, is not complete, or another writer is at work.
    """
    path = Path(path)
    options = filter_options(method)
    partial = unfinished_place(path, "compressing")
    with WriterLock(path):
        with RunReader(path) as reader:
            if reader.attributes.status != STATUS_COMPLETE:
                raise StoreError(f"{path} is not complete; finish it with --resume, then compress it")
            plan = reader.plan
        try:
            with writing(path), open_file(path) as source:
                if source.attrs.get("compression") == method:
                    return
                ranges, seal = _copy(source, partial, mutable_datasets(plan), set(row_layout(plan)), method, options)
                apply_seal(partial, ranges, seal, {})
            with RunReader(partial) as reader:
                reader.verify()
            with writing(path):
                wait_for_disk(partial)
                os.replace(partial, real_place(path))
        finally:
            partial.unlink(missing_ok=True)


def filter_options(method: str) -> dict[str, Any]:
    """The options of h5py for a method."""
    if method not in METHODS:
        raise InputError(f"no compression named {method}; there are {' and '.join(METHODS)}")
    if method == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    require_plugin()
    import hdf5plugin

    return dict(hdf5plugin.Blosc2(cname="zstd", clevel=5, filters=hdf5plugin.Blosc2.SHUFFLE))


def chunk_shape(shape: tuple[int, ...], itemsize: int, rows: bool) -> tuple[int, ...]:
    """Chunks of about `CHUNK_BYTES`: some rows of one layer, [rows, L+1, ...], or what a layer has, [L+1, ...]."""
    layer = shape[2:] if rows else shape[1:]
    each = int(np.prod(layer, dtype=np.int64)) * itemsize
    if not rows:
        return (1, *layer)
    return (max(1, min(shape[0], CHUNK_BYTES // each)), *(1,) * (len(shape) > 1), *layer)


def _copy(
    source: h5py.File, target: Path, names: list[str], rows: set[str], method: str, options: dict[str, Any]
) -> tuple[list[tuple[int, int]], int]:
    """Write the file anew; ranges of its compressed data, and the offset of its seal."""
    with new_file(target) as file:
        for name in source.attrs:
            file.attrs.create(name, source.attrs[name], dtype=source.attrs.get_id(name).dtype)
        file.attrs["compression"] = method
        large = [name for name in names if source[name].nbytes >= SMALLEST]
        others: list[str] = []
        source.visititems(lambda name, entry: others.append(name) if isinstance(entry, h5py.Dataset) else None)
        for name in sorted(set(others) - set(large) - {"progress/seal"}):
            source.copy(source[name], file, name)
        ranges: list[tuple[int, int]] = []
        for name in large:
            before = source[name]
            chunks = chunk_shape(before.shape, before.dtype.itemsize, name in rows)
            made = file.create_dataset(name, before.shape, before.dtype, chunks=chunks, **options)
            for key, value in before.attrs.items():
                made.attrs[key] = value
            for start in range(0, len(before), chunks[0]):
                made[start : start + chunks[0]] = before[start : start + chunks[0]]
            file.flush()
            # Asked for by number, every chunk would be looked for from the first one on.
            made.id.chunk_iter(lambda info: ranges.append((info.byte_offset, info.size)))
        allocate(file, "progress/seal", (SEAL_BYTES,), "uint8")
        seal = int(file["progress/seal"].id.get_offset())
    joined: list[tuple[int, int]] = []
    for offset, size in sorted(ranges):
        if joined and sum(joined[-1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + size)
        else:
            joined.append((offset, size))
    return sorted(joined, key=lambda range_: -range_[1])[:LEFT_OUT], seal
