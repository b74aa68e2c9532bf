"""Locks, refusals, and runs that are killed at any moment."""

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from store_runs import make_plan, make_rows, make_statistics

from sinkscope.errors import StoreError
from sinkscope.store import places
from sinkscope.store.compression import compress
from sinkscope.store.layout import ROW_DATASETS, STATISTICS_FIELDS, RunPlan
from sinkscope.store.lock import WriterLock, last_writer
from sinkscope.store.reader import RunReader
from sinkscope.store.seal import check_seal, overwrite_attribute
from sinkscope.store.writer import RunWriter

WRITE = """
import sys, time
from store_runs import make_plan, make_rows, make_statistics
from sinkscope.store.writer import RunWriter
plan = make_plan(samples=200, width=64)
path, resume = sys.argv[1], sys.argv[2] == "resume"
with (RunWriter.resume if resume else RunWriter.create)(path, plan) as writer:
    print("open", flush=True)
    for done in range(writer.samples_done, 200):
        writer.commit_batch([make_rows(plan, int(plan.order[done]))], make_statistics(plan, done + 1))
    writer.complete(make_statistics(plan, 200))
"""
ROOT = Path(__file__).parents[2]


def write_all(path: Path, plan: RunPlan) -> None:
    with RunWriter.create(path, plan) as writer:
        for done, sample in enumerate(plan.order, start=1):
            writer.commit_batch([make_rows(plan, int(sample))], make_statistics(plan, done))
        writer.complete(make_statistics(plan, len(plan.order)))


def test_killed_at_random_moments_then_resumed_gives_the_same_datasets(tmp_path: Path) -> None:
    plan = make_plan(samples=200, width=64)
    write_all(tmp_path / "whole.h5", plan)
    path = tmp_path / "killed.h5"
    moments = random.Random(0)
    kills = 0
    for attempt in range(8):
        mode = "resume" if path.exists() else "create"
        child = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(path), mode],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])},
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(moments.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        killed = child.wait() == -signal.SIGKILL
        child.stdout.close()
        if not killed:
            break
        kills += 1
        with RunReader(path) as reader:  # Whatever the moment, the file opens and every committed byte is right.
            reader.verify()
            done, _ = reader.progress
            assert int(reader.statistics.count) == 10 * done
        assert attempt < 8
    assert kills >= 2
    with RunWriter.resume(path, plan) as writer:
        for done in range(writer.samples_done, 200):
            writer.commit_batch([make_rows(plan, int(plan.order[done]))], make_statistics(plan, done + 1))
        writer.complete(make_statistics(plan, 200))
    names = [*ROW_DATASETS, *(f"statistics/{name}" for name in STATISTICS_FIELDS), "tokens/id", "token_text/text"]
    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(path) as resumed:
        for name in names:
            assert np.asarray(whole[name][()]).tobytes() == np.asarray(resumed[name][()]).tobytes() or (
                whole[name].dtype == object and list(whole[name]) == list(resumed[name])
            ), name


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    with (
        RunWriter.create(path, plan),
        pytest.raises(StoreError, match=rf"being written by another run \(process {os.getpid()}\)"),
    ):
        RunWriter.resume(path, plan)
    with RunWriter.resume(path, plan) as writer:
        assert writer.samples_done == 0


def test_a_link_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    path, link, plan = tmp_path / "there" / "run.h5", tmp_path / "link.h5", make_plan()
    path.parent.mkdir()
    link.symlink_to("there/run.h5")
    with RunWriter.create(link, plan):
        assert path.is_file()
        assert WriterLock.place(link) == WriterLock.place(path) == path.with_name("run.h5.lock")
        for name in (path, link):
            with pytest.raises(StoreError, match="being written"):
                RunWriter.resume(name, plan)
    with RunWriter.resume(link, plan) as writer:
        for sample in plan.order:
            writer.write_sample(make_rows(plan, int(sample)))
        writer.complete(make_statistics(plan, 6))
    compress(link, "gzip")
    assert link.is_symlink()
    assert os.listdir(path.parent) == ["run.h5"]
    with RunReader(path) as reader:
        assert reader.attributes.status == "complete"


def test_a_file_with_two_names_could_be_written_twice(tmp_path: Path) -> None:
    path, other, plan = tmp_path / "run.h5", tmp_path / "other.h5", make_plan()
    RunWriter.create(path, plan).close()
    other.hardlink_to(path)
    for name in (path, other):
        with pytest.raises(
            StoreError, match="is a hard link, and the file has other names; copy it, and resume the copy"
        ):
            RunWriter.resume(name, plan)
    other.unlink()
    with RunWriter.resume(path, plan) as writer:
        for sample in plan.order:
            writer.write_sample(make_rows(plan, int(sample)))
        writer.complete(make_statistics(plan, 6))
    other.hardlink_to(path)
    with RunWriter.resume(other, plan) as writer:  # Nothing is written any more.
        assert writer.is_complete


def test_whether_a_writer_lives_is_asked_of_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with WriterLock(path) as lock:
        lock.tell(3)
        told = WriterLock.place(path).read_text()
        owner = last_writer(path)
        assert owner is not None
        assert (owner.process, owner.samples_done, owner.alive) == (os.getpid(), 3, True)
    assert last_writer(path) is None
    WriterLock.place(path).write_text(told)  # Its process is there, and writes no more: the number was given again.
    owner = last_writer(path)
    assert owner is not None
    assert owner.alive is False
    with WriterLock(path):
        pass


@pytest.mark.parametrize(
    "told", ["1 nan 0 x", "1 inf 0 x", "1 1e300 0 x", "1 -1 0 x", "-1 1 0 x", "1 1 -1 x", "1 1 0 \x1b[2J", "9" * 10**6]
)
def test_nonsense_in_a_lock_is_nobody(tmp_path: Path, told: str) -> None:
    path = tmp_path / "run.h5"
    WriterLock.place(path).write_text(told)
    assert last_writer(path) is None
    with WriterLock(path), pytest.raises(StoreError, match=rf"process {os.getpid()}\)"):
        WriterLock(path)


def test_a_lock_that_is_no_file_is_refused_and_nobody(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    os.mkfifo(WriterLock.place(path))
    assert last_writer(path) is None
    with pytest.raises(StoreError, match="no file that could lock it; remove that"):
        WriterLock(path)


def test_a_file_system_without_locks_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "run.h5"
    with WriterLock(path) as lock, WriterLock(path):
        lock.tell(3)
        owner = last_writer(path)
        assert owner is not None
        assert owner.alive is None


def test_the_lock_of_another_writer_stays(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with WriterLock(path):
        WriterLock.place(path).unlink()
        other = WriterLock(path)
    assert WriterLock.place(path).exists()
    other.release()


def test_a_lock_waits_for_those_who_only_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = WriterLock.place(tmp_path / "run.h5")
    place.touch()
    with place.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        WriterLock(tmp_path / "run.h5").release()


def test_a_stale_lock_does_not_block(tmp_path: Path) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    (tmp_path / "run.h5.lock").write_text("999999")
    with RunWriter.create(path, plan):
        assert (tmp_path / "run.h5.lock").read_text().split()[0] == str(os.getpid())


def test_the_lock_is_released_when_opening_fails(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(StoreError, match="no run file"):
            RunWriter.resume(path, make_plan())
    assert not (tmp_path / "run.h5.lock").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_id": "other"}, "model_id 'tiny', not 'other'"),
        ({"revision": "main"}, "revision None, not 'main'"),
        ({"dtype": "bfloat16"}, "dtype 'float32', not 'bfloat16'"),
        ({"settings": {"seed": 1, "levels": (0.1, 0.5)}}, r"settings\.seed 0, not 1"),
        ({"calibration": {"fingerprint": "xyz", "tokens": 60}}, r"calibration\.fingerprint 'abc', not 'xyz'"),
        ({"backbone": {"model_type": "large", "hidden_size": 16}}, r"backbone\.model_type 'tiny', not 'large'"),
    ],
)
def test_resume_names_the_first_difference(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "run.h5"
    RunWriter.create(path, make_plan()).close()
    with pytest.raises(StoreError, match=message + ".*; repeat its settings to resume it, or choose another --run"):
        RunWriter.resume(path, make_plan(**changes))
    with RunWriter.resume(path, make_plan(versions={"torch": "2"})) as writer:  # Newer libraries are no other run.
        assert writer.samples_done == 0


def test_resume_asks_what_model_and_data_are_and_not_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    known = {"fingerprint": "abc", "tokens": 60}
    path = tmp_path / "run.h5"
    RunWriter.create(path, make_plan(model_id="model", calibration=known | {"source": "texts from a"})).close()
    for same in ("model/", "./model", str(tmp_path / "model"), "link"):
        RunWriter.resume(path, make_plan(model_id=same, calibration=known | {"source": "texts from b"})).close()
    with pytest.raises(StoreError, match=r"model_id 'model', not 'a\\x00b'"):
        RunWriter.resume(path, make_plan(model_id="a\0b", calibration=known))


def test_resume_refuses_other_tokens(tmp_path: Path) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    RunWriter.create(path, plan).close()
    tokens = replace(plan.tokens, id=plan.tokens.id + 1)
    with pytest.raises(StoreError, match=r"other tokens \(other ids of 60 tokens\)"):
        RunWriter.resume(path, replace(plan, tokens=tokens))
    with pytest.raises(StoreError, match=r"other tokens \(samples of other lengths, 6 and 6\)"):
        RunWriter.resume(
            path, replace(plan, tokens=replace(plan.tokens, lengths=np.array([11, 9, *[10] * 4], np.int32)))
        )
    with pytest.raises(StoreError, match=r"other tokens \(60 and 54 tokens\)"):
        RunWriter.resume(path, replace(plan, tokens=make_plan(length=9).tokens))
    with pytest.raises(StoreError, match="attention of 30 tokens, not 0"):
        RunWriter.resume(path, replace(plan, attention_tokens=plan.attention_tokens[:0]))


def test_a_complete_run_takes_nothing_more(tmp_path: Path) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    write_all(path, plan)
    with RunWriter.resume(path, plan) as writer:
        assert writer.is_complete
        with pytest.raises(ValueError, match="written already"):
            writer.write_sample(make_rows(plan, 0))


def test_a_kill_between_the_last_record_and_the_attribute_that_repeats_it(tmp_path: Path) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    write_all(path, plan)
    with path.open("r+b") as file:
        overwrite_attribute(file, check_seal(path), "status", "running")
    with RunWriter.resume(path, plan) as writer:
        assert writer.is_complete
    with h5py.File(path) as file:
        assert file.attrs["status"].decode() == "complete"


def test_a_seal_that_leaves_out_an_attribute_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    write_all(path, plan)
    with path.open("r+b") as file:
        overwrite_attribute(file, check_seal(path), "status", "running")
    monkeypatch.setattr(places, "read_seal", lambda file: replace(check_seal(path), attributes={}))
    with pytest.raises(StoreError, match=r"damaged \(KeyError"):
        RunWriter.resume(path, plan)
