"""Writing a run file, so that it survives a kill at any moment."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from sinkscope.errors import DiskError, StoreError
from sinkscope.store.disk import writing
from sinkscope.store.integrity import CommitRecord, checksum, statistics_checksum
from sinkscope.store.layout import (
    JSON_ATTRIBUTES,
    NUMBER_ATTRIBUTES,
    SAMPLE_LIMIT,
    STATISTICS_GROUPS,
    STATUS_COMPLETE,
    TOKEN_LIMIT,
    RunPlan,
    SampleRows,
    Statistics,
    file_bytes,
    row_layout,
    statistics_layout,
)
from sinkscope.store.lock import WriterLock, real_place, unfinished_place
from sinkscope.store.places import OpenPlaces
from sinkscope.store.reader import RunReader
from sinkscope.store.soundness import check_attributes
from sinkscope.store.structure import (
    create_file,
    damage_named,
    mutable_datasets,
    normalised,
    open_file,
    read_record,
    read_statistics,
    read_text,
    short_attention,
)
from sinkscope.store.tokens import TOKEN_DTYPES

REPEATED = ("status", "attention")
"""Attributes that repeat the commit record for other tools; readers here trust the record."""


class RunWriter:
    """Write access to a run file; a context manager. Made by `create` or `resume`.

    What is guaranteed: when the process dies, whenever and however, also inside a write or a flush, the file opens and
    holds exactly the last committed state, and a resumed run ends with the same bytes as an unbroken one in every
    dataset but those that tell how it was written: `/recovery`, `/progress/record` and `/progress/seal`. It rests on
    three things. The file appears under its name only when its structure is whole, and the structure never changes
    afterwards. Rows of uncommitted samples are overwritten by the run that resumes. Accumulators and commit records
    have two slots each, of which a commit only touches the one that is not in force; a record carries its own checksum,
    so a torn one does not count.

    Not guaranteed: that commits survive a power failure (only `complete` waits for the disk); damage from one is found
    by the checksums.
    """

    def __init__(self, path: Path, places: OpenPlaces, lock: WriterLock, plan: RunPlan, record: CommitRecord) -> None:
        self.path = path
        self.plan = plan
        self._places = places
        self._lock = lock
        lock.tell(record.samples_done)
        self._record = record
        self._written = record.samples_done
        self._spans = {name: plan.spans(name) for name in row_layout(plan)}

    @classmethod
    def create(cls, path: str | os.PathLike[str], plan: RunPlan) -> Self:
        """Make a new run file.

        Raises
        ------
        StoreError
            If there is a file already, another writer is at work, the folder cannot be written, or the plan has more
            tokens or samples, or larger numbers, than a run file can hold.
        DiskError
            If the disk is too full, or fails.
        """
        path = Path(path)
        _check_limits(path, plan)
        plan = normalised(plan)
        lock, partial = WriterLock(path), unfinished_place(path, "partial")
        try:
            if path.exists():
                raise StoreError(f"{path} exists already; go on with --resume, or delete it or choose another --run")
            _check_space(path, plan)
            with writing(path, again="run again"):
                create_file(partial, plan)
                os.replace(partial, real_place(path))
            return cls._open(path, lock, plan)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            lock.release()
            raise

    @classmethod
    def resume(cls, path: str | os.PathLike[str], plan: RunPlan) -> Self:
        """Go on with the run file at `path`, which must have been made from the same plan.

        Raises
        ------
        StoreError
            If there is no file, it is damaged, another writer is at work, it has several names, or it belongs to
            another run; the message then names the first difference with both values.
        """
        path = Path(path)
        lock = WriterLock(path)
        try:
            plan = normalised(plan)
            with RunReader(path) as reader:
                refuse_difference(path, reader.plan, plan)
                reader.verify()
            return cls._open(path, lock, plan)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _open(cls, path: Path, lock: WriterLock, plan: RunPlan) -> Self:
        with damage_named(path), writing(path):
            places = OpenPlaces(path)
        try:
            with open_file(path) as file, damage_named(path):
                record = read_record(file)
                # A complete file takes nothing more, and may be compressed.
                places.find(file, mutable_datasets(plan) if record.status != STATUS_COMPLETE else ())
                told = {name: read_text(file.attrs[name]) for name in REPEATED}
            writer = cls(path, places, lock, plan, record)
            writer._check_file()
            if not writer.is_complete and places.names() > 1:  # The lock is that of one.
                raise StoreError(f"{path} is a hard link, and the file has other names; copy it, and resume the copy")
            with damage_named(path):  # A forged seal may not say where the attributes are.
                writer._repeat(told)  # A process that was killed right after a record may not have come to it.
        except BaseException:
            places.close()
            raise
        return writer

    @property
    def samples_done(self) -> int:
        """How many samples of the plan's order are committed."""
        return self._record.samples_done

    @property
    def is_complete(self) -> bool:
        return self._record.status == STATUS_COMPLETE

    def statistics(self) -> Statistics:
        """The committed accumulators, to go on from."""
        self._check_file()
        with open_file(self.path) as file, damage_named(self.path):
            return read_statistics(file, self.plan, self._record)

    def write_sample(self, rows: SampleRows) -> None:
        """Write the rows of the next sample of the plan's order. They count from the next `commit` on.

        Raises
        ------
        DiskError
            If the disk is full or fails.
        ValueError
            If it is not the next sample, or its arrays do not fit the plan.
        """
        if self.is_complete or self._written >= self.plan.num_samples:
            raise ValueError("all samples are written already")
        expected = int(self.plan.order[self._written])
        if rows.sample != expected:
            raise ValueError(f"sample {rows.sample} was written where the plan's order has sample {expected}")
        with writing(self.path):
            for name, (shape, dtype) in row_layout(self.plan).items():
                start, stop = self._spans[name][rows.sample]
                array = rows.dataset(name)
                if start == stop:
                    continue
                if array is None or array.shape != (stop - start, *shape[1:]) or array.dtype != np.dtype(dtype):
                    found = None if array is None else (array.dtype, array.shape)
                    raise ValueError(f"rows of {name} are {found}, not {dtype} {(stop - start, *shape[1:])}")
                self._places.put(name, array, start)
                self._places.put(f"checksums/{name}", np.array([checksum([array])], np.uint32), rows.sample)
        self._written += 1

    def commit(self, statistics: Statistics) -> None:
        """Commit all samples written so far, with the accumulators over exactly these samples."""
        self._commit(statistics, self._record.status, self._record.attention)

    def commit_batch(self, rows: Iterable[SampleRows], statistics: Statistics) -> None:
        """Write the samples of a batch and commit them, whole or not at all."""
        for sample in rows:
            self.write_sample(sample)
        self.commit(statistics)

    def set_attention(self, attention: str) -> None:
        """Change the attribute `attention`, for a run that finds that it cannot measure it."""
        self._commit(self.statistics(), self._record.status, short_attention(attention))

    def complete(self, statistics: Statistics) -> None:
        """Commit the rest, mark the run complete and wait for the disk.

        Raises
        ------
        DiskError
            If the disk is full or fails, or the file is no longer what its path leads to.
        ValueError
            If samples are missing.
        """
        if self.is_complete:
            return
        if self._written != self.plan.num_samples:
            raise ValueError(f"{self.plan.num_samples - self._written} samples are missing")
        self.commit(statistics)
        if self._record.slot != 0:  # A finished file has its statistics under /statistics.
            self.commit(statistics)
        for _ in range(2):  # Into both slots, so that damage to one later changes nothing.
            self._commit_record(replace(self._record, sequence=self._record.sequence + 1, status=STATUS_COMPLETE))
        with writing(self.path):
            self._places.wait()
        self._check_file()

    def close(self) -> None:
        """Close the file and release the lock. Rows after the last commit do not count."""
        try:
            with writing(self.path):
                self._places.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_file(self) -> None:
        """Refuse to go on with a file that is no longer what its path leads to: others would read something else."""
        with writing(self.path):
            if not self._places.is_whole():
                raise DiskError(
                    f"cannot write {self.path}: it was replaced or cut meanwhile; put it back and go on with --resume, "
                    "or start again with another --run"
                )

    def _commit(self, statistics: Statistics, status: str, attention: str) -> None:
        self._check_file()
        for name, (shape, dtype) in statistics_layout(self.plan).items():
            array = np.asarray(getattr(statistics, name))
            if array.shape != shape or array.dtype != np.dtype(dtype):
                raise ValueError(f"statistics {name} are {array.dtype} {array.shape}, not {dtype} {shape}")
        slot = 1 - self._record.slot
        with writing(self.path):
            for name, array in statistics.arrays().items():
                self._places.put(f"{STATISTICS_GROUPS[slot]}/{name}", np.asarray(array))
        self._commit_record(
            CommitRecord(
                self._record.sequence + 1,
                slot,
                self._written,
                self._record.header_checksum,
                statistics_checksum(statistics),
                attention,
                status,
            )
        )

    def _commit_record(self, record: CommitRecord) -> None:
        told = {name: getattr(self._record, name) for name in REPEATED}
        with writing(self.path):
            self._places.put("progress/record", record.encode(), record.sequence % 2)
        self._record = record
        self._repeat(told)

    def _repeat(self, told: Mapping[str, str]) -> None:
        """Let the attributes say what the record says, where they say otherwise."""
        with writing(self.path):
            for name, value in told.items():
                if (now := getattr(self._record, name)) != value:
                    self._places.put_attribute(name, now)


def refuse_difference(path: Path, found: RunPlan, wanted: RunPlan) -> None:
    """Refuse to go on with a file that was made from another plan.

    Raises
    ------
    StoreError
        Naming the first difference, with both values and what to do.
    """
    for name, before, now in compared(found, wanted):
        if before != now:
            raise StoreError(
                f"{path} is a run with {name} {shown(before)}, not {shown(now)}; repeat its settings to resume it, "
                "or choose another --run"
            )
    if different := _different_table(found, wanted):
        raise StoreError(
            f"{path} is a run over other tokens ({different}); repeat its tokenizer and calibration data to resume it, "
            "or choose another --run"
        )
    if not np.array_equal(found.attention_tokens, wanted.attention_tokens):
        raise StoreError(
            f"{path} is a run with attention of {len(found.attention_tokens)} tokens, not "
            f"{len(wanted.attention_tokens)}; repeat its settings to resume it, or choose another --run"
        )


def compared(found: RunPlan, wanted: RunPlan) -> Iterable[tuple[str, Any, Any]]:
    """Name and both values of all that must match, mappings entry by entry."""
    for name in ("model_id", "revision", "dtype", *NUMBER_ATTRIBUTES, *JSON_ATTRIBUTES):
        before, now = getattr(found.attributes, name), getattr(wanted.attributes, name)
        if name == "versions":  # Recorded, but a resume under a patched library is the user's decision.
            continue
        if name in JSON_ATTRIBUTES:
            for key in sorted({*before, *now}):
                if (name, key) == ("calibration", "source"):  # The fingerprint says what the data are, from wherever.
                    continue
                # A key of somebody else's file may hold anything, and messages are one line.
                yield f"{name}.{' '.join(key.split())[:80]}", before.get(key), now.get(key)
        elif name != "model_id" or _leads_to(before) != _leads_to(now):
            yield name, before, now
    for name in ("top_tokens", "largest", "levels", "peak_states"):
        yield name, getattr(found, name), getattr(wanted, name)


def _leads_to(model_id: str) -> str:
    """A model id in the one form that a folder or file has, however it was written: "model" and "./model/" are one."""
    return os.path.realpath(model_id) if os.path.exists(model_id) else os.path.normpath(model_id)


def _different_table(found: RunPlan, wanted: RunPlan) -> str | None:
    """The first table that does not match, with its entries."""
    one, other = found.tokens, wanted.tokens
    if len(one) != len(other):
        return f"{len(one):,} and {len(other):,} tokens"
    if not np.array_equal(one.lengths, other.lengths):
        return f"samples of other lengths, {len(one.lengths):,} and {len(other.lengths):,}"
    for name in TOKEN_DTYPES:
        blocks = zip(one.blocks(name), other.blocks(name), strict=True)
        if not all(np.array_equal(first, second) for (_, first), (_, second) in blocks):
            return f"other {name}s of {len(one):,} tokens"
    for name in ("fingerprints", "order", "sampled_tokens"):
        first, second = getattr(found, name), getattr(wanted, name)
        if not np.array_equal(first, second):
            return f"{name} differ: {len(first):,} and {len(second):,} entries"
    return None


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_limits(path: Path, plan: RunPlan) -> None:
    for count, limit, what in ((len(plan.tokens), TOKEN_LIMIT, "tokens"), (plan.num_samples, SAMPLE_LIMIT, "samples")):
        if count > limit:
            raise StoreError(
                f"{path} would hold {count:,} {what}, and a run file holds {limit:,} at most; spread the data over "
                "several runs"
            )
    try:
        check_attributes(plan.attributes)
    except ValueError as error:
        raise StoreError(f"{path} cannot hold the settings of this run ({error}); give others") from error


def _check_space(path: Path, plan: RunPlan) -> None:
    needed = file_bytes(plan)
    free = shutil.disk_usage(real_place(path).parent).free
    if needed > free:
        raise DiskError(
            f"{path} will take {needed / 2**20:.0f} MiB and the disk has {free / 2**20:.0f} MiB left; free space "
            "there, or choose another --run or fewer --tokens"
        )
