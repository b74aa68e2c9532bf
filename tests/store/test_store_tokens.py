"""The token table: what it derives from the lengths of the samples equals the columns as they are in a file."""

from typing import Any

import numpy as np
import pytest

from sinkscope.store import tokens as store_tokens
from sinkscope.store.tokens import TOKEN_DTYPES, TokenTable

LENGTHS = (3, 1, 5, 2)
SAMPLE = np.repeat(np.arange(4), LENGTHS).astype(np.int32)
POSITION = np.concatenate([np.arange(length) for length in LENGTHS]).astype(np.int32)


def table(lengths: tuple[int, ...] = LENGTHS, **changes: Any) -> TokenTable:
    count = sum(lengths)
    kind = np.arange(count).astype(np.uint8) % 3
    return TokenTable(np.arange(count, dtype=np.int32) + 50, kind, np.array(lengths, np.int32), **changes)


def test_columns_follow_from_the_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    found = table()
    assert found.edges.tolist() == [0, 3, 4, 9, 11]
    np.testing.assert_array_equal(found.sample, SAMPLE)
    np.testing.assert_array_equal(found.position, POSITION)
    rows = np.array([10, 0, 4, 3])
    assert found.sample_of(rows).tolist() == [3, 0, 2, 1]
    assert found.position_of(rows).tolist() == [1, 0, 0, 0]
    assert found.rows_of([1, 3]).tolist() == [3, 9, 10]
    assert found.rows_of([]).tolist() == []
    monkeypatch.setattr(store_tokens, "BLOCK", 4)
    for name, dtype in TOKEN_DTYPES.items():
        blocks = list(found.blocks(name))
        assert [(rows.start, rows.stop) for rows, _ in blocks] == [(0, 4), (4, 8), (8, 11)]
        joined = np.concatenate([block for _, block in blocks])
        np.testing.assert_array_equal(joined, getattr(found, name))
        assert joined.dtype == np.dtype(dtype) == getattr(found, name).dtype


@pytest.mark.parametrize("places", [None, POSITION + 7])
def test_a_table_comes_back_from_its_columns(places: Any) -> None:
    made = table(places=places)
    found = TokenTable.of_columns(**{name: getattr(made, name) for name in TOKEN_DTYPES})
    for name in (*TOKEN_DTYPES, "lengths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    assert (found.places is None) == (places is None), "usual positions are not kept"


@pytest.mark.parametrize("places", [None, POSITION + 7])
@pytest.mark.parametrize("chosen", [(0, 1, 0, 1), (0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 1, 1)])
def test_taken_samples_keep_their_numbers(chosen: tuple[int, ...], places: Any) -> None:
    whole, wanted = table(places=places), np.array(chosen, bool)
    some = whole.take(wanted)
    inside = wanted[SAMPLE]
    for name in TOKEN_DTYPES:
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[inside])
    moved = whole.taken(wanted, np.array([[-1, *range(11)]]))
    np.testing.assert_array_equal(moved[0, 1:], np.where(inside, np.cumsum(inside) - 1, -1))
    assert moved[0, 0] == -1


def test_columns_of_other_types_or_lengths_are_refused() -> None:
    columns = {name: getattr(table(), name) for name in TOKEN_DTYPES}
    for name in TOKEN_DTYPES:
        for wrong in (columns[name][:-1], columns[name].astype(np.float64), columns[name][None]):
            with pytest.raises(ValueError, match="/tokens cannot be so"):
                TokenTable.of_columns(**columns | {name: wrong})
