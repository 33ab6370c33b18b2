"""DeLong's test: is the AUC of one model higher than that of another on the same rows?"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.ranking import group_codes
from tamis.evaluation.rows import EvaluatedRows, observed_rows, require_both_classes
from tamis.evaluation.significance import (
    PairedDifference,
    normal_p_value,
    normal_quantile,
    require_confidence,
)


def delong_test(
    labels: ArrayLike,
    baseline: ArrayLike,
    candidate: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
) -> PairedDifference:
    """Compares two AUCs on the same rows without resampling, in O(n log n).

    Each positive has a placement value, the share of negatives below it, and each negative the
    share of positives above it. The AUC is their mean, and their spread gives its variance. With
    ``groups`` the values are summed by group first, so that rows of one user may depend on each
    other; without, every row counts as independent, which is too sure of itself on click logs.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        baseline: (B,) scores of the baseline; ties are allowed.
        candidate: (B,) scores of the candidate.
        groups: (B,) user of each row; None for independent rows.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        The difference of the AUCs with a normal interval.

    Raises:
        DataError: A value has no meaning, there are fewer than two positives, negatives, or
            groups of either, or the AUCs differ and nothing tells by how much they vary.

    Source:
        DeLong, DeLong and Clarke-Pearson, Biometrics 1988; Sun and Xu, Fast implementation of
        DeLong's algorithm, IEEE Signal Processing Letters 2014; with groups, Obuchowski,
        Nonparametric analysis of clustered ROC curve data, Biometrics 1997, section 2.

    Differs from the source:
        Places are found by binary search in sorted scores in place of midranks: same numbers.
    """
    require_confidence("delong_test", confidence)
    rows = observed_rows(labels, baseline, groups=groups, probabilities=False)
    other = observed_rows(labels, candidate, probabilities=False)
    require_both_classes(rows, "delong_test")
    high, low = _placements(rows.positive, rows.predicted)
    high_other, low_other = _placements(rows.positive, other.predicted)
    auc_before, auc_after = float(high.mean()), float(high_other.mean())
    # The variance of a difference is that of the differences of placement values.
    high = high_other - high
    low = low_other - low
    difference = float(high.mean())
    if rows.groups is None:
        variance, units = _variance_of_rows(high, low), rows.rows
    else:
        variance, units = _variance_of_groups(rows, high, low)
    error = math.sqrt(max(variance, 0.0))
    # Rounding leaves 1e-16 of a spread that is none.
    if difference != 0.0 and error <= 1e-12 * abs(difference):
        raise DataError(
            f"delong_test: rows must differ in how far the models are apart, got a difference of "
            f"{difference:.4g} without any spread in {rows.rows} rows. Evaluate on more rows."
        )
    half = normal_quantile(confidence) * error
    return PairedDifference(
        metric="auc",
        baseline=auc_before,
        candidate=auc_after,
        difference=difference,
        standard_error=error,
        lower=difference - half,
        upper=difference + half,
        p_value=normal_p_value(difference, error),
        confidence=confidence,
        method="DeLong" if rows.groups is None else "DeLong, clustered by group",
        units=units,
        replicates=0,
    )


def _placements(
    positive: NDArray[np.bool_], score: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of negatives below each positive, and of positives above each negative."""
    high, low = score[positive], score[~positive]
    high_order, low_order = np.argsort(high), np.argsort(low)
    high_sorted, low_sorted = high[high_order], low[low_order]
    # Searching sorted keys walks through memory in order; see auc_of_rows.
    below = np.searchsorted(low_sorted, high_sorted, side="left")
    below += np.searchsorted(low_sorted, high_sorted, side="right")
    not_above = np.searchsorted(high_sorted, low_sorted, side="left")
    not_above += np.searchsorted(high_sorted, low_sorted, side="right")
    of_high, of_low = np.empty(high.size), np.empty(low.size)
    of_high[high_order] = below / (2.0 * low.size)
    of_low[low_order] = 1.0 - not_above / (2.0 * high.size)
    return of_high, of_low


def _variance_of_rows(high: NDArray[np.float64], low: NDArray[np.float64]) -> float:
    if min(high.size, low.size) < 2:
        raise DataError(
            f"delong_test: there must be two positives and two negatives, got {high.size} and "
            f"{low.size}. Evaluate on more rows."
        )
    return float(high.var(ddof=1) / high.size + low.var(ddof=1) / low.size)


def _variance_of_groups(
    rows: EvaluatedRows, high: NDArray[np.float64], low: NDArray[np.float64]
) -> tuple[float, int]:
    """Obuchowski's variance from sums of centred placement values per group."""
    code = group_codes(np.asarray(rows.groups))
    size = int(code.max()) + 1
    code_high, code_low = code[rows.positive], code[~rows.positive]
    sum_high = np.bincount(code_high, weights=high - high.mean(), minlength=size)
    sum_low = np.bincount(code_low, weights=low - low.mean(), minlength=size)
    has_high = np.bincount(code_high, minlength=size) > 0
    has_low = np.bincount(code_low, minlength=size) > 0
    groups_high, groups_low = np.count_nonzero(has_high), np.count_nonzero(has_low)
    units = int(np.count_nonzero(has_high | has_low))
    if min(groups_high, groups_low) < 2:
        raise DataError(
            f"delong_test: there must be two groups with positives and two with negatives, got "
            f"{groups_high} and {groups_low}. Evaluate on more groups."
        )
    own_high = groups_high / (groups_high - 1) * float(sum_high @ sum_high) / high.size**2
    own_low = groups_low / (groups_low - 1) * float(sum_low @ sum_low) / low.size**2
    both = units / (units - 1) * float(sum_high @ sum_low) / (high.size * low.size)
    return own_high + own_low + 2.0 * both, units
