"""Compressed run files hold the same, and what is damaged in them is found."""

import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from store_runs import make_plan, make_rows, make_statistics

from sinkscope.errors import InputError, StoreError
from sinkscope.store import compression as module
from sinkscope.store.compression import chunk_shape, compress
from sinkscope.store.reader import RunReader
from sinkscope.store.seal import check_seal
from sinkscope.store.writer import RunWriter

PLAN = make_plan(samples=8, length=60, layers=4, width=96)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "run.h5"
    with RunWriter.create(path, PLAN) as writer:
        for sample in PLAN.order:
            writer.write_sample(make_rows(PLAN, int(sample)))
        writer.complete(make_statistics(PLAN, 8))
    return path


def content(path: Path) -> list[bytes]:
    with RunReader(path) as reader:
        reader.verify()
        found = [array.tobytes() for array in reader.statistics.arrays().values()]
        for layer in range(5):
            arrays: list[Any] = [*reader.largest(layer), *reader.sampled(layer), *reader.peak_states(layer)]
            found += [array.tobytes() for array in arrays]
        attention = reader.attention
        assert attention is not None
        return [*found, attention.drawn.tobytes(), str(reader.attributes).encode()]


@pytest.mark.parametrize("method", ["blosc2", "gzip"])
def test_a_compressed_file_holds_the_same(plain: Path, tmp_path: Path, method: str) -> None:
    if method == "blosc2":
        pytest.importorskip("hdf5plugin")
    path = tmp_path / "run.h5"
    shutil.copy(plain, path)
    compress(path, method)
    assert content(path) == content(plain)
    assert path.stat().st_size < plain.stat().st_size
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.h5"]
    before = path.read_bytes()
    compress(path, method)
    assert path.read_bytes() == before
    with RunWriter.resume(path, PLAN) as writer:  # A complete run, to be left as it is.
        assert writer.is_complete
    with h5py.File(path) as file:  # Any reader of HDF5 opens it, without sinkscope.
        assert file["sampled/states"].chunks == (60 * 8 // 3, 1, 96)
        assert (file["sampled/states"].compression == "gzip") == (method == "gzip")


def test_a_running_file_is_not_compressed(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    RunWriter.create(path, PLAN).close()
    with pytest.raises(StoreError, match="not complete; finish it with --resume"):
        compress(path, "gzip")
    with pytest.raises(InputError, match="no compression named zip; there are blosc2 and gzip"):
        compress(path, "zip")


def test_without_the_plugin_both_ways_name_it(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hdf5plugin")
    path = tmp_path / "run.h5"
    shutil.copy(plain, path)
    compress(path, "blosc2")
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(StoreError, match=r"is compressed with Blosc2; .*pip install 'sinkscope\[compress\]'"):
        RunReader(path)
    with pytest.raises(InputError, match="needs the package hdf5plugin"):
        compress(plain, "blosc2")


def test_interrupted_compression_leaves_the_file_as_it_was(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    shutil.copy(plain, path)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "apply_seal", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compress(path, "gzip")
    assert path.read_bytes() == plain.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.h5"]


def test_flipped_bits_are_found(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    shutil.copy(plain, path)
    compress(path, "gzip")
    sealed, size = path.read_bytes(), path.stat().st_size
    left_out = check_seal(path).mutable
    inside = [offset + length // 2 for offset, length in left_out if length > 5000]
    assert inside
    generator = np.random.default_rng(0)
    for place in [*inside, *generator.integers(100, size, 40).tolist()]:
        data = bytearray(sealed)
        data[place] ^= 0x10
        path.write_bytes(data)
        if any(offset <= place < offset + 4 for offset, length in left_out if length == 4):
            continue  # Where HDF5 says whether a writer has the file open.
        with pytest.raises(StoreError, match=r"run\.h5"), RunReader(path) as reader:
            reader.verify()


def test_chunks_hold_one_layer() -> None:
    assert chunk_shape((10**6, 33, 4096), 2, rows=True) == (32, 1, 4096)
    assert chunk_shape((100, 33, 8), 4, rows=True) == (100, 1, 8)
    assert chunk_shape((10**6,), 4, rows=True) == (2**16,)
    assert chunk_shape((33, 4096, 16), 8, rows=False) == (1, 4096, 16)
