"""Distances between two models' probabilities, worked out by hand."""

import math

import numpy as np
import pytest

from tamis.errors import DataError
from tamis.evaluation.imitation import evaluate_imitation


def test_metrics_of_two_rows() -> None:
    metrics = evaluate_imitation([0.5, 0.2], [0.25, 0.2])

    # Only the first row differs: (log 2 + log(0.5 / 0.75)) / 2, over two rows.
    assert metrics.divergence == pytest.approx((math.log(2) + math.log(2 / 3)) / 4)
    assert metrics.rmse == pytest.approx(math.sqrt(0.25**2 / 2))
    assert metrics.calibration == pytest.approx(0.45 / 0.7)


def test_divergence_is_the_training_loss_above_its_least() -> None:
    generator = np.random.default_rng(0)
    target, predicted = generator.random((2, 500))
    weights = generator.random(500)
    loss = least = 0.0
    for p, q, w in zip(target, predicted, weights, strict=True):
        loss -= w * (p * math.log(q) + (1 - p) * math.log(1 - q))
        least -= w * (p * math.log(p) + (1 - p) * math.log(1 - p))

    found = evaluate_imitation(target, predicted, weights=weights)
    assert found.divergence == pytest.approx((loss - least) / weights.sum())


def test_a_copy_has_no_divergence_and_certain_targets_are_finite() -> None:
    targets = np.array([0.0, 1.0, 0.3])

    copy = evaluate_imitation(targets, targets)
    assert (copy.divergence, copy.rmse, copy.calibration) == (pytest.approx(0, abs=1e-11), 0, 1)
    wrong = evaluate_imitation(targets, 1 - targets)
    assert math.isfinite(wrong.divergence)
    assert wrong.divergence > 10


def test_rows_without_a_target_do_not_count() -> None:
    some = evaluate_imitation([0.5, np.nan], [0.25, 0.9], weights=[2.0, 3.0])

    assert some == evaluate_imitation([0.5], [0.25])
    assert evaluate_imitation([np.nan], [0.25]).to_json() == {
        "divergence": None,
        "rmse": None,
        "calibration": None,
        "rows": 0,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.2], [0.5]), r"targets must be in \[0, 1\], got 1.2 at position 0"),
        (
            ([0.5, 0.5], [0.5, math.nan]),
            r"probabilities must be in \[0, 1\], got nan at position 1",
        ),
        (([0.5], [0.5, 0.5]), r"columns of one length, got shapes \(1,\), \(2,\) and \(1,\)"),
    ],
)
def test_values_without_a_meaning_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_imitation(*arguments)


def test_negative_weight_is_refused() -> None:
    with pytest.raises(DataError, match="weights must be finite and not negative"):
        evaluate_imitation([0.5], [0.5], weights=[-1.0])
