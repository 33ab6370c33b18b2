"""How far a model is from the best reachable, where the true probabilities are known.

On the simulated market each row's chance of a click is known. Predicting it is the best that any
model can do, so its NE is the floor and the distance to it is what is left to win.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tamis.errors import DataError
from tamis.evaluation.loss import PROBABILITY_FLOOR, entropy
from tamis.evaluation.metrics import TaskMetrics, evaluate_task
from tamis.evaluation.rows import observed_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleComparison:
    """A model beside the true probabilities, on the same rows."""

    model: TaskMetrics
    """Metrics of the model."""
    oracle: TaskMetrics
    """Metrics of the true probabilities."""
    ne_gap: float
    """NE of the model minus NE of the truth, as the drawn labels show it; nan with one class."""
    expected_ne_gap: float
    """The same without the luck of the draw: mean divergence of the model from the truth over the
    entropy of the mean true probability. Never negative; nan without observed rows."""

    def to_json(self) -> dict[str, dict[str, float | int | None] | float | None]:
        """The keys that stand beside a task's metrics.

        Returns:
            ``oracle``, ``ne_gap`` and ``expected_ne_gap``; None stands for nan.
        """
        return {
            "oracle": self.oracle.to_json(),
            "ne_gap": None if np.isnan(self.ne_gap) else self.ne_gap,
            "expected_ne_gap": None if np.isnan(self.expected_ne_gap) else self.expected_ne_gap,
        }


def oracle_metrics(
    labels: ArrayLike,
    true_probabilities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> TaskMetrics:
    """Metrics that a model would have that predicts the true probability of every row.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        true_probabilities: (B,) chances with which the labels were drawn.
        weights: (B,) finite and not negative; None for 1 everywhere.
        groups: (B,) user or request of each row; None when there are none.

    Returns:
        The metrics of :func:`tamis.evaluation.metrics.evaluate_task`.

    Raises:
        DataError: A value has no meaning.
    """
    return evaluate_task(labels, true_probabilities, weights=weights, groups=groups)


def ne_gap(model: TaskMetrics, oracle: TaskMetrics) -> float:
    """NE of a model above the best reachable on the same rows.

    Args:
        model: Metrics of the model.
        oracle: Metrics of the true probabilities on the same rows.

    Returns:
        Model minus oracle; nan when either is undefined. Small samples may give a negative one.

    Raises:
        DataError: The two were not computed on the same rows.
    """
    rows = (model.rows, model.positives)
    wanted = (oracle.rows, oracle.positives)
    if rows != wanted or not np.isclose(
        model.base_rate, oracle.base_rate, rtol=1e-12, atol=0.0, equal_nan=True
    ):
        raise DataError(
            f"ne_gap: model and oracle must be evaluated on the same rows, got rows and positives "
            f"{rows} with base rate {model.base_rate!r} against {wanted} with "
            f"{oracle.base_rate!r}. Evaluate both on one split with the same weights."
        )
    return model.ne - oracle.ne


def compare_to_oracle(
    labels: ArrayLike,
    probabilities: ArrayLike,
    true_probabilities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> OracleComparison:
    """Evaluates a model and the truth on the same rows.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        probabilities: (B,) of the model.
        true_probabilities: (B,) chances with which the labels were drawn.
        weights: (B,) finite and not negative; None for 1 everywhere.
        groups: (B,) user or request of each row; None when there are none.

    Returns:
        Both sets of metrics and the gaps between them.

    Raises:
        DataError: A value has no meaning.
    """
    model = evaluate_task(labels, probabilities, weights=weights, groups=groups)
    oracle = oracle_metrics(labels, true_probabilities, weights=weights, groups=groups)
    return OracleComparison(
        model=model,
        oracle=oracle,
        ne_gap=ne_gap(model, oracle),
        expected_ne_gap=_expected_gap(labels, probabilities, true_probabilities, weights),
    )


def _expected_gap(
    labels: ArrayLike,
    probabilities: ArrayLike,
    true_probabilities: ArrayLike,
    weights: ArrayLike | None,
) -> float:
    rows = observed_rows(labels, probabilities, weights=weights)
    true = observed_rows(labels, true_probabilities, weights=weights).predicted
    if rows.rows == 0:
        return float("nan")
    predicted = np.clip(rows.predicted, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    # Divergence of two coins; 0 log 0 is 0, hence the floor inside the logarithm only.
    true_floor = np.maximum(true, np.finfo(np.float64).tiny)
    false_floor = np.maximum(1.0 - true, np.finfo(np.float64).tiny)
    divergence = true * (np.log(true_floor) - np.log(predicted))
    divergence += (1.0 - true) * (np.log(false_floor) - np.log1p(-predicted))
    mean_true = rows.weighted_sum(true) / rows.total_weight
    if not 0.0 < mean_true < 1.0:
        return float("nan")
    return max(rows.weighted_sum(divergence) / rows.total_weight, 0.0) / entropy(mean_true)
