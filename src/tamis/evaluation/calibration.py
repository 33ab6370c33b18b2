"""Calibration: do predicted probabilities add up to what happened, overall and by level?"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.rows import EvaluatedRows, observed_rows, require_weight

DEFAULT_BINS = 20
"""Bins of equal weight for the calibration error and the reliability curve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityBin:
    """Rows of similar predicted probability: what was predicted and what happened."""

    predicted: float
    """Weighted mean of the predicted probabilities."""
    observed: float
    """Weighted share of positives."""
    lower: float
    """Lower end of the interval of the observed share."""
    upper: float
    """Upper end of the interval of the observed share."""
    rows: int
    """Rows in the bin."""
    weight: float
    """Their weight as a share of all, in [0, 1]."""


def calibration_ratio(
    labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> float:
    """Sum of predicted probabilities over the number of positives.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        probabilities: (B,) in [0, 1].
        weights: (B,) finite and not negative; None for 1 everywhere.

    Returns:
        1 when as much is predicted as happens, above 1 when too much is predicted.

    Raises:
        DataError: A value has no meaning, or there are no positives.

    Example:
        >>> calibration_ratio([1, 0, 0, 1], [0.5, 0.25, 0.25, 0.5])
        0.75
    """
    rows = observed_rows(labels, probabilities, weights=weights)
    if rows.positive_weight <= 0.0:
        raise DataError(
            f"calibration ratio: labels must hold a positive, got none in {rows.rows} observed "
            "rows. Evaluate on more rows."
        )
    return calibration_ratio_of_rows(rows)


def calibration_ratio_of_rows(rows: EvaluatedRows) -> float:
    """Calibration ratio of rows that were checked already.

    Args:
        rows: Observed rows with at least one positive.

    Returns:
        Predicted over observed, as :func:`calibration_ratio` gives it.
    """
    return rows.weighted_sum(rows.predicted) / rows.positive_weight


def expected_calibration_error(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    bins: int = DEFAULT_BINS,
) -> float:
    """Mean distance between predicted and observed rate over bins of equal weight (ECE).

    Bins of equal weight, not of equal width: ad probabilities crowd near zero, where bins of equal
    width put nearly all rows into one. The error is biased upwards by sampling noise, about
    ``sqrt(2 * bins * base_rate / (pi * rows))`` for a perfect predictor, so compare it only
    between models on the same rows.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        probabilities: (B,) in [0, 1].
        weights: (B,) finite and not negative; None for 1 everywhere.
        bins: Largest number of bins; equal predictions are never parted, so there may be fewer.

    Returns:
        Mean absolute difference, in [0, 1].

    Raises:
        DataError: A value has no meaning, or no label was observed.

    Source:
        Nguyen and O'Connor, Posterior calibration and exploratory analysis for natural language
        processing models, EMNLP 2015, section 3 (adaptive bins).

    Differs from the source:
        The absolute difference in place of the square; equal predictions stay together.
    """
    return error_of_curve(reliability_curve(labels, probabilities, weights=weights, bins=bins))


def reliability_curve(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    bins: int = DEFAULT_BINS,
    confidence: float = 0.95,
) -> tuple[ReliabilityBin, ...]:
    """Predicted against observed rate in bins of equal weight, for a plot.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        probabilities: (B,) in [0, 1].
        weights: (B,) finite and not negative; None for 1 everywhere.
        bins: Largest number of bins; equal predictions are never parted, so there may be fewer.
        confidence: Coverage of the intervals, in (0, 1). They are Wilson score intervals; with
            weights, on the effective number of rows.

    Returns:
        Bins from the lowest predictions to the highest.

    Raises:
        DataError: A value has no meaning, or no label was observed.
    """
    rows = observed_rows(labels, probabilities, weights=weights)
    require_weight(rows)
    if rows.rows == 0:
        raise DataError(
            f"reliability curve: at least one row must be observed, got 0 of {rows.unobserved}. "
            "Evaluate on rows whose label is known."
        )
    return reliability_of_rows(rows, bins=bins, confidence=confidence)


def reliability_of_rows(
    rows: EvaluatedRows, *, bins: int = DEFAULT_BINS, confidence: float = 0.95
) -> tuple[ReliabilityBin, ...]:
    """Reliability curve of rows that were checked already.

    Args:
        rows: Observed rows, at least one.
        bins: Largest number of bins.
        confidence: Coverage of the intervals, in (0, 1).

    Returns:
        Bins from the lowest predictions to the highest, as :func:`reliability_curve` gives them.

    Raises:
        DataError: ``bins`` or ``confidence`` is out of range.
    """
    if bins < 1 or not 0.0 < confidence < 1.0:
        raise DataError(
            "reliability curve: bins must be at least 1 and confidence in (0, 1), got "
            f"bins={bins!r}, confidence={confidence!r}. Correct the argument."
        )
    score = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    member = np.searchsorted(_edges(rows, bins), rows.predicted, side="right")
    weight = np.ones(rows.rows) if rows.weights is None else rows.weights
    count = np.bincount(member, minlength=bins)
    mass = np.bincount(member, weights=weight, minlength=bins)
    squared = np.bincount(member, weights=weight * weight, minlength=bins)
    predicted = np.bincount(member, weights=weight * rows.predicted, minlength=bins)
    happened = np.bincount(member, weights=weight * rows.positive, minlength=bins)
    curve: list[ReliabilityBin] = []
    for index in np.flatnonzero(mass > 0.0):
        # Rounding may push a share of sums a hair above 1.
        share = min(float(happened[index] / mass[index]), 1.0)
        effective_rows = float(mass[index] ** 2 / squared[index])
        lower, upper = wilson_interval(share, effective_rows, score)
        curve.append(
            ReliabilityBin(
                predicted=float(predicted[index] / mass[index]),
                observed=share,
                lower=lower,
                upper=upper,
                rows=int(count[index]),
                weight=float(mass[index] / mass.sum()),
            )
        )
    return tuple(curve)


def error_of_curve(curve: tuple[ReliabilityBin, ...]) -> float:
    """Expected calibration error of a reliability curve.

    Args:
        curve: Bins whose weights add up to 1.

    Returns:
        Weighted mean of the absolute differences.
    """
    return math.fsum(part.weight * abs(part.predicted - part.observed) for part in curve)


def wilson_interval(share: float, rows: float, score: float) -> tuple[float, float]:
    """Interval of a proportion that stays inside [0, 1] and holds for rare events.

    Args:
        share: Observed share, in [0, 1].
        rows: Number of rows, effective ones if they are weighted.
        score: Standard normal quantile, such as 1.96 for 95 %.

    Returns:
        Lower and upper end.

    Source:
        Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.

    Differs from the source:
        Nothing known; parity with a public implementation is tested.
    """
    shrink = 1.0 + score * score / rows
    centre = (share + score * score / (2.0 * rows)) / shrink
    spread = (
        score
        / shrink
        * math.sqrt(share * (1.0 - share) / rows + score * score / (4.0 * rows * rows))
    )
    return max(0.0, min(centre - spread, share)), min(1.0, max(centre + spread, share))


def _edges(rows: EvaluatedRows, bins: int) -> NDArray[np.float64]:
    """Lowest prediction of each bin but the first."""
    if rows.weights is None:
        ordered = np.sort(rows.predicted)
        first = (np.arange(1, bins) * rows.rows) // bins
    else:
        order = np.argsort(rows.predicted)
        ordered = rows.predicted[order]
        mass = np.cumsum(rows.weights[order])
        first = np.searchsorted(mass, np.arange(1, bins) / bins * mass[-1], side="right")
        first = np.minimum(first, rows.rows - 1)
    # An edge that repeats, where many predictions are equal, would only make empty bins.
    return np.unique(ordered[first])
