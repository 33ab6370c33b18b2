"""Metrics by slice: each row once, rare values folded, numbers equal to those of the part."""

import math

import numpy as np
import pytest

from tamis.errors import DataError
from tamis.evaluation.metrics import evaluate_task
from tamis.evaluation.slices import slice_table


def test_slices_hold_their_own_metrics_and_fold_rare_values() -> None:
    rng = np.random.default_rng(4)
    values = np.repeat(["phone", "tablet", "tv", "car"], [500, 300, 20, 10])
    labels = np.where(rng.random(830) < 0.1, np.nan, rng.random(830) < 0.3)
    probabilities, weights = rng.random(830), rng.random(830)
    table = slice_table(labels, probabilities, values, weights=weights, min_rows=100)
    assert [(row.value, row.folded) for row in table] == [("phone", 0), ("tablet", 0), ("other", 2)]
    assert sum(row.rows for row in table) == int(np.isfinite(labels).sum())
    for row, member in zip(
        table, (values == "phone", values == "tablet", np.isin(values, ["tv", "car"])), strict=True
    ):
        wanted = evaluate_task(labels[member], probabilities[member], weights=weights[member])
        assert row.rows == wanted.rows
        for name in ("base_rate", "ne", "log_loss", "auc", "calibration"):
            assert getattr(row, name) == pytest.approx(getattr(wanted, name), rel=1e-12), name


def test_slices_of_integers_come_by_rows_then_value() -> None:
    table = slice_table([1, 0, 1, 0, 1], [0.5] * 5, [9, 9, 30, 4, 4], min_rows=1)
    assert [(row.value, row.rows) for row in table] == [("4", 2), ("9", 2), ("30", 1)]
    assert math.isnan(table[2].auc)
    assert table[2].log_loss == pytest.approx(math.log(2))


def test_own_value_named_other_is_told_apart_from_the_folded_ones() -> None:
    table = slice_table([1, 0, 1], [0.5] * 3, ["other", "other", "x"], min_rows=2)
    assert [(row.value, row.folded) for row in table] == [("other", 0), ("other", 1)]


def test_slice_without_weight_shows_no_numbers() -> None:
    table = slice_table([1, 0, 1, 0], [0.5] * 4, [1, 1, 2, 2], weights=[1, 1, 0, 0], min_rows=1)
    assert [row.rows for row in table] == [2, 0]
    assert math.isnan(table[1].log_loss)


def test_slices_without_observed_rows_are_an_empty_table() -> None:
    assert slice_table([np.nan], [0.5], ["a"]) == ()


def test_min_rows_below_one_is_refused() -> None:
    with pytest.raises(DataError, match="min_rows must be at least 1, got 0"):
        slice_table([1], [0.5], ["a"], min_rows=0)
