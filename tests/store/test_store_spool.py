"""Spooled columns stand where arrays do, on the disk or not."""

import gc
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkscope.errors import DiskError
from sinkscope.store import spool as spool_module
from sinkscope.store.spool import Spool
from sinkscope.store.tokens import TokenTable

WHOLE = np.arange(1000, dtype=np.int32) % 300


def filled(parts: int = 7) -> Spool:
    spool = Spool(np.int32)
    for part in np.array_split(WHOLE, parts):
        spool.append(part)
    return spool


@pytest.mark.parametrize("limit", [10, 2**20])
def test_it_reads_as_the_array(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(spool_module, "IN_MEMORY", limit)
    spool = filled()
    assert (len(spool), spool.shape, spool.dtype) == (1000, (1000,), np.dtype("int32"))
    keys: list[Any] = [slice(None), slice(3, 900), slice(-5, None), slice(5, 5), slice(9, 3), slice(1, 900, 7)]
    keys += [slice(None, None, -1), slice(800, 20, -3), 4, -1, np.array([5, 2, 5]), WHOLE > 7]
    for key in keys:
        np.testing.assert_array_equal(spool[key], WHOLE[key])
    np.testing.assert_array_equal(np.asarray(spool), WHOLE)
    np.testing.assert_array_equal(spool == 7, WHOLE == 7)
    np.testing.assert_array_equal(2 * spool, 2 * WHOLE)
    assert np.array_equal(spool, WHOLE)
    spool.append(WHOLE[:3])  # After reading, numbers still go to the end.
    np.testing.assert_array_equal(spool[998:], [*WHOLE[998:], 0, 1, 2])
    np.testing.assert_array_equal(Spool(np.uint8)[:], [])


def test_a_table_over_it_is_that_of_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "IN_MEMORY", 100)
    kind, lengths = Spool(np.uint8), np.full(100, 10, np.int32)
    kind.append(WHOLE % 3)
    spooled: TokenTable = TokenTable(filled(), kind, lengths)  # type: ignore[arg-type]
    plain = TokenTable(WHOLE, (WHOLE % 3).astype(np.uint8), lengths)
    np.testing.assert_array_equal(spooled.distinct_ids(), np.arange(300))
    assert (
        spooled.count_kinds(4).tolist() == plain.count_kinds(4).tolist() == np.bincount(WHOLE % 3, minlength=4).tolist()
    )
    chosen = np.arange(100) % 3 == 0
    np.testing.assert_array_equal(spooled.take(chosen).id, plain.take(chosen).id)


def test_its_file_is_nobody_elses_and_goes_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spool_module, "IN_MEMORY", 10)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = filled()
    number = spool._file.fileno()
    assert Path(f"/proc/self/fd/{number}").readlink().parent == tmp_path or os.name != "posix"
    assert list(tmp_path.iterdir()) == [], "no name, so that no kill can leave it behind"
    del spool
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_full_or_missing_folder_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spool_module, "IN_MEMORY", 10)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(DiskError, match=r"cannot write temporary files to .*missing.*TMPDIR") as caught:
        filled()
    assert "\n" not in str(caught.value)
