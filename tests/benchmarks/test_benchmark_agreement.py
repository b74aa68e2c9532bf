"""How flagged tokens are compared with attention sinks, on examples small enough to work out by hand."""

import numpy as np
import pytest

from benchmarks.real_models.agreement import (
    LATER_QUERIES,
    average_precision,
    bootstrap_average_precision,
    bootstrap_f1,
    count_agreement,
    covered_share,
    drawn_attention,
    first_token_layers,
    interval,
    judged_tokens,
    mean_f1,
    mean_over_layers,
    oracle_threshold,
    precision_at,
    precision_recall_f1,
    resampled_pieces,
)


def test_drawn_attention_averages_over_heads_and_later_queries_only():
    weights = np.array(
        [
            [[1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [0.2, 0.3, 0.5]],
            [[1.0, 0.0, 0.0], [0.8, 0.2, 0.0], [0.4, 0.5, 0.1]],
        ],
        np.float32,
    )
    # Token 0: heads give 0.7 from query 1 and 0.3 from query 2; its attention to itself does not count.
    assert drawn_attention(weights) == pytest.approx([0.5, 0.4, 0.0])


def test_drawn_attention_is_what_the_loop_of_the_definition_gives():
    generator = np.random.default_rng(0)
    weights = np.tril(generator.random((2, 7, 7))).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    expected = [
        np.mean([weights[head, query, key] for head in range(2) for query in range(key + 1, 7)]) for key in range(6)
    ]
    assert drawn_attention(weights) == pytest.approx([*expected, 0.0])


def test_tokens_are_judged_with_forty_later_queries():
    assert judged_tokens(LATER_QUERIES + 3).tolist() == [True] * 3 + [False] * LATER_QUERIES
    assert not judged_tokens(LATER_QUERIES).any()


def test_f1_is_pooled_over_pieces_within_a_layer_and_averaged_over_layers_with_sinks():
    piece = np.array([0, 0, 0, 1, 1, 1])
    # First layer: 2 sinks, 3 flagged, 1 both: F1 = 2 / 5. Second: 1 sink, found: F1 = 1. Third: no sink, one flagged.
    sinks = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    flagged = np.array([[1, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]], bool)
    counts = np.array([count_agreement(label, mask, piece, 2) for label, mask in zip(sinks, flagged, strict=True)])
    assert counts[0].tolist() == [[1, 2, 1], [0, 1, 1]]
    precision, recall, f1 = precision_recall_f1(counts.sum(axis=1))
    assert precision == pytest.approx([1 / 3, 1.0, 0.0])
    assert recall[:2] == pytest.approx([0.5, 1.0])
    assert np.isnan(recall[2])
    assert f1 == pytest.approx([0.4, 1.0, 0.0])
    assert mean_f1(counts) == pytest.approx(0.7)


def test_a_layer_whose_sinks_are_all_missed_counts_as_zero():
    counts = np.array([[[0, 0, 3]], [[2, 2, 2]]])
    assert mean_f1(counts) == pytest.approx(0.5)
    assert np.isnan(mean_f1(np.zeros((2, 1, 3), np.int64)))
    assert mean_over_layers([np.nan, 1.0, np.nan], [True, True, False]) == 0.5


def test_average_precision_takes_equal_scores_together():
    score = np.array([4.0, 3.0, 2.0, 1.0])
    sinks = np.array([True, False, True, False])
    assert average_precision(score, sinks) == pytest.approx((1 + 2 / 3) / 2)
    tied = np.array([4.0, 2.0, 2.0, 1.0])
    assert average_precision(tied, sinks) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision(tied[::-1], sinks[::-1]) == average_precision(tied, sinks)
    assert np.isnan(average_precision(score, np.zeros(4, bool)))


def test_average_precision_with_weights_is_that_of_repeated_tokens():
    score, sinks = np.array([3.0, 2.0, 1.0]), np.array([True, False, True])
    repeated = [0, 0, 1, 1, 1]
    weighted = average_precision(score, sinks, np.array([2.0, 3.0, 0.0]))
    assert weighted == pytest.approx(average_precision(score[repeated], sinks[repeated]))


def test_precision_at_a_recall_is_the_best_that_any_threshold_gives():
    score, sinks = np.array([4.0, 3.0, 2.0, 1.0]), np.array([False, True, True, False])
    # Flagging three tokens finds both sinks with precision 2 / 3, better than 1 / 2 for the first sink alone.
    assert precision_at(score, sinks, np.array([0.0, 0.5, 1.0])) == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert np.isnan(precision_at(score, np.zeros(4, bool), np.array([0.5]))).all()


def test_the_oracle_threshold_has_the_best_f1_in_hindsight():
    score = np.array([9.0, 8.0, 7.0, 6.0, 5.0])
    sinks = np.array([True, False, True, True, False])
    best = oracle_threshold(score, sinks)
    assert best.threshold == 6.0
    assert best.f1 == pytest.approx(6 / 7)
    for threshold in score:
        flagged = score >= threshold
        assert 2 * (flagged & sinks).sum() / (flagged.sum() + sinks.sum()) <= best.f1 + 1e-12


def test_the_oracle_never_cuts_between_equal_scores_and_flags_nothing_without_sinks():
    assert oracle_threshold(np.array([5.0, 5.0, 1.0]), np.array([True, False, False])).f1 == pytest.approx(2 / 3)
    nothing = oracle_threshold(np.array([1.0, 2.0]), np.zeros(2, bool))
    assert nothing.threshold == float("inf")
    assert np.isnan(nothing.f1)


def test_coverage_is_the_share_of_first_token_layers_inside_the_bands():
    # Two pieces of two tokens; the first token draws above 0.10 on average in layers 0, 2 and 3.
    drawn = np.array([[0.3, 0.0, 0.15, 0.5], [0.9, 0.9, 0.9, 0.9], [0.1, 0.1, 0.07, np.nan], [0.0, 0.9, 0.9, 0.9]])
    first = np.array([True, False, True, False])
    layers = first_token_layers(np.nan_to_num(drawn), first)
    assert layers == [0, 2, 3]
    assert covered_share(layers, [(2, 2), (3, 5)]) == pytest.approx(2 / 3)
    assert np.isnan(covered_share([], [(0, 5)]))
    assert covered_share([1], []) == 0.0


def test_bootstraps_resample_whole_pieces():
    times = resampled_pieces(4, 50)
    assert times.shape == (50, 4)
    assert (times.sum(axis=1) == 4).all()
    counts = np.array([[[1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]])
    once = np.ones((1, 4), np.int64)
    assert bootstrap_f1(counts, once) == pytest.approx([mean_f1(counts)])
    assert bootstrap_f1(counts, np.array([[2, 0, 1, 1]])) == pytest.approx([1.0])
    low, high = interval(bootstrap_f1(counts, times))
    assert low <= mean_f1(counts) <= high


def test_bootstrapped_average_precision_leaves_out_only_what_cannot_matter():
    generator = np.random.default_rng(1)
    score, sinks = generator.random(60), generator.random(60) < 0.2
    piece = np.repeat(np.arange(6), 10)
    times = resampled_pieces(6, 5)
    result = bootstrap_average_precision([score], [sinks], piece, times)
    direct = [average_precision(score, sinks, row[piece].astype(float)) for row in times]
    assert result == pytest.approx(direct)
