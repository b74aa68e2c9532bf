"""The pure functions of discovery, against their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sinkscope.discovery.split import auroc, average_precision, best_split, gap_split
from sinkscope.significance import benjamini_hochberg, runs, simes, tail_p_values

UNIT = st.floats(0, 1, allow_nan=False)


@pytest.mark.parametrize("width", [48, 256, 4096])
@pytest.mark.parametrize("tail", ["gumbel", "exponential", "pareto"])
def test_p_values_are_valid_on_ordinary_dimensions(width, tail):
    """Small p-values must not be more frequent than they say, whatever the tail of the bulk."""
    generator = np.random.default_rng(width)
    trials = max(20, 200_000 // width)
    draw = {
        "gumbel": lambda: generator.gumbel(size=(trials, width)),
        "exponential": lambda: generator.exponential(size=(trials, width)),
        "pareto": lambda: np.log(np.abs(generator.standard_cauchy((trials, width)))),
    }[tail]
    p_values = tail_p_values(draw())
    for level in (0.01, 0.001):
        expected = level * p_values.size
        assert (p_values <= level).sum() <= expected + 5 * np.sqrt(expected) + 1
    # One in a hundred families of tests may hold a false discovery.
    any_found = (benjamini_hochberg(p_values) <= 0.01).any(axis=-1)
    assert any_found.mean() <= 0.01 + 4 * np.sqrt(0.01 / trials) + 1 / trials


def test_p_values_find_an_outlier_and_ignore_scale():
    generator = np.random.default_rng(0)
    score = generator.gumbel(size=200)
    score[17] = 30.0
    p_values = tail_p_values(score)
    assert p_values.argmin() == 17
    assert p_values[17] < 1e-6
    assert np.allclose(tail_p_values(5 * score + 3), p_values)


@given(arrays(np.float64, st.integers(1, 30), elements=UNIT))
def test_benjamini_hochberg_is_its_definition(p_values):
    count = len(p_values)
    order = np.sort(p_values)
    for q in (0.01, 0.05, 0.3):
        passing = np.flatnonzero(order <= q * np.arange(1, count + 1) / count)
        cutoff = order[passing[-1]] if len(passing) else -1.0
        adjusted = benjamini_hochberg(p_values)
        clear = np.abs(adjusted - q) > 1e-12
        assert ((adjusted <= q) == (p_values <= cutoff))[clear].all()


@given(arrays(np.float64, (5, 3), elements=UNIT))
def test_simes_lies_between_minimum_and_bonferroni(p_values):
    combined = simes(p_values, axis=0)
    assert (combined >= p_values.min(axis=0) - 1e-12).all()
    assert (combined <= np.minimum(5 * p_values.min(axis=0), 1) + 1e-12).all()


@given(st.lists(st.booleans(), max_size=30))
def test_runs_rebuild_the_mask(mask):
    rebuilt = np.zeros(len(mask), bool)
    for first, last in runs(np.array(mask, bool)):
        assert not rebuilt[max(first - 1, 0) : last + 1].any()
        rebuilt[first : last + 1] = True
    assert rebuilt.tolist() == mask


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0.01, 100), st.booleans()), min_size=2, max_size=40))
def test_best_split_is_the_best_of_all_thresholds(tokens):
    score = np.array([value for value, _ in tokens])
    label = np.array([mark for _, mark in tokens])
    split = best_split(score, label)
    if split is None:
        assert not label.any()
        return

    def f1(threshold: float) -> float:
        above = score >= threshold
        return 2 * (above & label).sum() / (above.sum() + label.sum())

    assert split.f1 == pytest.approx(max(f1(threshold) for threshold in score))
    assert f1(split.high) == pytest.approx(split.f1)
    assert split.low < split.threshold <= split.high
    assert (score >= split.threshold).sum() == split.above


def test_gap_split_finds_two_populations():
    generator = np.random.default_rng(0)
    score = np.exp(np.concatenate([generator.normal(0, 0.5, 500), generator.normal(5, 0.2, 20)]))
    split = gap_split(score, rarest=4)
    assert split.above == 20
    assert score[:500].max() == split.low
    assert score[500:].min() == split.high
    assert gap_split(np.ones(10)) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=25))
def test_auroc_counts_pairs(tokens):
    score = np.array([float(value) for value, _ in tokens])
    label = np.array([mark for _, mark in tokens])
    pairs = [
        1.0 if positive > negative else 0.5 if positive == negative else 0.0
        for positive in score[label]
        for negative in score[~label]
    ]
    if pairs:
        assert auroc(score, label) == pytest.approx(np.mean(pairs))
    else:
        assert np.isnan(auroc(score, label))


def test_average_precision_on_a_known_ranking():
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False])) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert np.isnan(average_precision(np.ones(3), np.zeros(3, bool)))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=20))
def test_average_precision_takes_equal_scores_together(tokens):
    """Its definition: precision at every threshold, times the recall that it adds. The order makes no difference."""
    score, label = (np.array(column) for column in zip(*tokens, strict=True))
    if not label.any():
        return
    steps = [(label[score == level].sum() / label.sum(), label[score >= level].mean()) for level in np.unique(score)]
    expected = sum(recall * precision for recall, precision in steps)
    for order in (slice(None), slice(None, None, -1), np.argsort(label)):
        assert average_precision(score[order].astype(float), label[order]) == pytest.approx(expected)
