"""Checks of evaluated rows: what is refused, what is left out and counted."""

import numpy as np
import pytest

from tamis.errors import DataError
from tamis.evaluation.rows import observed_rows, require_both_classes, require_weight


def test_observed_rows_leave_out_and_count_nan_labels_with_their_weights_and_groups() -> None:
    rows = observed_rows(
        [1, np.nan, 0, np.nan],
        [0.9, 0.8, 0.2, 0.1],
        weights=[1.0, 2.0, 3.0, 4.0],
        groups=["a", "b", "c", "d"],
    )
    assert rows.unobserved == 2
    assert (rows.rows, rows.positives) == (2, 1)
    assert rows.predicted.tolist() == [0.9, 0.2]
    assert rows.weights is not None
    assert rows.weights.tolist() == [1.0, 3.0]
    assert rows.groups is not None
    assert rows.groups.tolist() == ["a", "c"]
    assert (rows.total_weight, rows.positive_weight) == (4.0, 1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.bool_])
def test_observed_rows_take_labels_of_any_numeric_type(dtype: type) -> None:
    rows = observed_rows(np.array([1, 0, 1], dtype=dtype), np.array([0.5, 0.5, 0.5], np.float32))
    assert rows.positive.tolist() == [True, False, True]
    assert rows.predicted.dtype == np.float64


@pytest.mark.parametrize("value", [-0.25, 1.5, np.nan, np.inf])
def test_probabilities_out_of_range_are_refused_with_position_and_value(value: float) -> None:
    with pytest.raises(DataError, match=rf"in \[0, 1\], got {value!r} at position 2"):
        observed_rows([1, 0, 1], [0.5, 0.5, value])


def test_broken_probability_is_refused_even_where_the_label_is_unobserved() -> None:
    with pytest.raises(DataError, match="got nan at position 1"):
        observed_rows([1, np.nan, 0], [0.5, np.nan, 0.5])


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, np.inf])
def test_labels_other_than_zero_one_and_nan_are_refused(value: float) -> None:
    with pytest.raises(DataError, match=rf"0, 1 or NaN .*got {value!r} at position 0"):
        observed_rows([value, 0], [0.5, 0.5])


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_weights_negative_or_not_finite_are_refused(value: float) -> None:
    with pytest.raises(DataError, match=rf"weights: .*got {value!r} at position 1"):
        observed_rows([1, 0], [0.5, 0.5], weights=[1.0, value])


def test_scores_may_be_infinite_but_not_nan() -> None:
    rows = observed_rows([1, 0], [np.inf, -7.0], probabilities=False)
    assert rows.predicted.tolist() == [np.inf, -7.0]
    with pytest.raises(DataError, match="scores: must be numbers, not NaN, got nan at position 0"):
        observed_rows([1, 0], [np.nan, 0.0], probabilities=False)


def test_weights_that_sum_to_zero_are_refused() -> None:
    with pytest.raises(DataError, match="positive sum, got 0 over 2 observed rows"):
        require_weight(observed_rows([1, 0, np.nan], [0.5] * 3, weights=[0.0, 0.0, 1.0]))


def test_columns_of_unequal_length_or_rank_are_refused() -> None:
    with pytest.raises(DataError, match=r"predictions: must be of shape \(2,\).*got shape \(3,\)"):
        observed_rows([1, 0], [0.5, 0.5, 0.5])
    with pytest.raises(DataError, match=r"labels: must be one-dimensional, got shape \(1, 2\)"):
        observed_rows([[1, 0]], [0.5, 0.5])
    with pytest.raises(DataError, match=r"groups: must have the shape of the labels \(2,\)"):
        observed_rows([1, 0], [0.5, 0.5], groups=["a"])


def test_columns_that_are_not_numbers_are_refused_with_their_type() -> None:
    with pytest.raises(DataError, match="labels: must be numbers, got dtype <U1"):
        observed_rows(["1", "0"], [0.5, 0.5])


def test_classes_without_weight_do_not_count_as_present() -> None:
    rows = observed_rows([1, 0, 0], [0.5, 0.5, 0.5], weights=[0.0, 1.0, 1.0])
    assert not rows.has_both_classes
    with pytest.raises(DataError, match="auc: labels must hold both classes, got 1 positives in 3"):
        require_both_classes(rows, "auc")
