"""The structure of a run file in HDF5: made from a plan, and read back into one."""

import contextlib
import errno
import importlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sinkscope.errors import InputError, StoreError
from sinkscope.store.creating import new_file
from sinkscope.store.integrity import CommitRecord, header_checksum, newest_record, statistics_checksum
from sinkscope.store.layout import (
    ATTENTION_BYTES,
    JSON_ATTRIBUTES,
    NUMBER_ATTRIBUTES,
    RECORD_BYTES,
    SCHEMA_VERSION,
    STATISTICS_GROUPS,
    STATUS_BYTES,
    STATUS_COMPLETE,
    TEXT_ATTRIBUTES,
    RunAttributes,
    RunPlan,
    Statistics,
    empty_statistics,
    row_layout,
    statistics_layout,
)
from sinkscope.store.seal import (
    SEAL_BYTES,
    UnsealedError,
    apply_seal,
    check_seal,
    overwrite_attribute,
    placeholder,
)
from sinkscope.store.soundness import check_attribute_forms, check_plan, check_record, check_statistics
from sinkscope.store.tokens import TOKEN_DTYPES, TokenTable

SIGNATURE = b"\x89HDF\r\n\x1a\n"

TEXT_REFERENCE = np.dtype([("length", "<u4"), ("place", "<u8"), ("index", "<u4")])
"""How HDF5 stores a text of any length: its bytes, and where they are."""

# What h5py, NumPy and json raise on a file whose bytes are not what they should be.
DAMAGE = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
)


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file raises inside the block into one `StoreError`."""
    try:
        yield
    except StoreError:
        raise
    except DAMAGE as error:
        raise _refusal(path, error, f"is damaged ({type(error).__name__}: ") from error


def _refusal(path: Path, error: BaseException, what: str) -> StoreError:
    """The error about a file that cannot be read; `what` comes before the reason."""
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        return StoreError(f"cannot open {path}: too many files are open; allow more with `ulimit -n`")
    reason = " ".join(str(error).split())[:200]
    remedy = "if it was one, delete it" if isinstance(error, UnsealedError) else "delete it"
    return StoreError(f"{path} {what}{reason}); {remedy} and run again")


def open_file(path: Path) -> h5py.File:
    """Open an existing run file for reading.

    HDF5's own file locking is off: readers may open a file that is being written, and a second writer is kept out by
    `WriterLock`.

    Raises
    ------
    StoreError
        If there is no such file, or it is truncated, damaged or no run file.
    """
    if not os.path.isfile(path):
        raise StoreError(f"there is no run file at {path}; make one with `sinkscope profile MODEL --run {path}`")
    try:
        with path.open("rb") as file:
            if file.read(len(SIGNATURE)) != SIGNATURE:
                raise StoreError(
                    f"{path} is no run file (its first bytes are not those of HDF5); name one that `sinkscope profile` "
                    "has written"
                )
        check_seal(path)
        opened = h5py.File(path, "r", locking=False)
    except StoreError:
        raise
    except DAMAGE as error:
        raise _refusal(path, error, "is no readable run file (") from error
    with damage_named(path):
        check_attribute_forms(opened)
        compression = read_text(opened.attrs.get("compression", ""))
    if compression == "blosc2":
        try:
            require_plugin()
        except InputError as error:
            opened.close()
            raise StoreError(f"{path} is compressed with Blosc2; {error}") from error
    return opened


def require_plugin() -> None:
    """Make Blosc2 known to HDF5.

    Raises
    ------
    InputError
        If hdf5plugin is missing.
    """
    try:
        importlib.import_module("hdf5plugin")
    except ImportError as error:
        raise InputError(
            "Blosc2 needs the package hdf5plugin: pip install 'sinkscope[compress]', or compress with gzip"
        ) from error


def create_file(path: Path, plan: RunPlan) -> None:
    """Write a new, sealed file: attributes, tables, all datasets at their final size, and a first record."""
    attributes = {"status": placeholder(STATUS_BYTES), "attention": placeholder(ATTENTION_BYTES)}
    with new_file(path) as file:
        for name, value in attributes.items():
            file.attrs.create(name, value.encode("ascii"), dtype=h5py.string_dtype("ascii", len(value)))
        _create_structure(file, plan)
        mutable = [
            (file[name].id.get_offset(), file[name].nbytes) for name in mutable_datasets(plan) if file[name].nbytes
        ]
        seal_offset = file["progress/seal"].id.get_offset()
    apply_seal(path, mutable, seal_offset, attributes)
    seal = check_seal(path)
    with path.open("r+b", buffering=0) as written:
        for name in attributes:
            overwrite_attribute(written, seal, name, getattr(plan.attributes, name))


def mutable_datasets(plan: RunPlan) -> list[str]:
    """Names of the datasets that a run overwrites."""
    rows = list(row_layout(plan))
    statistics = [f"{group}/{name}" for group in STATISTICS_GROUPS for name in statistics_layout(plan)]
    return [*rows, *(f"checksums/{name}" for name in rows), *statistics, "progress/record"]


def _create_structure(file: h5py.File, plan: RunPlan) -> None:
    attributes = plan.attributes
    for name in TEXT_ATTRIBUTES:
        file.attrs[name] = getattr(attributes, name) or ""
    for name in JSON_ATTRIBUTES:
        file.attrs[name] = json.dumps(getattr(attributes, name), sort_keys=True)
    for name in NUMBER_ATTRIBUTES:
        file.attrs[name] = np.int64(getattr(attributes, name))
    for name, dtype in TOKEN_DTYPES.items():
        column = file.create_dataset(f"tokens/{name}", (len(plan.tokens),), dtype)
        for rows, block in plan.tokens.blocks(name):
            column[rows] = block
    texts = sorted(plan.token_text.items())
    file.create_dataset("token_text/id", data=np.array([identifier for identifier, _ in texts], np.int32))
    file.create_dataset("token_text/text", data=[text for _, text in texts], dtype=h5py.string_dtype("utf-8"))
    file.create_dataset("samples/fingerprint", data=np.asarray(plan.fingerprints, np.uint64))
    if plan.part is not None:
        file.create_dataset("samples/part", data=np.asarray(plan.part, np.int32))
    file.create_dataset("progress/order", data=np.asarray(plan.order, np.int32))
    file.create_dataset("sampled/token", data=np.asarray(plan.sampled_tokens, np.int64))
    if len(plan.attention_tokens):
        file.create_dataset("attention/token", data=np.asarray(plan.attention_tokens, np.int64))

    for name, (shape, dtype) in row_layout(plan).items():
        allocate(file, name, shape, dtype)
        allocate(file, f"checksums/{name}", (plan.num_samples,), "uint32")
    empty = empty_statistics(plan)
    for group in STATISTICS_GROUPS:
        for name, (shape, dtype) in statistics_layout(plan).items():
            allocate(file, f"{group}/{name}", shape, dtype)
        file[f"{group}/exceedance"].attrs["levels"] = np.array(plan.levels, np.float64)
    write_statistics(file, 0, empty)
    allocate(file, "progress/record", (2, RECORD_BYTES), "uint8")
    record = CommitRecord(0, 0, 0, header_checksum(plan), statistics_checksum(empty), attributes.attention)
    file["progress/record"][0] = record.encode()
    allocate(file, "progress/seal", (SEAL_BYTES,), "uint8")


def normalised(plan: RunPlan) -> RunPlan:
    """The plan as it will be read back: stored dtypes, JSON values, and text that HDF5 can hold."""
    attributes = replace(
        plan.attributes,
        attention=short_attention(plan.attributes.attention),
        **{name: json.loads(json.dumps(getattr(plan.attributes, name))) for name in JSON_ATTRIBUTES},
    )
    # HDF5 strings end at a zero byte, so a token that is one is shown as an escape. Lone surrogates are no UTF-8.
    texts = {
        int(identifier): text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
        for identifier, text in plan.token_text.items()
    }
    return replace(
        plan,
        attributes=attributes,
        tokens=replace(plan.tokens, lengths=np.ascontiguousarray(plan.tokens.lengths, np.int32)),
        token_text=texts,
        order=np.ascontiguousarray(plan.order, np.int32),
        sampled_tokens=np.ascontiguousarray(plan.sampled_tokens, np.int64),
        attention_tokens=np.ascontiguousarray(plan.attention_tokens, np.int64),
        levels=tuple(float(level) for level in plan.levels),
        fingerprints=np.ascontiguousarray(plan.fingerprints, np.uint64),
        part=None if plan.part is None else np.ascontiguousarray(plan.part, np.int32),
    )


def short_attention(attention: str) -> str:
    """The attribute cut to the bytes that it may take, on one line."""
    line = " ".join(attention.split())
    return line.encode("ascii", "replace")[:ATTENTION_BYTES].decode("ascii")


def allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """A contiguous dataset with its space reserved now and its bytes zero (a hole where the file system can)."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # Of one plan, every file has the same bytes.
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, dcpl=creation, lcpl=links)


def cached_rows(file: h5py.File, name: str) -> h5py.Dataset:
    """A row dataset, to be read some rows after others: of compressed ones, the last chunks of every layer are kept."""
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    dataset = file[name]
    if dataset.chunks:
        across = int(
            np.prod([-(-size // chunk) for size, chunk in zip(dataset.shape[1:], dataset.chunks[1:], strict=True)])
        )
        each = int(np.prod(dataset.chunks)) * dataset.dtype.itemsize
        access.set_chunk_cache(101 * across, across * each, 1.0)
    del dataset  # The cache is that of the first handle that is open.
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access))


def read_record(file: h5py.File) -> CommitRecord:
    """The newest committed state."""
    record = newest_record(read_array(file, "progress/record", "uint8"))
    if record is None:
        raise ValueError("no valid commit record")
    return record


def read_plan(file: h5py.File, record: CommitRecord) -> RunPlan:
    """The plan that a file was made from, checked against the record's checksum and the layout.

    Raises
    ------
    StoreError
        If the file has another schema version.
    ValueError, KeyError, ...
        If the file is damaged; see `damage_named`.
    """
    version = read_text(file.attrs["schema_version"])[:32]
    found, known = int(version.split(".")[0]), int(SCHEMA_VERSION.split(".")[0])
    if found != known:
        remedy = "upgrade with `pip install --upgrade sinkscope`" if found > known else "profile the model again"
        raise StoreError(
            f"{file.filename} has schema version {version}, this sinkscope reads {SCHEMA_VERSION}; {remedy}"
        )
    values: dict[str, Any] = {name: read_text(file.attrs[name]) for name in TEXT_ATTRIBUTES}
    values["revision"] = values["revision"] or None
    values |= {name: json.loads(read_text(file.attrs[name])) for name in JSON_ATTRIBUTES}
    values |= {name: int(file.attrs[name]) for name in NUMBER_ATTRIBUTES}
    # A writer marks the record complete before the attribute: the other way round, the newest record was damaged.
    if read_text(file.attrs["status"]) == STATUS_COMPLETE != record.status:
        raise ValueError("the last commit record is not valid")
    attributes = RunAttributes(**values, status=record.status, attention=record.attention)
    columns = {name: read_array(file, f"tokens/{name}", dtype) for name, dtype in TOKEN_DTYPES.items()}
    tokens = TokenTable.of_columns(**columns)
    texts, identifiers = read_texts(file, "token_text/text"), read_array(file, "token_text/id", "int32").tolist()
    attended = read_array(file, "attention/token", "int64") if "attention/token" in file else np.zeros(0, np.int64)
    plan = RunPlan(
        attributes,
        tokens,
        dict(zip(identifiers, texts, strict=True)),
        read_array(file, "progress/order", "int32"),
        read_array(file, "sampled/token", "int64"),
        attended,
        int(file["statistics/topk_odds"].shape[-1]),
        int(file["largest/dim"].shape[-1]),
        tuple(float(level) for level in file["statistics/exceedance"].attrs["levels"]),
        fingerprints=read_array(file, "samples/fingerprint", "uint64"),
        part=read_array(file, "samples/part", "int32") if "samples/part" in file else None,
        peak_states=int(file["peaks/place"].shape[-1]) if "peaks/place" in file else 0,
    )
    if header_checksum(plan) != record.header_checksum:
        raise ValueError("the checksum of attributes and tables does not match")
    expected = dict(row_layout(plan))
    for group in STATISTICS_GROUPS:
        expected |= {f"{group}/{name}": entry for name, entry in statistics_layout(plan).items()}
    for name, (shape, dtype) in expected.items():
        if file[name].shape != shape or file[name].dtype != np.dtype(dtype):
            raise ValueError(f"/{name} is {file[name].dtype} {file[name].shape}, not {dtype} {shape}")
    for name in row_layout(plan):
        sums = file[f"checksums/{name}"]
        if sums.shape != (plan.num_samples,) or sums.dtype != np.uint32:
            raise ValueError(f"/checksums/{name} is not one of each sample")
    check_plan(plan)
    check_record(record, plan)
    return plan


def read_array(file: h5py.File, name: str, dtype: str) -> NDArray[Any]:
    """A whole dataset of numbers; what the file could not hold is refused before memory is asked for it."""
    dataset = file[name]
    if dataset.dtype != np.dtype(dtype):
        raise ValueError(f"/{name} is {dataset.dtype}, not {dtype}")
    if dataset.nbytes > file.id.get_filesize():
        raise ValueError(f"/{name} is larger than its file")
    array: NDArray[Any] = dataset[()]
    return array


def read_texts(file: h5py.File, name: str) -> list[str]:
    """A whole dataset of texts; more of them than the file could hold are refused before memory is asked for them.

    HDF5 keeps a text's length and where it is. A file may lead to one and the same text many times, so that what there
    is to be read can be far longer than the file.
    """
    dataset = file[name]
    if h5py.check_string_dtype(dataset.dtype) is None or dataset.ndim != 1:
        raise ValueError(f"/{name} holds no texts")
    if not len(dataset):
        return []
    offset = dataset.id.get_offset()
    if offset is None or dataset.id.get_storage_size() != len(dataset) * TEXT_REFERENCE.itemsize:
        raise ValueError(f"/{name} is packed in an unknown way")
    references = np.fromfile(file.filename, TEXT_REFERENCE, len(dataset), offset=offset)
    if references["length"].sum(dtype=np.int64) > file.id.get_filesize():
        raise ValueError(f"/{name} is larger than its file")
    return [read_text(text) for text in dataset[()]]


def read_text(value: Any) -> str:
    """A string attribute or element, whichever of its forms h5py gives."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def write_statistics(file: h5py.File, slot: int, statistics: Statistics) -> None:
    """Overwrite one slot of the accumulators."""
    for name, array in statistics.arrays().items():
        file[f"{STATISTICS_GROUPS[slot]}/{name}"][...] = array


def read_statistics(file: h5py.File, plan: RunPlan, record: CommitRecord) -> Statistics:
    """The committed accumulators, checked against the record's checksum."""
    group = STATISTICS_GROUPS[record.slot]
    arrays = {name: np.asarray(file[f"{group}/{name}"][()]) for name in statistics_layout(plan)}
    statistics = Statistics(levels=plan.levels, **arrays)
    if statistics_checksum(statistics) != record.statistics_checksum:
        raise ValueError(f"the checksum of /{group} does not match")
    check_statistics(statistics, plan)
    return statistics
