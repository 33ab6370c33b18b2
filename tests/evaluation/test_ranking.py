"""AUC and grouped AUC against hand computation, a slow pair loop and a public implementation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tamis.errors import DataError
from tamis.evaluation.ranking import auc, group_codes, grouped_auc


def pair_loop_auc(labels, scores, weights) -> float:
    """The definition: every (positive, negative) pair, ties one half."""
    won = total = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            pair = weights[i] * weights[j]
            total += pair
            won += pair * (float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j]))
    return won / total


@st.composite
def scored_rows(draw):
    size = draw(st.integers(2, 40))
    labels = np.array([1, 0, *draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))])
    # Few distinct values, so that ties are common.
    scores = np.array(draw(st.lists(st.integers(-4, 4), min_size=size + 2, max_size=size + 2)))
    weights = np.array(
        draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=size + 2, max_size=size + 2))
    )
    return labels, scores.astype(float), weights


def test_auc_of_four_rows_with_one_tie_is_seven_eighths() -> None:
    # Pairs: .9 > .8 yes, .9 > .1 yes, .8 = .8 half, .8 > .1 yes: 3.5 of 4.
    assert auc([1, 0, 1, 0], [0.9, 0.8, 0.8, 0.1]) == 0.875


def test_auc_with_weights_of_three_rows() -> None:
    # Positive .5 (w 2) beats .3 (w 1), loses to .7 (w 3): 2*1 / (2*4) = 1/4.
    assert auc([1, 0, 0], [0.5, 0.3, 0.7], weights=[2.0, 1.0, 3.0]) == 0.25


def test_auc_of_perfect_reversed_and_constant_scores() -> None:
    labels = [0, 0, 1, 1]
    assert auc(labels, [1, 2, 3, 4]) == 1.0
    assert auc(labels, [4, 3, 2, 1]) == 0.0
    assert auc(labels, [5, 5, 5, 5]) == 0.5


def test_perfect_order_of_weighted_rows_is_not_above_one() -> None:
    rng = np.random.default_rng(0)
    for rows in range(4, 60):
        labels = np.arange(rows) >= rows // 2
        scores, weights, users = np.arange(rows), rng.random(rows), np.arange(rows) % 2

        assert 1 - 1e-12 < auc(labels, scores, weights=weights) <= 1
        assert 1 - 1e-12 < grouped_auc(labels, scores, users, weights=weights).value <= 1


def test_auc_leaves_out_rows_with_nan_labels() -> None:
    assert auc([1, np.nan, 0], [0.2, 0.9, 0.1]) == 1.0


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [np.nan, 1]])
def test_auc_of_one_class_is_refused(labels: list[float]) -> None:
    with pytest.raises(DataError, match="auc: labels must hold both classes"):
        auc(labels, [0.1, 0.2])


@given(scored_rows())
@settings(deadline=None)
def test_auc_equals_the_pair_loop_with_and_without_weights(rows) -> None:
    labels, scores, weights = rows
    assert auc(labels, scores) == pytest.approx(
        pair_loop_auc(labels, scores, np.ones(labels.size)), abs=1e-12
    )
    assert auc(labels, scores, weights=weights) == pytest.approx(
        pair_loop_auc(labels, scores, weights), abs=1e-12
    )


@given(scored_rows())
@settings(deadline=None)
def test_auc_is_unchanged_by_a_monotone_map_and_mirrored_by_negation(rows) -> None:
    labels, scores, weights = rows
    plain = auc(labels, scores, weights=weights)
    assert auc(labels, 1 / (1 + np.exp(-scores)), weights=weights) == plain
    assert auc(labels, -scores, weights=weights) == pytest.approx(1 - plain, abs=1e-12)
    assert auc(1 - labels, scores, weights=weights) == pytest.approx(1 - plain, abs=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("base_rate", [0.02, 0.5, 0.97])
def test_auc_equals_scikit_learn(base_rate: float) -> None:
    rng = np.random.default_rng(3)
    scores = np.round(rng.normal(size=5000), 2)
    labels = rng.random(5000) < base_rate
    weights = rng.random(5000)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auc(labels, scores, weights=weights) == pytest.approx(
        roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12
    )


def test_grouped_auc_weights_groups_by_rows_and_counts_skipped_ones() -> None:
    # Group 7: 1 > 0 right, AUC 1, 2 rows. Group 8: .2 below .3 and .4, AUC 0, 3 rows.
    # Group 9 has no positive. Mean (2 * 1 + 3 * 0) / 5.
    result = grouped_auc([1, 0, 1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3, 0.4, 0.5], [7, 7, 8, 8, 8, 9])
    assert result.value == pytest.approx(0.4, abs=1e-15)
    assert (result.groups, result.skipped_groups, result.skipped_rows) == (2, 1, 1)


def test_weights_of_groups_and_of_pairs_across_groups_give_three_different_aucs() -> None:
    # User A ranks its click first (AUC 1, 3 rows, 1 click), B last (AUC 0, 2 rows, 1 click), C has
    # clicks alone and so no AUC. By rows (3 * 1 + 2 * 0) / 5, by clicks (1 + 0) / 2; of the 4 * 3
    # pairs of a click and another row, of whatever users, 3 + 2 + 2 + 2 are in order.
    labels = np.array([1, 0, 0, 1, 0, 1, 1])
    scores = np.array([0.9, 0.2, 0.1, 0.3, 0.8, 0.5, 0.4])
    users = np.array(["A", "A", "A", "B", "B", "C", "C"])
    # A group counts by the sum of its weights: rows of 1 / 3, 1 / 2 and 1 add up to its clicks.
    clicks = np.array([1 / 3] * 3 + [1 / 2] * 2 + [1] * 2)
    by_rows = grouped_auc(labels, scores, users)
    assert by_rows.value == pytest.approx(0.6, abs=1e-15)
    assert (by_rows.groups, by_rows.skipped_groups, by_rows.skipped_rows) == (2, 1, 2)
    by_clicks = grouped_auc(labels, scores, users, weights=clicks)
    assert by_clicks.value == pytest.approx(0.5, abs=1e-12)
    assert auc(labels, scores) == pytest.approx(0.75, abs=1e-15)


@given(scored_rows(), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_grouped_auc_equals_a_loop_over_groups(rows, num_groups, seed, weighted) -> None:
    labels, scores, weights = rows
    if not weighted:
        weights = np.ones(labels.size)
    groups = np.random.default_rng(seed).integers(0, num_groups, labels.size)
    areas, masses = [], []
    for group in range(num_groups):
        member = groups == group
        if 0 < labels[member].sum() < member.sum():
            areas.append(pair_loop_auc(labels[member], scores[member], weights[member]))
            masses.append(weights[member].sum())
    if not areas:
        with pytest.raises(DataError, match="gauc: at least one group must hold both classes"):
            grouped_auc(labels, scores, groups, weights=weights)
        return
    result = grouped_auc(labels, scores, groups, weights=weights)
    assert result.groups == len(areas)
    assert result.skipped_groups == np.unique(groups).size - len(areas)
    assert result.value == pytest.approx(np.average(areas, weights=masses), abs=1e-12)


def test_grouped_auc_is_the_same_for_string_sparse_and_dense_groups() -> None:
    rng = np.random.default_rng(5)
    dense = rng.integers(0, 30, 400)
    labels, scores = rng.random(400) < 0.3, rng.random(400)
    wanted = grouped_auc(labels, scores, dense)
    names = np.array([f"user-{code}" for code in dense])
    assert grouped_auc(labels, scores, names) == wanted
    assert grouped_auc(labels, scores, dense * 10**12) == wanted


def test_group_codes_do_not_overflow_narrow_or_unsigned_integers() -> None:
    assert group_codes(np.array([-128, 127], dtype=np.int8)).tolist() == [0, 255]
    high = np.array([2**64 - 1, 2**64 - 3], dtype=np.uint64)
    assert group_codes(high).tolist() == [2, 0]


def test_groups_of_mixed_types_are_refused() -> None:
    with pytest.raises(DataError, match="groups: must be values that can be sorted"):
        grouped_auc([1, 0], [0.1, 0.2], np.array(["a", 1], dtype=object))


def test_grouped_auc_refuses_rows_whose_groups_hold_one_class() -> None:
    with pytest.raises(DataError, match="got none in 2 groups"):
        grouped_auc([1, 0], [0.1, 0.2], [1, 2])
