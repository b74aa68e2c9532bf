"""The accumulators against their definitions, and the laws of their merge."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinkscope.capture import statistics as module
from sinkscope.capture.statistics import (
    LEADING_RATIO,
    REDUCTIONS,
    LayerStatistics,
    TokenNorms,
    collect_statistics,
    largest_dims,
    restore_fields,
)

LEVELS = (0.01, 0.1, 0.5)
WIDTH, KEPT = 12, 4


def accumulate(states: Tensor, rows: Tensor) -> LayerStatistics:
    made = LayerStatistics(WIDTH, KEPT, LEVELS)
    made.update(TokenNorms.of(states, 3), rows)
    return made


def draw_states(seed: int, count: int) -> Tensor:
    """Ordinary states with massive entries, repeated tokens (ties) and a zero token."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count, WIDTH, generator=generator)
    states[::5, 3] = 400.0
    states[count // 2 :] = states[: count - count // 2].clone()
    states[-1] = 0
    return states


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.randoms())
def test_merging_any_split_in_any_order_gives_the_whole(seed: int, sizes: list[int], shuffled) -> None:  # type: ignore[no-untyped-def]
    count = sum(sizes)
    states, rows = draw_states(seed, count), torch.randperm(count)
    whole = accumulate(states, rows)
    parts = [accumulate(*part) for part in zip(states.split(sizes), rows.split(sizes), strict=True)]
    shuffled.shuffle(parts)
    merged = LayerStatistics(WIDTH, KEPT, LEVELS)
    for part in parts:
        merged.merge(part)
    streamed = LayerStatistics(WIDTH, KEPT, LEVELS)
    for some, where in zip(states.split(sizes), rows.split(sizes), strict=True):
        streamed.update(TokenNorms.of(some, 3), where)
    for other in (merged, streamed):
        for name in REDUCTIONS:
            if name.startswith("sum"):
                torch.testing.assert_close(other.fields[name], whole.fields[name], rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(other.fields[name], whole.fields[name]), name


def test_merge_laws_hold_exactly_for_top_keys() -> None:
    first, second, third = (
        accumulate(draw_states(i, 20), torch.arange(20) + 20 * i).fields["top_keys"] for i in range(3)
    )
    merge = REDUCTIONS["top_keys"]
    assert torch.equal(merge(first, second), merge(second, first))
    assert torch.equal(merge(merge(first, second), third), merge(first, merge(second, third)))
    assert torch.equal(merge(first, torch.full_like(first, module.EMPTY_KEY)), first)


def exact_odds(states: np.ndarray, count: int) -> np.ndarray:
    """The odds by their definition, one entry at a time in float64."""
    square = states.astype(np.float64) ** 2
    odds = np.zeros_like(square)
    for token, row in enumerate(square):
        largest = np.argsort(-row, kind="stable")[:count]
        leading = {int(dim) for dim in largest if row[dim] >= LEADING_RATIO * row.max()}
        for dim, value in enumerate(row):
            others = [other for other in range(WIDTH) if other != dim and not (dim in leading and other in leading)]
            behind = row[others].sum()
            odds[token, dim] = value / behind if behind > 0 else 0
    return odds


def test_against_the_definitions() -> None:
    states = draw_states(1, 60)
    found = collect_statistics([accumulate(states, torch.arange(60))], 60)
    exact = states.double().numpy()
    energy = (exact**2).sum(1, keepdims=True)
    odds = exact_odds(exact, 3)
    with np.errstate(invalid="ignore", divide="ignore"):
        normed = np.nan_to_num(exact / np.sqrt(energy / WIDTH))
    order = np.argsort(-odds.astype(np.float32), axis=0, kind="stable")[:KEPT].T
    assert np.array_equal(found.topk_token[0], order)
    np.testing.assert_allclose(found.topk_odds[0], np.take_along_axis(odds.T, order, 1), rtol=1e-5)
    np.testing.assert_array_equal(found.peak_magnitude[0], np.abs(states.numpy()).max(0))
    for place, level in enumerate(LEVELS):
        np.testing.assert_array_equal(found.exceedance[0, :, place], (odds >= level / (1 - level)).sum(0))
    np.testing.assert_allclose(found.sum_normed[0], normed.sum(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.sum_abs_normed[0], np.abs(normed).sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.sum_square_normed[0], (normed**2).sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.sum_rms[0], np.sqrt(energy / WIDTH).sum(), rtol=1e-6)


def test_odds_do_not_saturate() -> None:
    states = torch.ones(3, WIDTH)
    states[0, 4], states[1, 4], states[2, 4] = 1e5, 1e6, 1e7
    found = collect_statistics([accumulate(states, torch.arange(3))], 3)
    np.testing.assert_allclose(found.topk_odds[0, 4, :3], [1e14 / 11, 1e12 / 11, 1e10 / 11], rtol=1e-5)
    assert found.topk_token[0, 4].tolist() == [2, 1, 0, -1]
    assert found.topk_odds[0, 4, 3] == 0


def test_a_single_nonzero_dimension_and_a_zero_token_stay_finite() -> None:
    states = torch.zeros(2, WIDTH)
    states[0, 2] = 5
    found = collect_statistics([accumulate(states, torch.arange(2))], 2)
    assert np.isfinite(found.topk_odds).all()
    assert found.topk_odds[0, 2, 0] > 1e30
    assert found.exceedance[0].tolist() == [[1, 1, 1] if dim == 2 else [0, 0, 0] for dim in range(WIDTH)]


@pytest.mark.parametrize("count", [3, 40, 300])
def test_the_sparse_and_the_dense_way_agree(count: int) -> None:
    keys = torch.full((WIDTH, KEPT), module.EMPTY_KEY)
    for part in range(3):
        odds = TokenNorms.of(draw_states(part, count), 3).odds()
        rows = torch.arange(count) + part * count
        dense = module._dense(keys, odds, rows, LEVELS)
        sparse = module._sparse(keys, odds, rows, LEVELS)
        assert torch.equal(dense[0], sparse[0])
        assert torch.equal(dense[1], sparse[1])
        keys = dense[1]


def test_stored_statistics_restore_exactly() -> None:
    made = accumulate(draw_states(2, 3), torch.arange(3))  # Fewer tokens than K.
    restored = restore_fields(collect_statistics([made], 3), 0)
    for name, tensor in made.fields.items():
        assert torch.equal(restored[name], tensor), name


@pytest.mark.parametrize(("width", "count"), [(64, 8), (70, 8), (130, 3), (16, 8), (5, 5)])
def test_largest_dims_are_those_of_topk(width: int, count: int) -> None:
    magnitude = torch.rand(50, width) ** 8
    magnitude[3], magnitude[7, 5:9] = 0, 2.0
    found = largest_dims(magnitude, count)
    torch.testing.assert_close(magnitude.gather(1, found), magnitude.topk(count, dim=1).values, rtol=0, atol=0)
    assert all(len(set(row)) == count for row in found.tolist())
    if width >= 64:
        assert found[7, :3].tolist() == [5, 6, 7]
    magnitude[9, 2] = torch.nan
    assert largest_dims(magnitude, count).shape == (50, count)
