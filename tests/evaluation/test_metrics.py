"""All metrics of one task: agreement with the parts, one-class rules, strict JSON."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError
from tamis.evaluation.calibration import calibration_ratio, expected_calibration_error
from tamis.evaluation.loss import log_loss, normalised_entropy
from tamis.evaluation.metrics import evaluate_task
from tamis.evaluation.ranking import auc, grouped_auc


def test_task_metrics_equal_the_single_functions() -> None:
    rng = np.random.default_rng(7)
    labels = np.where(rng.random(500) < 0.2, np.nan, rng.random(500) < 0.3)
    probabilities, weights = rng.random(500), rng.random(500)
    groups = rng.integers(0, 40, 500)
    metrics = evaluate_task(labels, probabilities, weights=weights, groups=groups)
    entropy_result = normalised_entropy(labels, probabilities, weights=weights)
    assert metrics.ne == pytest.approx(entropy_result.value, rel=1e-13)
    assert metrics.base_rate == pytest.approx(entropy_result.base_rate, rel=1e-13)
    assert metrics.log_loss == log_loss(labels, probabilities, weights=weights)
    assert metrics.auc == auc(labels, probabilities, weights=weights)
    assert metrics.gauc == grouped_auc(labels, probabilities, groups, weights=weights).value
    assert metrics.calibration == calibration_ratio(labels, probabilities, weights=weights)
    assert metrics.ece == expected_calibration_error(labels, probabilities, weights=weights)
    assert metrics.rows == int(np.isfinite(labels).sum())
    assert metrics.positives == int((labels == 1).sum())


def test_task_metrics_of_the_published_example() -> None:
    metrics = evaluate_task([1, 0, 0, 0], [0.7, 0.1, 0.1, 0.1])
    assert metrics.ne == pytest.approx(0.29909, abs=5e-6)
    assert (metrics.auc, metrics.gauc, metrics.base_rate) == (1.0, None, 0.25)
    assert metrics.calibration == pytest.approx(1.0)
    # Bins {.1, .1, .1} and {.7}: (3 * .1 + .3) / 4.
    assert metrics.ece == pytest.approx(0.15)


@pytest.mark.parametrize(("label", "calibration"), [(1, 0.4), (0, math.nan)])
def test_one_class_has_no_ne_auc_or_gauc_but_a_loss(label: int, calibration: float) -> None:
    metrics = evaluate_task([label, label], [0.4, 0.4], groups=[1, 2])
    assert math.isnan(metrics.ne)
    assert math.isnan(metrics.auc)
    assert metrics.gauc is not None
    assert math.isnan(metrics.gauc)
    assert metrics.calibration == pytest.approx(calibration, nan_ok=True)
    assert metrics.log_loss == pytest.approx(-math.log(0.4 if label else 0.6))
    assert metrics.ece == pytest.approx(0.6 if label else 0.4)


def test_gauc_is_nan_where_no_group_holds_both_classes() -> None:
    metrics = evaluate_task([1, 0], [0.4, 0.4], groups=[1, 2])
    assert metrics.auc == 0.5
    assert metrics.gauc is not None
    assert math.isnan(metrics.gauc)


@pytest.mark.parametrize("labels", [[], [np.nan, np.nan]])
def test_metrics_without_observed_rows_are_nan_with_zero_rows(labels: list[float]) -> None:
    metrics = evaluate_task(labels, np.full(len(labels), 0.5))
    assert (metrics.rows, metrics.positives, metrics.gauc) == (0, 0, None)
    values = (metrics.ne, metrics.log_loss, metrics.auc, metrics.calibration, metrics.ece)
    assert all(math.isnan(value) for value in values)


def test_json_of_metrics_is_strict_and_writes_null_for_what_is_undefined() -> None:
    text = json.dumps(evaluate_task([0, 0], [0.4, 0.4]).to_json(), allow_nan=False)
    values = json.loads(text)
    assert set(values) >= {"ne", "log_loss", "auc", "gauc", "calibration", "ece", "rows"}
    assert values["ne"] is values["auc"] is values["gauc"] is values["calibration"] is None
    assert (values["rows"], values["positives"], values["base_rate"]) == (2, 0, 0.0)


def test_probability_out_of_range_is_refused_by_evaluate_task() -> None:
    with pytest.raises(DataError, match=r"got 1\.25 at position 1"):
        evaluate_task([1, 0], [0.5, 1.25])


def test_weights_that_are_all_zero_are_refused_by_evaluate_task() -> None:
    with pytest.raises(DataError, match="positive sum, got 0 over 2 observed rows"):
        evaluate_task([1, 0], [0.5, 0.5], weights=[0.0, 0.0])


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(deadline=None)
def test_integer_weights_equal_repeated_rows(seed: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.random(50) < 0.4, np.round(rng.random(50), 1)
    labels[:2] = (False, True)
    groups, weights = rng.integers(0, 5, 50), rng.integers(1, largest, 50)
    weighted = evaluate_task(labels, probabilities, weights=weights, groups=groups)
    repeated = evaluate_task(
        *(np.repeat(column, weights) for column in (labels, probabilities)),
        groups=np.repeat(groups, weights),
    )
    for name in ("ne", "log_loss", "auc", "gauc", "calibration", "ece", "base_rate"):
        wanted = getattr(repeated, name)
        assert getattr(weighted, name) == pytest.approx(wanted, rel=1e-10, nan_ok=True), name


def test_evaluation_imports_neither_torch_nor_pyarrow_nor_scipy() -> None:
    code = (
        "import sys, tamis.evaluation; "
        "sys.exit(', '.join({'torch', 'pyarrow', 'scipy', 'sklearn'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_auc_within_users_is_weighted_by_their_rows() -> None:
    """Users of three rows with AUC 1, of two with AUC 0, and of two with one class alone."""
    labels = np.array([1, 0, 0, 1, 0, 1, 1], np.float32)
    predictions = np.array([0.9, 0.2, 0.1, 0.3, 0.8, 0.5, 0.4])
    users = np.array([1, 1, 1, 2, 2, 3, 3])
    metrics = evaluate_task(labels, predictions, groups=users)

    assert metrics.gauc == pytest.approx((1 * 3 + 0 * 2) / 5)
    assert metrics.auc == pytest.approx(0.75)
