"""How close probabilities come to those of another model, such as a later stage's."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.loss import PROBABILITY_FLOOR


@dataclass(frozen=True, kw_only=True, slots=True)
class ImitationMetrics:
    """What is reported for labels that are probabilities; nan marks what the rows cannot tell."""

    divergence: float
    """Mean Kullback-Leibler divergence from target to prediction, nats; 0 is a perfect copy."""
    rmse: float
    """Root of the mean squared difference."""
    calibration: float
    """Sum of predictions over sum of targets."""
    rows: int
    """Rows with a target."""

    def to_json(self) -> dict[str, float | int | None]:
        """Metrics by name, ready for strict JSON; None stands for nan."""
        values = {
            "divergence": self.divergence,
            "rmse": self.rmse,
            "calibration": self.calibration,
        }
        known = {name: None if math.isnan(value) else value for name, value in values.items()}
        return {**known, "rows": self.rows}


def evaluate_imitation(
    targets: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> ImitationMetrics:
    """Compares predictions with the probabilities that they should equal.

    The cross entropy of training is the divergence and the targets' own entropy, which no model
    can lower; the divergence alone says how much is left to learn.

    Args:
        targets: (B,) in [0, 1], or NaN (none, left out).
        probabilities: (B,) in [0, 1]; clipped to [1e-12, 1 - 1e-12] for the divergence.
        weights: (B,) finite and not negative; None for 1 everywhere.

    Returns:
        The metrics; nan where no row, or no weight, is left.

    Raises:
        DataError: Columns differ in length, or a value is out of its range.

    Example:
        >>> metrics = evaluate_imitation([0.5, 0.5], [0.25, 0.5])
        >>> round(metrics.divergence, 4), metrics.calibration  # (log 2 + log(2 / 3)) / 4
        (0.0719, 0.75)
    """
    target = np.asarray(targets, np.float64)
    predicted = np.asarray(probabilities, np.float64)
    weight = np.ones(target.shape) if weights is None else np.asarray(weights, np.float64)
    if target.ndim != 1 or not target.shape == predicted.shape == weight.shape:
        raise DataError(
            f"imitation: targets, probabilities and weights must be columns of one length, got "
            f"shapes {target.shape}, {predicted.shape} and {weight.shape}. Pass one value per row."
        )
    _check_shares("targets", target, may_be_missing=True)
    _check_shares("probabilities", predicted, may_be_missing=False)
    if not ((weight >= 0) & (weight < np.inf)).all():
        raise DataError("imitation: weights must be finite and not negative. Mend the column.")
    known = ~np.isnan(target)
    target, predicted, weight = target[known], predicted[known], weight[known]
    nan, total = float("nan"), float(weight.sum())
    if total == 0:
        return ImitationMetrics(divergence=nan, rmse=nan, calibration=nan, rows=target.size)
    mass = float(weight @ target)
    return ImitationMetrics(
        divergence=float(weight @ _divergences(target, predicted)) / total,
        rmse=math.sqrt(float(weight @ (predicted - target) ** 2) / total),
        calibration=float(weight @ predicted) / mass if mass else nan,
        rows=target.size,
    )


def _divergences(
    target: NDArray[np.float64], predicted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """KL divergence of each row; ``0 log 0`` is 0."""
    clipped = np.clip(predicted, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    total = np.zeros_like(target)
    for share, claimed in ((target, clipped), (1 - target, 1 - clipped)):
        positive = share > 0
        total[positive] += share[positive] * np.log(share[positive] / claimed[positive])
    return total


def _check_shares(name: str, values: NDArray[np.float64], *, may_be_missing: bool) -> None:
    right = (values >= 0) & (values <= 1)
    if may_be_missing:
        right |= np.isnan(values)
    if not right.all():
        position = int(np.argmin(right))
        raise DataError(
            f"imitation: {name} must be in [0, 1], got {values[position].item()!r} at position "
            f"{position}. Check where the column was made."
        )
