"""Disks that are full, by the kernel's limit on the size of a file; and folders that are taken away."""

import contextlib
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_runs import make_plan, make_rows, make_statistics

from sinkscope.errors import DiskError, StoreError
from sinkscope.store.compression import compress
from sinkscope.store.creating import new_file
from sinkscope.store.lock import WriterLock, last_writer
from sinkscope.store.places import OpenPlaces
from sinkscope.store.reader import RunReader
from sinkscope.store.writer import RunWriter


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def make_run(path: Path) -> Path:
    plan = make_plan(samples=40, width=64)
    with RunWriter.create(path, plan) as writer:
        writer.commit_batch([make_rows(plan, int(sample)) for sample in plan.order], make_statistics(plan, 40))
        writer.complete(make_statistics(plan, 40))
    return path


@pytest.mark.parametrize("size", [0, 100, 2048, 20_000, 100_000])
def test_a_run_file_that_cannot_be_made_leaves_nothing(tmp_path: Path, size: int) -> None:
    path, plan = tmp_path / "run.h5", make_plan(samples=40, width=64)
    with (
        files_of_at_most(size),
        pytest.raises(DiskError, match=r"File too large.*`ulimit -f`.*then run again") as caught,
    ):
        RunWriter.create(path, plan)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []
    with RunWriter.create(path, plan) as writer:
        assert writer.samples_done == 0


@pytest.mark.parametrize("method", ["gzip", "blosc2"])
@pytest.mark.parametrize("size", [100, 20_000, 200_000])
def test_a_file_that_cannot_be_compressed_stays_as_it_is(tmp_path: Path, size: int, method: str) -> None:
    path = make_run(tmp_path / "run.h5")
    before = path.read_bytes()
    with files_of_at_most(size), pytest.raises(DiskError, match=r"too large.*`ulimit -f`.*then go on with --resume"):
        compress(path, method)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    compress(path, method)
    with RunReader(path) as reader:
        reader.verify()


def test_a_new_file_is_what_hdf5_makes_itself(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["name"] = "value"
        file.create_dataset("plain", data=np.arange(10_000))
        file.create_dataset("packed", data=np.arange(10_000), chunks=(100,), compression="gzip")
        file["plain"][5:7] = -1

    with new_file(tmp_path / "ours.h5") as ours:
        fill(ours)
    with h5py.File(tmp_path / "theirs.h5", "w") as theirs:
        fill(theirs)
    with h5py.File(tmp_path / "ours.h5") as ours, h5py.File(tmp_path / "theirs.h5") as theirs:
        assert dict(ours.attrs) == dict(theirs.attrs)
        for name in ("plain", "packed"):
            np.testing.assert_array_equal(ours[name][()], theirs[name][()])


def test_an_error_of_the_block_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), new_file(tmp_path / "new.h5"):
        raise KeyError("mine")


def test_a_folder_that_is_gone_is_told_as_such(tmp_path: Path) -> None:
    path, plan = tmp_path / "sub" / "run.h5", make_plan()
    path.parent.mkdir()
    with RunWriter.create(path, plan) as writer:
        writer.commit_batch([make_rows(plan, int(sample)) for sample in plan.order], make_statistics(plan, 6))
        shutil.rmtree(path.parent)
        with pytest.raises(DiskError, match="it was taken away; start again with another --run"):
            writer.complete(make_statistics(plan, 6))


@pytest.mark.parametrize("how", ["replaced", "cut"])
def test_a_file_that_takes_the_place_of_the_run_is_not_touched(tmp_path: Path, how: str) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    with RunWriter.create(path, plan) as writer:
        writer.commit_batch([make_rows(plan, 5)], make_statistics(plan, 1))
        if how == "replaced":
            (tmp_path / "other").write_bytes(b"A" * path.stat().st_size)
            (tmp_path / "other").replace(path)
        else:
            with path.open("r+b") as file:
                file.truncate(100)
        for sample in plan.order[1:]:
            writer.write_sample(make_rows(plan, int(sample)))
        for late in (
            writer.commit,
            writer.complete,
            lambda _: writer.statistics(),
            lambda _: writer.set_attention("x"),
        ):
            with pytest.raises(DiskError, match=r"run\.h5: it was replaced or cut .*; put it back"):
                late(make_statistics(plan, 6))
    if how == "replaced":
        assert set(path.read_bytes()) == {ord("A")}


def test_a_run_that_is_replaced_as_it_is_completed_does_not_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, path, plan = make_run(tmp_path / "other.h5"), tmp_path / "run.h5", make_plan()
    content = other.read_bytes()
    monkeypatch.setattr(OpenPlaces, "wait", lambda self: other.replace(path))
    with RunWriter.create(path, plan) as writer:
        for sample in plan.order:
            writer.write_sample(make_rows(plan, int(sample)))
        with pytest.raises(DiskError, match="replaced"):
            writer.complete(make_statistics(plan, 6))
    assert path.read_bytes() == content


def test_a_name_that_is_too_long_for_a_file_is_told_as_such(tmp_path: Path) -> None:
    for length in (248, 260):  # The first is too long for the unfinished file only.
        with pytest.raises(StoreError, match=r"File name too long.*; choose .* --run"):
            RunWriter.create(tmp_path / ("x" * length), make_plan())
    with pytest.raises(StoreError, match="there is no run file"):
        RunReader(tmp_path / ("x" * 260))
    assert list(tmp_path.iterdir()) == []


def test_a_lock_holds_where_nothing_can_be_written_into_it(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with files_of_at_most(0), WriterLock(path) as lock:
        lock.tell(3)
        assert last_writer(path) is None
    assert list(tmp_path.iterdir()) == []
