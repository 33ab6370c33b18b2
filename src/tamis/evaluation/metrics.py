"""All metrics of one task at once, and the form in which they are written down."""

import math
from dataclasses import dataclass

from numpy.typing import ArrayLike

from tamis.evaluation.calibration import (
    calibration_ratio_of_rows,
    error_of_curve,
    reliability_of_rows,
)
from tamis.evaluation.loss import entropy, row_log_losses
from tamis.evaluation.ranking import auc_of_rows, grouped_auc_of_rows
from tamis.evaluation.rows import EvaluatedRows, observed_rows, require_weight


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskMetrics:
    """What is reported for one task on one split; nan marks what the rows cannot tell.

    With labels of one class ``ne``, ``auc`` and ``gauc`` are nan, without positives ``calibration``
    too, and without observed rows everything but the counts.
    """

    ne: float
    """Normalised entropy against the base rate of the same rows; smaller is better."""
    log_loss: float
    """Mean log loss, nats."""
    auc: float
    """Area under the ROC curve."""
    gauc: float | None
    """Mean AUC within groups by impressions; None when no groups were given."""
    calibration: float
    """Sum of predicted probabilities over number of positives."""
    ece: float
    """Expected calibration error over 20 bins of equal weight."""
    rows: int
    """Observed rows."""
    positives: int
    """Observed rows with label 1, not weighted."""
    base_rate: float
    """Weighted share of positives."""

    def to_json(self) -> dict[str, float | int | None]:
        """Metrics by name, ready for strict JSON.

        Returns:
            All fields; None stands for nan, which JSON cannot write.
        """
        values: dict[str, float | int | None] = {
            "ne": self.ne,
            "log_loss": self.log_loss,
            "auc": self.auc,
            "gauc": self.gauc,
            "calibration": self.calibration,
            "ece": self.ece,
            "rows": self.rows,
            "positives": self.positives,
            "base_rate": self.base_rate,
        }
        return {
            name: None if value is None or math.isnan(value) else value
            for name, value in values.items()
        }


def evaluate_task(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> TaskMetrics:
    """Computes the metrics of one task.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        probabilities: (B,) in [0, 1].
        weights: (B,) finite and not negative; None for 1 everywhere.
        groups: (B,) user or request of each row, for the grouped AUC; None leaves it out.

    Returns:
        The metrics; see :class:`TaskMetrics` for rows of one class.

    Raises:
        DataError: A value has no meaning: probabilities outside [0, 1] or NaN, labels other than
            0, 1 and NaN, negative weights or weights that are all 0, columns of unequal length.

    Example:
        >>> metrics = evaluate_task([1, 0, 0, 0], [0.7, 0.1, 0.1, 0.1])
        >>> round(metrics.ne, 5), metrics.auc, round(metrics.calibration, 3)
        (0.29909, 1.0, 1.0)
    """
    rows = observed_rows(labels, probabilities, weights=weights, groups=groups)
    require_weight(rows)
    return metrics_of_rows(rows)


def metrics_of_rows(rows: EvaluatedRows) -> TaskMetrics:
    """Metrics of rows that were checked already.

    Args:
        rows: Observed rows, not all of weight 0.

    Returns:
        As :func:`evaluate_task` gives them.
    """
    nan = float("nan")
    gauc = None if rows.groups is None else nan
    if rows.rows == 0:
        return TaskMetrics(
            ne=nan, log_loss=nan, auc=nan, gauc=gauc, calibration=nan, ece=nan,
            rows=0, positives=0, base_rate=nan,
        )  # fmt: skip
    losses, _ = row_log_losses(rows.positive, rows.predicted)
    mean_loss = rows.weighted_sum(losses) / rows.total_weight
    # Rounding of weighted sums may push the share a hair above 1.
    base_rate = min(rows.positive_weight / rows.total_weight, 1.0)
    both = rows.has_both_classes
    if rows.groups is not None and both:
        gauc = grouped_auc_of_rows(rows).value
    return TaskMetrics(
        ne=mean_loss / entropy(base_rate) if both and 0.0 < base_rate < 1.0 else nan,
        log_loss=mean_loss,
        auc=auc_of_rows(rows) if both else nan,
        gauc=gauc,
        calibration=calibration_ratio_of_rows(rows) if rows.positive_weight > 0.0 else nan,
        ece=error_of_curve(reliability_of_rows(rows)),
        rows=rows.rows,
        positives=rows.positives,
        base_rate=base_rate,
    )
