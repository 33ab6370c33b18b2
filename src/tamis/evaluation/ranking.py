"""Ranking quality: the exact area under the ROC curve, over all rows and within groups."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.rows import EvaluatedRows, observed_rows, require_both_classes


def auc(labels: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Exact area under the ROC curve.

    The chance that a positive row, drawn by weight, has a higher score than a negative one; equal
    scores count one half. Without weights the pairs are counted in integers, so the only rounding
    is that of the last division.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        scores: (B,) probabilities, logits or any other scores; infinities are allowed.
        weights: (B,) finite and not negative; None for 1 everywhere.

    Returns:
        A number in [0, 1]; 0.5 is random order.

    Raises:
        DataError: A value has no meaning, or one of the classes is missing.

    Example:
        >>> auc([1, 0, 1, 0], [0.9, 0.8, 0.8, 0.1])
        0.875
    """
    rows = observed_rows(labels, scores, weights=weights, probabilities=False)
    require_both_classes(rows, "auc")
    return auc_of_rows(rows)


def auc_of_rows(rows: EvaluatedRows) -> float:
    """Exact area under the ROC curve of rows that were checked already.

    Args:
        rows: Observed rows that hold both classes.

    Returns:
        The area, as :func:`auc` gives it.
    """
    negative = ~rows.positive
    high, low = rows.predicted[rows.positive], rows.predicted[negative]
    if rows.weights is None:
        # Two plain sorts are about ten times as fast as one argsort, and searching sorted keys
        # walks through memory in order; searching unsorted keys would be 30 times slower.
        high.sort()
        low.sort()
        few, many = (high, low) if high.size <= low.size else (low, high)
        below = int(np.searchsorted(many, few, side="left").sum(dtype=np.int64))
        not_above = int(np.searchsorted(many, few, side="right").sum(dtype=np.int64))
        halves, all_halves = below + not_above, 2 * high.size * low.size
        return (halves if few is high else all_halves - halves) / all_halves
    high_weight, low_weight = rows.weights[rows.positive], rows.weights[negative]
    order = np.argsort(low)
    low = low[order]
    weight_below = np.concatenate(([0.0], np.cumsum(low_weight[order])))
    order = np.argsort(high)
    high, high_weight = high[order], high_weight[order]
    won = weight_below[np.searchsorted(low, high, side="left")]
    won += weight_below[np.searchsorted(low, high, side="right")]
    area = float(high_weight @ won / (2.0 * high_weight.sum() * weight_below[-1]))
    return min(area, 1.0)  # Rounding of weighted sums may push it a hair above.


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedAuc:
    """Mean of the areas within groups, and what was left out of it."""

    value: float
    """Mean over groups of their AUC, weighted by the weight of their rows; nan if none counts."""
    groups: int
    """Groups that hold both classes and so count."""
    skipped_groups: int
    """Groups left out because they hold one class only."""
    skipped_rows: int
    """Observed rows of the groups left out."""


def grouped_auc(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike,
    *,
    weights: ArrayLike | None = None,
) -> GroupedAuc:
    """Mean AUC within groups (GAUC), each group weighted by its impressions.

    It asks whether a user's clicks outrank the same user's other impressions, and so does not
    reward knowing which users click more. A group without both classes has no AUC: it is left out
    and counted.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        scores: (B,) probabilities, logits or any other scores.
        groups: (B,) user or request of each row, integers or strings.
        weights: (B,) row weights; None for 1 everywhere. A group counts by the sum of its weights.

    Returns:
        The mean and the counts of what was left out.

    Raises:
        DataError: A value has no meaning, or no group holds both classes.

    Source:
        Zhu et al., Optimized Cost per Click in Taobao Display Advertising, KDD 2017, equation 12.

    Differs from the source:
        Row weights are allowed.

    Example:
        >>> grouped_auc([1, 0, 1, 0, 0], [0.9, 0.1, 0.2, 0.3, 0.4], [7, 7, 8, 8, 8]).value
        0.4
    """
    rows = observed_rows(labels, scores, weights=weights, groups=groups, probabilities=False)
    result = grouped_auc_of_rows(rows)
    if result.groups == 0:
        raise DataError(
            f"gauc: at least one group must hold both classes, got none in {result.skipped_groups} "
            f"groups. Evaluate on more rows per group, or use auc."
        )
    return result


def grouped_auc_of_rows(rows: EvaluatedRows) -> GroupedAuc:
    """Mean AUC within groups of rows that were checked already.

    Args:
        rows: Observed rows with groups.

    Returns:
        As :func:`grouped_auc`, but with the value nan where no group holds both classes.

    Raises:
        DataError: The rows have no groups.
    """
    if rows.groups is None:
        raise DataError("gauc: rows must have groups, got None. Pass the user of each row.")
    code = group_codes(rows.groups)
    area, mass = areas_by_group(rows, code)
    num_rows = np.bincount(code, minlength=area.size)
    counts = np.isfinite(area)
    value = float(area[counts] @ mass[counts] / mass[counts].sum()) if counts.any() else np.nan
    return GroupedAuc(
        value=min(value, 1.0),  # As in auc_of_rows; nan stays.
        groups=int(np.count_nonzero(counts)),
        skipped_groups=int(np.count_nonzero((num_rows > 0) & ~counts)),
        skipped_rows=int(num_rows[~counts].sum()),
    )


def areas_by_group(
    rows: EvaluatedRows, code: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUC and weight of every group.

    Args:
        rows: Observed rows.
        code: (B,) number of each row's group, as :func:`group_codes` gives it.

    Returns:
        Per group number its AUC, nan without both classes, and the sum of its weights.
    """
    num_groups = int(code.max()) + 1 if code.size else 0
    weight = np.ones(rows.rows) if rows.weights is None else rows.weights
    # The type checker takes every bincount for counts; the casts change nothing.
    positive, negative = (
        np.bincount(code, weights=weight * member, minlength=num_groups).astype(np.float64)
        for member in (rows.positive, ~rows.positive)
    )
    counts = (positive > 0.0) & (negative > 0.0)
    area = np.full(num_groups, np.nan)
    keep = counts[code]
    if keep.any():
        won = _weight_won_by_group(
            code[keep], rows.predicted[keep], rows.positive[keep], weight[keep], num_groups
        )
        area[counts] = won[counts] / (positive[counts] * negative[counts])
    return area, positive + negative


def group_codes(groups: NDArray[np.generic]) -> NDArray[np.int64]:
    """Numbers groups from 0; some numbers may stay unused.

    Args:
        groups: (B,) integers, strings or anything else that NumPy can sort.

    Returns:
        (B,) non-negative integers below ``4 * B + 1024``, equal where the groups are.

    Raises:
        DataError: The values cannot be compared with each other.
    """
    if groups.dtype.kind in "iu" and groups.size:
        low, high = int(groups.min()), int(groups.max())
        # Ids of a dense range need no sort; np.unique takes 2 s for 5 million rows. The codes must
        # stay below 2**31 for the packed sort key of _weight_won_by_group.
        if high - low < min(4 * groups.size + 1024, 2**31):
            if groups.dtype.kind == "u":
                return (groups.astype(np.uint64) - np.uint64(low)).astype(np.int64)
            signed: NDArray[np.int64] = groups.astype(np.int64)
            return signed - low
    try:
        code: NDArray[np.int64] = np.unique(groups, return_inverse=True)[1]
    except TypeError as error:
        raise DataError(
            f"groups: must be values that can be sorted, got dtype {groups.dtype} of mixed types. "
            "Pass integers or strings."
        ) from error
    return code.astype(np.int64, copy=False)


def _weight_won_by_group(
    code: NDArray[np.int64],
    score: NDArray[np.float64],
    positive: NDArray[np.bool_],
    weight: NDArray[np.float64],
    num_groups: int,
) -> NDArray[np.float64]:
    """Per group, the weight of (positive, negative) pairs in right order; ties count half."""
    # Order by (group, score): the place in score order is unique and below 2**32, so both fit one
    # integer and one plain sort replaces a lexsort, which is three times as slow.
    by_score = np.argsort(score)
    place = np.arange(score.size, dtype=np.int64)
    key = (code[by_score] << 32) | place
    key.sort()
    order = by_score[key & 0xFFFFFFFF]
    code, score = code[order], score[order]
    new_run = np.empty(code.size, dtype=bool)
    new_run[0] = True
    new_run[1:] = (code[1:] != code[:-1]) | (score[1:] != score[:-1])
    start = np.flatnonzero(new_run)
    run_group = code[start]
    run_positive = np.add.reduceat(weight[order] * positive[order], start)
    run_negative = np.add.reduceat(weight[order] * ~positive[order], start)
    before = np.cumsum(run_negative) - run_negative
    first_run = np.zeros(num_groups)
    new_group = np.concatenate(([True], run_group[1:] != run_group[:-1]))
    first_run[run_group[new_group]] = before[new_group]
    won = run_positive * (before - first_run[run_group] + 0.5 * run_negative)
    return np.bincount(run_group, weights=won, minlength=num_groups).astype(np.float64, copy=False)
