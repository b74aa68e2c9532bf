"""Damaged files give one clear line, and a damaged byte is never read as data."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from store_runs import make_plan, make_rows, make_statistics

from sinkscope.errors import StoreError
from sinkscope.store.layout import ROW_DATASETS
from sinkscope.store.reader import RunReader
from sinkscope.store.structure import create_file, normalised
from sinkscope.store.writer import RunWriter


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path, plan = tmp_path / "run.h5", make_plan()
    with RunWriter.create(path, plan) as writer:
        for sample in plan.order:
            writer.write_sample(make_rows(plan, int(sample)))
        writer.complete(make_statistics(plan, 6))
    return path


def contents(path: Path) -> list[bytes | str]:
    with RunReader(path) as reader:
        reader.verify()
        found: list[bytes | str] = [repr(reader.attributes), repr(reader.token_text), reader.tokens.id.tobytes()]
        found += [array.tobytes() for array in reader.statistics.arrays().values()]
        for layer in range(4):
            found += [array.tobytes() for array in (*reader.largest(layer), *reader.sampled(layer))]
        attention = reader.attention
        assert attention is not None
        return [*found, attention.drawn.tobytes(), attention.token.tobytes()]


@pytest.mark.parametrize("content", [b"", b"not a run file", b"\x89HDF\r\n\x1a\n", b"\0" * 5000])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(content)
    reason = "no run file .*; name one" if not content.startswith(b"\x89HDF") else "no readable run file"
    with pytest.raises(StoreError, match=reason) as caught:
        RunReader(path)
    assert "\n" not in str(caught.value)
    assert "; delete it" not in str(caught.value), "it may be somebody's"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no run file"):
        RunReader(tmp_path / "run.h5")
    with pytest.raises(StoreError, match="there is no run file"):
        RunWriter.resume(tmp_path / "run.h5", make_plan())
    assert not list(tmp_path.iterdir())


def test_another_hdf5_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file["something"] = [1, 2, 3]
    with pytest.raises(StoreError, match="not written by sinkscope"):
        RunReader(tmp_path / "run.h5")


@pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
def test_truncated(run_file: Path, part: float) -> None:
    data = run_file.read_bytes()
    run_file.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(StoreError, match=r"truncated|first bytes") as caught:
        RunReader(run_file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", [*ROW_DATASETS, "statistics/topk_odds", "tokens/kind", "sampled/token", "progress/order"]
)
def test_a_flipped_bit_in_any_dataset_is_found(run_file: Path, name: str) -> None:
    with h5py.File(run_file) as file:
        offset = file[name].id.get_offset() + 3
    data = bytearray(run_file.read_bytes())
    data[offset] ^= 4
    run_file.write_bytes(data)
    with pytest.raises(StoreError, match="checksum") as caught:
        contents(run_file)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError):
        RunWriter.resume(run_file, make_plan())


def test_flipped_bits_anywhere_are_found_or_harmless(run_file: Path) -> None:
    good, data = contents(run_file), run_file.read_bytes()
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(120):
        flipped = bytearray(data)
        flipped[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
        run_file.write_bytes(flipped)
        try:
            assert contents(run_file) == good
        except StoreError:
            found += 1
    assert found > 60


def test_a_torn_commit_falls_back_to_the_one_before(tmp_path: Path) -> None:
    path, plan = tmp_path / "run.h5", make_plan()
    with RunWriter.create(path, plan) as writer:
        writer.commit_batch([make_rows(plan, 5)], make_statistics(plan, 1))
    with h5py.File(path, "r+") as file:
        # What a kill inside the next commit leaves: its statistics slot and its record half written.
        file["statistics/sum_rms"][0] = -1
        file["progress/record"][0, :40] = 0
    with RunReader(path) as reader:
        assert reader.progress == (1, 6)
        np.testing.assert_array_equal(reader.statistics.sum_rms, make_statistics(plan, 1).sum_rms)


@pytest.mark.parametrize(("version", "remedy"), [("3.0", "pip install --upgrade"), ("1.0", "profile the model again")])
def test_another_schema_is_refused(tmp_path: Path, version: str, remedy: str) -> None:
    create_file(tmp_path / "run.h5", normalised(make_plan(schema_version=version)))
    with pytest.raises(StoreError, match=rf"schema version {version}.*{remedy}"):
        RunReader(tmp_path / "run.h5")
