"""The rows that a metric is computed on: checked labels, predictions, weights and groups.

Every metric of this package starts here, so that "not observed", "not a probability" and "labels of
one class" mean the same everywhere.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EvaluatedRows:
    """Observed rows of one task, after the checks of :func:`observed_rows`."""

    positive: NDArray[np.bool_]
    """True where the label is 1."""
    predicted: NDArray[np.float64]
    """Probability (or score) of each row."""
    weights: NDArray[np.float64] | None
    """Weight of each row, not negative; None stands for 1 everywhere."""
    groups: NDArray[np.generic] | None
    """Group (a user, a request) of each row; None when the caller gave none."""
    unobserved: int
    """Rows left out because their label is NaN."""

    @property
    def rows(self) -> int:
        """Number of observed rows."""
        return int(self.positive.size)

    @property
    def positives(self) -> int:
        """Number of observed rows whose label is 1, not weighted."""
        return int(np.count_nonzero(self.positive))

    @property
    def total_weight(self) -> float:
        """Sum of the weights."""
        return float(self.rows) if self.weights is None else float(self.weights.sum())

    def weighted_sum(self, values: NDArray[np.float64]) -> float:
        """Sums a column with the weights.

        Args:
            values: (B,) one value per observed row.

        Returns:
            The sum.
        """
        return float(values.sum() if self.weights is None else values @ self.weights)

    @property
    def positive_weight(self) -> float:
        """Sum of the weights of the positive rows."""
        if self.weights is None:
            return float(self.positives)
        return float(self.weights[self.positive].sum())

    @property
    def has_both_classes(self) -> bool:
        """Whether positives and negatives both carry weight."""
        if self.weights is None:
            return 0 < self.positives < self.rows
        return bool(np.any(self.weights[self.positive] > 0)) and bool(
            np.any(self.weights[~self.positive] > 0)
        )


def observed_rows(
    labels: ArrayLike,
    predicted: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    probabilities: bool = True,
) -> EvaluatedRows:
    """Checks the columns of one task and keeps the rows whose label was observed.

    Predictions and weights are checked on every row, also where the label is NaN: a model that
    answers NaN there is as broken as one that does so elsewhere.

    Args:
        labels: (B,) of 0, 1 or NaN; NaN means that the label was not observed.
        predicted: (B,) probabilities, or scores whose order alone matters.
        weights: (B,) finite and not negative; None for 1 everywhere.
        groups: (B,) of any type that NumPy can sort; None when there are no groups.
        probabilities: Whether ``predicted`` must lie in [0, 1]; otherwise only NaN is refused.

    Returns:
        The observed rows and the number of those left out.

    Raises:
        DataError: A column is not one-dimensional or not as long as the labels, or holds a value
            outside its range; the message names the first position and the value.
    """
    label = number_column("labels", labels)
    score = number_column("predictions", predicted, size=label.size)
    weight = None if weights is None else number_column("weights", weights, size=label.size)
    group = None if groups is None else np.asarray(groups)
    if group is not None and group.shape != label.shape:
        raise DataError(
            f"groups: must have the shape of the labels {label.shape}, got {group.shape}. "
            "Pass one group per row."
        )
    missing = np.isnan(label)
    refuse("labels", "0, 1 or NaN (not observed)", label, ~((label == 0) | (label == 1) | missing))
    if probabilities:
        # The negation also catches NaN, which compares false with everything.
        refuse("probabilities", "in [0, 1]", score, ~((score >= 0) & (score <= 1)))
    else:
        refuse("scores", "numbers, not NaN", score, np.isnan(score))
    if weight is not None:
        refuse("weights", "finite and not negative", weight, ~((weight >= 0) & (weight < np.inf)))
    unobserved = int(np.count_nonzero(missing))
    if unobserved:
        seen = ~missing
        label, score = label[seen], score[seen]
        weight = None if weight is None else weight[seen]
        group = None if group is None else group[seen]
    return EvaluatedRows(
        positive=label == 1, predicted=score, weights=weight, groups=group, unobserved=unobserved
    )


def require_weight(rows: EvaluatedRows) -> None:
    """Refuses rows of which none counts; a single batch may be such, a whole split may not.

    Args:
        rows: The observed rows.

    Raises:
        DataError: There are rows, and the weight of each is 0.
    """
    if rows.weights is not None and rows.rows and not rows.weights.any():
        raise DataError(
            f"weights: must have a positive sum, got 0 over {rows.rows} observed rows. "
            "Leave the weights out, or drop the task."
        )


def require_both_classes(rows: EvaluatedRows, metric: str) -> None:
    """Refuses rows on which a metric that compares positives with negatives has no value.

    Args:
        rows: The observed rows.
        metric: Name of the metric, for the message.

    Raises:
        DataError: Positives or negatives are missing, or carry no weight.
    """
    if not rows.has_both_classes:
        raise DataError(
            f"{metric}: labels must hold both classes, got {rows.positives} positives in "
            f"{rows.rows} observed rows. Evaluate on more rows, or use evaluate_task, which "
            "answers nan there."
        )


def number_column(
    name: str, values: ArrayLike, *, size: int | None = None, like: str = "labels"
) -> NDArray[np.float64]:
    """Checks that a column is one-dimensional and of numbers.

    Args:
        name: Name of the column, for the message.
        values: The column.
        size: How long it must be; None for any length.
        like: Name of the columns that are this long, for the message.

    Returns:
        The column as float64, not copied where it is that already.

    Raises:
        DataError: It holds something else than numbers, or has another shape.
    """
    column = np.asarray(values)
    if column.dtype.kind not in "biuf":
        raise DataError(
            f"{name}: must be numbers, got dtype {column.dtype}. Convert the column first."
        )
    if column.ndim != 1 or (size is not None and column.size != size):
        wanted = "one-dimensional" if size is None else f"of shape ({size},) as the {like} are"
        raise DataError(
            f"{name}: must be {wanted}, got shape {column.shape}. Pass one value per row."
        )
    return column.astype(np.float64, copy=False)


def refuse(name: str, rule: str, values: NDArray[np.float64], broken: NDArray[np.bool_]) -> None:
    """Refuses a column if any of its values breaks a rule.

    Args:
        name: Name of the column, for the message.
        rule: What its values must be, in words.
        values: The column.
        broken: Which values break the rule.

    Raises:
        DataError: Some do; the message has the first position, its value and their number.
    """
    if broken.any():
        position = int(np.argmax(broken))
        raise DataError(
            f"{name}: must be {rule}, got {values[position].item()!r} at position {position} "
            f"({np.count_nonzero(broken)} such rows). Check where the column was made."
        )
