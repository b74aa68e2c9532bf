"""What is written is what is read, finished or not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from store_runs import make_plan, make_rows, make_statistics

from sinkscope.errors import StoreError
from sinkscope.store.layout import STATISTICS_FIELDS, row_layout
from sinkscope.store.reader import RunReader
from sinkscope.store.writer import RunWriter


def write(path: Path, done: int, complete: bool) -> None:
    plan = make_plan()
    with RunWriter.create(path, plan) as writer:
        for number, sample in enumerate(plan.order[:done], start=1):
            writer.commit_batch([make_rows(plan, int(sample))], make_statistics(plan, number))
        if complete:
            writer.complete(make_statistics(plan, done))


def test_complete_run_round_trip(tmp_path: Path) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    write(path, 6, complete=True)
    with RunReader(path) as reader:
        reader.verify()
        assert reader.attributes.status == "complete"
        assert reader.attributes.settings == {"seed": 0, "levels": [0.1, 0.5]}
        assert reader.attributes.revision is None
        assert reader.progress == (6, 6)
        assert reader.token_text[6] == "zero\\x00byte é 中"
        for name in ("id", "position", "sample", "kind"):
            np.testing.assert_array_equal(getattr(reader.tokens, name), getattr(plan.tokens, name))
        expected = make_statistics(plan, 6)
        for name in STATISTICS_FIELDS:
            np.testing.assert_array_equal(getattr(reader.statistics, name), getattr(expected, name), err_msg=name)
        assert reader.statistics.levels == (0.1, 0.5)
        rows = [make_rows(plan, sample) for sample in range(6)]
        dim, value, rms = reader.largest(2)
        np.testing.assert_array_equal(dim, np.concatenate([entry.largest_dim[:, 2] for entry in rows]))
        np.testing.assert_array_equal(value, np.concatenate([entry.largest_value[:, 2] for entry in rows]))
        np.testing.assert_array_equal(rms, np.concatenate([entry.rms[:, 2] for entry in rows]))
        token, states = reader.sampled(1)
        np.testing.assert_array_equal(token, plan.sampled_tokens)
        np.testing.assert_array_equal(states, np.concatenate([entry.states[:, 1] for entry in rows]))
        assert states.dtype == np.float32
        attention = reader.attention
        assert attention is not None
        np.testing.assert_array_equal(attention.token, plan.attention_tokens)
        np.testing.assert_array_equal(
            attention.drawn, np.concatenate([entry.drawn for entry in rows if entry.drawn is not None])
        )


def test_a_finished_file_has_the_documented_layout(tmp_path: Path) -> None:
    write(tmp_path / "run.h5", 6, complete=True)
    with h5py.File(tmp_path / "run.h5") as file:
        assert file.attrs["status"].decode() == "complete"
        assert file.attrs["schema_version"] == "2.0"
        assert file["tokens/kind"].dtype == np.uint8
        assert file["statistics/topk_odds"].shape == (4, 16, 4)
        assert file["sampled/states"].dtype == np.float16
        assert len(file["attention/drawn"]) == 30
        np.testing.assert_array_equal(file["statistics/sum_rms"], make_statistics(make_plan(), 6).sum_rms)
    assert not (tmp_path / "run.h5.lock").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.h5"]


@pytest.mark.parametrize("done", [0, 1, 2, 5])
def test_an_unfinished_file_shows_its_committed_samples(tmp_path: Path, done: int) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    write(path, done, complete=False)
    with RunReader(path) as reader:
        reader.verify()
        kept = sorted(plan.order[:done].tolist())
        assert reader.attributes.status == "running"
        assert sorted(set(reader.tokens.sample.tolist())) == kept
        assert int(reader.statistics.count) == len(reader.tokens) == 10 * done
        token, _ = reader.sampled(0)
        np.testing.assert_array_equal(reader.tokens.sample[token], [s for s in plan.tokens.sample[::3] if s in kept])
        attention = reader.attention
        assert attention is not None
        assert set(reader.tokens.sample[attention.token].tolist()) == {s for s in kept if s % 2 == 0}


def test_rows_without_commit_do_not_count(tmp_path: Path) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    with RunWriter.create(path, plan) as writer:
        writer.commit_batch([make_rows(plan, 5)], make_statistics(plan, 1))
        writer.write_sample(make_rows(plan, 4))
        with RunReader(path) as reader:  # Also while the writer is open.
            assert reader.progress == (1, 6)
    with RunWriter.resume(path, plan) as writer:
        assert writer.samples_done == 1
        np.testing.assert_array_equal(writer.statistics().sum_rms, make_statistics(plan, 1).sum_rms)
        with pytest.raises(ValueError, match="order has sample 4"):
            writer.write_sample(make_rows(plan, 3))
        with pytest.raises(ValueError, match="5 samples are missing"):
            writer.complete(make_statistics(plan, 1))


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    plan = make_plan()
    with RunWriter.create(tmp_path / "run.h5", plan) as writer:
        other = make_plan(length=9)
        with pytest.raises(ValueError, match=r"rows of largest/dim are .*\(9, 4, 3\)"):
            writer.write_sample(make_rows(other, 5))
        with pytest.raises(ValueError, match="statistics topk_odds"):
            writer.commit(make_statistics(make_plan(width=8), 0))


def test_a_file_does_not_tell_when_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, times = h5py.h5d.create, []

    def noted(*arguments: Any, dcpl: Any, **options: Any) -> Any:
        times.append(dcpl.get_obj_track_times())
        return create(*arguments, dcpl=dcpl, **options)

    monkeypatch.setattr(h5py.h5d, "create", noted)
    for name in "ab":
        write(tmp_path / name, 6, complete=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(times) > 80
    assert not any(times)


def test_every_row_dataset_has_a_checksum(tmp_path: Path) -> None:
    write(tmp_path / "run.h5", 6, complete=True)
    with h5py.File(tmp_path / "run.h5") as file:
        for name in row_layout(make_plan()):
            assert file[f"checksums/{name}"].shape == (6,)


def test_attention_can_be_given_up_later(tmp_path: Path) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    with RunWriter.create(path, plan) as writer:
        writer.set_attention("unavailable: the tap\nbroke " + "x" * 600)
    with RunReader(path) as reader:
        assert reader.attributes.attention.startswith("unavailable: the tap broke x")
        assert reader.attention is None


def test_attention_of_no_token_is_an_empty_table(tmp_path: Path) -> None:
    plan = replace(make_plan(), attention_tokens=np.zeros(0, np.int64))
    with RunWriter.create(tmp_path / "run.h5", plan) as writer:
        for sample in plan.order:
            writer.write_sample(make_rows(plan, int(sample)))
        writer.complete(make_statistics(plan, 6))
    with RunReader(tmp_path / "run.h5") as reader:
        reader.verify()
        table = reader.attention
        assert table is not None
        assert [len(array) for array in vars(table).values()] == [0] * 5
        assert table.drawn.shape == (0, 3)


def test_create_refuses_an_existing_file_and_a_missing_folder(tmp_path: Path) -> None:
    write(tmp_path / "run.h5", 1, complete=False)
    with pytest.raises(StoreError, match="exists already; go on with --resume"):
        RunWriter.create(tmp_path / "run.h5", make_plan())
    with pytest.raises(StoreError, match="cannot write"):
        RunWriter.create(tmp_path / "nowhere" / "run.h5", make_plan())
