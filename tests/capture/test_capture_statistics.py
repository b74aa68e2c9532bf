"""What is read off hidden states, on both ways, against its definition; and the laws of merging accumulators."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinkscope.capture import reading_on_cpu as on_cpu
from sinkscope.capture.reading import LEADING_RATIO, LayerReading
from sinkscope.capture.reading_on_cpu import largest_places, read_on_cpu
from sinkscope.capture.reading_on_device import largest_dims, read_on_device
from sinkscope.capture.statistics import (
    EMPTY_KEY,
    REDUCTIONS,
    LayerStatistics,
    collect_statistics,
    restore_statistics,
)

LEVELS = (0.01, 0.1, 0.5)
WIDTH, KEPT, COUNT = 12, 4, 3
EMPTY = LayerStatistics.empty(WIDTH, KEPT, LEVELS)


def read(way: str, states: Tensor, rows: Tensor, before: LayerStatistics = EMPTY) -> LayerReading:
    """Both ways on the CPU; the one for accelerators takes ascending rows."""
    if way == "cpu":
        return read_on_cpu(states, None, rows.numpy(), before, COUNT)
    order = rows.argsort()
    return read_on_device(states, order, rows[order], before, COUNT)


def accumulate(states: Tensor, rows: Tensor, before: LayerStatistics = EMPTY, way: str = "cpu") -> LayerStatistics:
    return read(way, states, rows, before).statistics


def draw_states(seed: int, count: int) -> Tensor:
    """Ordinary states with massive entries, repeated tokens (ties) and a zero token."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count, WIDTH, generator=generator)
    states[::5, 3] = 400.0
    states[count // 2 :] = states[: count - count // 2].clone()
    states[-1] = 0
    return states


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.randoms(),
    st.sampled_from(["cpu", "device"]),
)
def test_any_split_in_any_order_gives_the_whole(seed: int, sizes: list[int], shuffled, way: str) -> None:  # type: ignore[no-untyped-def]
    count = sum(sizes)
    states, rows = draw_states(seed, count), torch.randperm(count)
    whole = accumulate(states, rows)
    pieces = list(zip(states.split(sizes), rows.split(sizes), strict=True))
    shuffled.shuffle(pieces)
    merged = streamed = EMPTY
    for piece in pieces:
        merged = merged.merge(accumulate(*piece, way=way))
        streamed = accumulate(*piece, before=streamed, way=way)
    for other in (merged, streamed, accumulate(states, rows, way=way)):
        assert other.count == count
        for name in REDUCTIONS:
            if name.startswith("sum"):
                torch.testing.assert_close(other.fields[name], whole.fields[name], rtol=1e-6, atol=1e-5)
            else:
                assert torch.equal(other.fields[name], whole.fields[name]), name


@pytest.mark.parametrize("way", ["cpu", "device"])
def test_chunks_change_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states, rows = draw_states(3, 700), torch.randperm(700)
    whole = read(way, states, rows)
    monkeypatch.setattr(on_cpu, "CHUNK_BYTES", 4 * WIDTH * 50)
    parts = read("cpu", states, rows)
    order = rows.argsort() if way == "device" else slice(None)
    assert torch.equal(whole.dim, parts.dim[order])
    assert torch.equal(whole.value, parts.value[order])
    torch.testing.assert_close(whole.odds, parts.odds[order])
    for name in REDUCTIONS:
        if not name.startswith("sum"):
            assert torch.equal(whole.statistics.fields[name], parts.statistics.fields[name]), name


def test_merge_laws_hold_exactly_for_top_keys() -> None:
    first, second, third = (
        accumulate(draw_states(i, 20), torch.arange(20) + 20 * i).fields["top_keys"] for i in range(3)
    )
    merge = REDUCTIONS["top_keys"]
    assert torch.equal(merge(first, second), merge(second, first))
    assert torch.equal(merge(merge(first, second), third), merge(first, merge(second, third)))
    assert torch.equal(merge(first, torch.full_like(first, EMPTY_KEY)), first)


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


@pytest.mark.parametrize("way", ["cpu", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_the_definitions(way: str, dtype: torch.dtype) -> None:
    states = draw_states(1, 60).to(dtype)
    reading = read(way, states, torch.arange(60))
    found = collect_statistics([reading.statistics])
    states = states.float()
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
    np.testing.assert_array_equal(reading.dim, np.argsort(-np.abs(exact), axis=1, kind="stable")[:, :COUNT])
    np.testing.assert_array_equal(reading.value, np.take_along_axis(states.numpy(), reading.dim.numpy(), 1))
    np.testing.assert_allclose(reading.rms, np.sqrt(energy[:, 0] / WIDTH), rtol=1e-6)
    np.testing.assert_allclose(reading.odds, np.take_along_axis(odds, reading.dim.numpy(), 1), rtol=1e-5)


def test_odds_do_not_saturate() -> None:
    states = torch.ones(3, WIDTH)
    states[0, 4], states[1, 4], states[2, 4] = 1e5, 1e6, 1e7
    found = collect_statistics([accumulate(states, torch.arange(3))])
    np.testing.assert_allclose(found.topk_odds[0, 4, :3], [1e14 / 11, 1e12 / 11, 1e10 / 11], rtol=1e-5)
    assert found.topk_token[0, 4].tolist() == [2, 1, 0, -1]
    assert found.topk_odds[0, 4, 3] == 0


def test_a_single_nonzero_dimension_and_a_zero_token_stay_finite() -> None:
    states = torch.zeros(2, WIDTH)
    states[0, 2] = 5
    found = collect_statistics([accumulate(states, torch.arange(2))])
    assert np.isfinite(found.topk_odds).all()
    assert found.topk_odds[0, 2, 0] > 1e30
    assert found.exceedance[0].tolist() == [[1, 1, 1] if dim == 2 else [0, 0, 0] for dim in range(WIDTH)]


def test_stored_statistics_restore_exactly() -> None:
    made = accumulate(draw_states(2, 3), torch.arange(3))  # Fewer tokens than K.
    restored = restore_statistics(collect_statistics([made]), 0)
    assert restored.count == 3
    for name, tensor in made.fields.items():
        assert torch.equal(restored.fields[name], tensor), name


def test_accumulators_do_not_change_when_tokens_are_added() -> None:
    made = accumulate(draw_states(4, 40), torch.arange(40))
    before = {name: tensor.clone() for name, tensor in made.fields.items()}
    accumulate(draw_states(5, 40), torch.arange(40) + 40, made)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.fields.items())


@pytest.mark.parametrize(("width", "count"), [(64, 8), (130, 8), (140, 8), (131, 3), (16, 8), (5, 5)])
def test_largest_dimensions_are_those_of_topk_and_ties_go_to_the_lower(width: int, count: int) -> None:
    magnitude = torch.rand(50, width) ** 8
    magnitude[3], magnitude[7, 5:9] = 0, 2.0
    found = largest_dims(magnitude, count)
    torch.testing.assert_close(magnitude.gather(1, found), magnitude.topk(count, dim=1).values, rtol=0, atol=0)
    assert all(len(set(row)) == count for row in found.tolist())
    places = largest_places(magnitude, count)
    np.testing.assert_array_equal(places - np.arange(50)[:, None] * width, found)
    assert found[3].tolist() == list(range(count))
    if width > 8:
        assert found[7, :3].tolist() == [5, 6, 7]
    magnitude[9, 2] = torch.nan
    assert largest_places(magnitude, count).shape == (50, count)


def test_many_candidates_for_one_dimension() -> None:
    """Rising values, so that every token is among the top when it comes, in one dimension far more than in others."""
    states = torch.randn(900, WIDTH)
    states[:, 4] = torch.linspace(1, 900, 900)
    streamed = EMPTY
    for start in range(0, 900, 90):
        streamed = accumulate(states[start : start + 90], torch.arange(start, start + 90), streamed)
    for way in ("cpu", "device"):
        whole = accumulate(states, torch.arange(900), way=way)
        assert torch.equal(streamed.fields["top_keys"], whole.fields["top_keys"])
