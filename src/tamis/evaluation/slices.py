"""Metrics by the values of one column: where is the model weak, where is it off?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.metrics import metrics_of_rows
from tamis.evaluation.ranking import group_codes
from tamis.evaluation.rows import EvaluatedRows, observed_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceRow:
    """Metrics of the rows that share one value of a column, or of all values that are too rare."""

    value: str
    """The value as text; "other" for the folded ones."""
    folded: int
    """0 for a slice of one value; else the number of rare values folded into this one."""
    rows: int
    """Observed rows."""
    base_rate: float
    """Weighted share of positives."""
    ne: float
    """NE against the slice's own base rate; nan with one class. Slices of unequal base rate are
    not comparable by it; compare two models on one slice."""
    log_loss: float
    """Mean log loss, nats; these average, by weight, to that of the whole."""
    auc: float
    """AUC within the slice; nan with one class."""
    calibration: float
    """Predicted over observed; nan without positives."""


def slice_table(
    labels: ArrayLike,
    probabilities: ArrayLike,
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    min_rows: int = 1000,
) -> tuple[SliceRow, ...]:
    """Computes the metrics of each value of a column.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        probabilities: (B,) in [0, 1].
        values: (B,) the column, integers or strings.
        weights: (B,) finite and not negative; None for 1 everywhere.
        min_rows: Values with fewer observed rows are folded into one last slice, so that no row is
            lost and no slice is mere noise.

    Returns:
        One row per value, most rows first, and the folded values last.

    Raises:
        DataError: A value has no meaning, or ``min_rows`` is below 1.
    """
    if min_rows < 1:
        raise DataError(
            f"slice_table: min_rows must be at least 1, got {min_rows!r}. Use 1 to fold nothing."
        )
    rows = observed_rows(labels, probabilities, weights=weights, groups=values)
    # observed_rows keeps the groups it is given; this tells the type checker so.
    column = np.asarray(rows.groups)
    code = group_codes(column)
    num_rows = np.bincount(code)
    is_rare = (num_rows > 0) & (num_rows < min_rows)
    folded = num_rows.size
    code = np.where(is_rare[code], folded, code) if is_rare.any() else code
    order = np.argsort(code, kind="stable")
    starts = np.flatnonzero(np.diff(code[order], prepend=-1))
    table: list[SliceRow] = []
    for member in np.split(order, starts[1:]) if order.size else ():
        rare = bool(code[member[0]] == folded)
        name = "other" if rare else str(column[member[0]])
        num_folded = int(np.count_nonzero(is_rare)) if rare else 0
        table.append(_slice_row(rows, member, name, num_folded))
    table.sort(key=lambda row: (row.folded > 0, -row.rows, row.value))
    return tuple(table)


def _slice_row(rows: EvaluatedRows, member: NDArray[np.int64], value: str, folded: int) -> SliceRow:
    weights = None if rows.weights is None else rows.weights[member]
    if weights is not None and not weights.any():
        # Without weight nothing can be averaged; the slice is shown, as rows without a number.
        member, weights = member[:0], None
    part = EvaluatedRows(
        positive=rows.positive[member],
        predicted=rows.predicted[member],
        weights=weights,
        groups=None,
        unobserved=0,
    )
    metrics = metrics_of_rows(part)
    return SliceRow(
        value=value,
        folded=folded,
        rows=metrics.rows,
        base_rate=metrics.base_rate,
        ne=metrics.ne,
        log_loss=metrics.log_loss,
        auc=metrics.auc,
        calibration=metrics.calibration,
    )
