"""Permutation importance: what a model loses when one column is shuffled. Knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.loss import normalised_entropy


class PredictShuffled(Protocol):
    """Predicts all rows with one column taken from other rows."""

    def __call__(self, column: str, order: NDArray[np.int64]) -> ArrayLike:
        """Predicts row i with ``column`` read from row ``order[i]`` and all else from row i.

        Args:
            column: Name of the column.
            order: (B,) a permutation of the rows.

        Returns:
            (B,) probabilities.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnImportance:
    """Rise of the NE when a column says nothing any more."""

    column: str
    """Name of the column."""
    ne_increase: float
    """Mean over shuffles of the NE with the column shuffled, minus the NE without."""
    sd: float
    """Standard deviation over shuffles; nan for one."""
    shuffles: int
    """Number of shuffles."""


def permutation_importance(
    predict: PredictShuffled,
    labels: ArrayLike,
    probabilities: ArrayLike,
    columns: Sequence[str],
    *,
    seed: int,
    weights: ArrayLike | None = None,
    shuffles: int = 3,
) -> tuple[ColumnImportance, ...]:
    """Measures how much a trained model relies on each column.

    Columns that say the same share their importance: shuffling one leaves the other. Every column
    sees the same permutations, so their differences are not those of the draw.

    Args:
        predict: Predicts with one column shuffled.
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        probabilities: (B,) predictions with nothing shuffled.
        columns: Names to try.
        seed: Seed of the permutations, at least 0.
        weights: (B,) finite and not negative; None for 1 everywhere.
        shuffles: Permutations per column, at least 1.

    Returns:
        One result per column, the most important first.

    Raises:
        DataError: A value has no meaning, a class is missing, or ``shuffles`` is below 1.

    Source:
        Breiman, Random Forests, Machine Learning 2001, section 10.

    Differs from the source:
        The loss is the normalised entropy, and held-out rows take the place of out-of-bag ones.
    """
    if shuffles < 1:
        raise DataError(
            f"permutation_importance: shuffles must be at least 1, got {shuffles!r}. Use 3."
        )
    whole = normalised_entropy(labels, probabilities, weights=weights).value
    rng = np.random.default_rng(seed)
    num_rows = np.asarray(labels).size
    orders = [rng.permutation(num_rows) for _ in range(shuffles)]
    results: list[ColumnImportance] = []
    for column in columns:
        rises = np.array(
            [
                normalised_entropy(labels, predict(column, order), weights=weights).value - whole
                for order in orders
            ]
        )
        results.append(
            ColumnImportance(
                column=column,
                ne_increase=float(rises.mean()),
                sd=float(rises.std(ddof=1)) if shuffles > 1 else float("nan"),
                shuffles=shuffles,
            )
        )
    return tuple(sorted(results, key=lambda result: -result.ne_increase))
