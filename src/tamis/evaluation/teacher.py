"""Whether a teacher's predictions may be learned from: it must not have seen the rows' labels.

Predictions of a teacher that saw them carry the labels themselves, so that a student learns the
noise of its training rows and believes it. The final stage's logged predictions are clean by
construction, those that are made afterwards need care.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.loss import entropy, row_log_losses
from tamis.evaluation.ranking import group_codes
from tamis.evaluation.rows import EvaluatedRows, observed_rows, require_both_classes
from tamis.evaluation.significance import student_quantile


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCheck:
    """A teacher's NE on the rows that a student learns from, and on days that nobody saw."""

    log_ne: float
    """NE on the rows of the log."""
    held_out_ne: float
    """NE on held-out rows."""
    difference: float
    """Held out less log: above 0 where the teacher knows the log too well."""
    lower: float
    """Lower end of the interval of the difference."""
    upper: float
    """Upper end of the interval of the difference."""
    is_clean: bool
    """Whether the interval reaches down to the tolerance."""


def check_teacher(
    log: tuple[ArrayLike, ArrayLike, ArrayLike],
    held_out: tuple[ArrayLike, ArrayLike, ArrayLike],
    *,
    tolerance: float = 0.005,
    confidence: float = 0.99,
) -> TeacherCheck:
    """Compares a teacher's NE where a student learns with its NE where nothing was learned.

    Both sets must be of impressions as they came, since the NE of a sample by outcome is another.
    Rows of one request err together, so requests, not rows, are what the interval counts.

    Args:
        log: Labels (0, 1 or NaN), predictions and requests of the log's impressions.
        held_out: The same of impressions from days that the teacher cannot have seen.
        tolerance: NE by which days may differ by themselves.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        The two NEs and whether their difference may be chance.

    Raises:
        DataError: A value has no meaning, or a set has labels of one class or of one request.
    """
    if not (0 < confidence < 1 and tolerance >= 0):
        raise DataError(
            f"teacher check: confidence in (0, 1) and tolerance of at least 0 must hold, got "
            f"confidence={confidence}, tolerance={tolerance}."
        )
    (ours, our_variance, our_requests), (theirs, their_variance, their_requests) = (
        _ne_and_variance(*part) for part in (log, held_out)
    )
    degrees = min(our_requests, their_requests) - 1
    spread = student_quantile(confidence, degrees) * (our_variance + their_variance) ** 0.5
    difference = theirs - ours
    return TeacherCheck(
        log_ne=ours,
        held_out_ne=theirs,
        difference=difference,
        lower=difference - spread,
        upper=difference + spread,
        is_clean=difference - spread <= tolerance,
    )


def _ne_and_variance(
    labels: ArrayLike, probabilities: ArrayLike, requests: ArrayLike
) -> tuple[float, float, int]:
    """NE, its variance over requests by linearising both of its means, and how many they are."""
    rows = observed_rows(labels, probabilities, groups=requests)
    require_both_classes(rows, "teacher check")
    losses, _ = row_log_losses(rows.positive, rows.predicted)
    base_rate = rows.positives / rows.rows
    best = entropy(base_rate)
    value = float(losses.mean()) / best
    # NE = L / H(p) moves by (dL - NE H'(p) dp) / H, with H'(p) = log((1 - p) / p).
    slope = np.log((1 - base_rate) / base_rate)
    influence = (losses - losses.mean() - value * slope * (rows.positive - base_rate)) / best
    return value, *_variance_of_mean(influence, rows)


def _variance_of_mean(influence: NDArray[np.float64], rows: EvaluatedRows) -> tuple[float, int]:
    sums = np.bincount(group_codes(np.asarray(rows.groups)), influence)
    count = len(sums)
    if count < 2:
        raise DataError(
            f"teacher check: each set must hold at least two requests, got {count}. Evaluate on "
            f"more of them."
        )
    return count / (count - 1) * float((sums**2).sum()) / rows.rows**2, count
