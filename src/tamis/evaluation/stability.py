"""Whether scores are still spread as they were: the population stability index."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError

_HALF_A_ROW = 0.5
"""Added to every bin of both sides: an empty bin is then rare, and not infinitely far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StabilityIndex:
    """How far one spread is from another, beside what chance alone makes of it."""

    value: float
    """The index, nats. 0: the same shares in every bin."""
    expected: float
    """Its mean where nothing has shifted and rows are independent. Rows that come in groups, such
    as ads of one answer, make it larger."""
    reference_rows: int
    """Rows of the reference."""
    rows: int
    """Rows that were compared with it."""


def stability_index(reference: ArrayLike, current: ArrayLike) -> StabilityIndex:
    """Compares two histograms over the same K bins.

    With shares p of the reference and q of the current rows the index is the sum over the bins of
    ``(q - p) log(q / p)``, the two relative entropies added up. Of n and m independent rows
    without any shift it is about ``(1 / n + 1 / m)`` times a chi-squared number of K - 1 degrees of
    freedom, whose mean is given beside it: an index is read against that, since the usual
    thresholds of 0.1 and 0.25 know nothing of the number of rows.

    Args:
        reference: (K,) rows in each bin, K at least 2.
        current: (K,) rows in each bin.

    Returns:
        The index.

    Raises:
        DataError: The bins differ, a count has no meaning, or one side has no rows.

    Source:
        Siddiqi, Credit Risk Scorecards, 2006; Yurdakul, Statistical Properties of Population
        Stability Index, Western Michigan University 2018, for its spread without a shift.

    Differs from the source:
        Half a row is added to every bin, so that empty bins have an answer.

    Example:
        >>> found = stability_index([49.5, 49.5], [74.5, 24.5])
        >>> round(found.value, 4), round(found.expected, 4)
        (0.2747, 0.0202)
    """
    before, now = (_counts(name, c) for name, c in (("reference", reference), ("current", current)))
    if before.shape != now.shape or before.size < 2:
        raise DataError(
            f"stability_index: both must have the same bins, two at least, got {before.size} and "
            f"{now.size}. Cut both at the same edges."
        )
    p, q = (side + _HALF_A_ROW for side in (before, now))
    p, q = p / p.sum(), q / q.sum()
    rows, reference_rows = float(now.sum()), float(before.sum())
    return StabilityIndex(
        value=float(((q - p) * np.log(q / p)).sum()),
        expected=(before.size - 1) * (1.0 / reference_rows + 1.0 / rows),
        reference_rows=math.floor(reference_rows),
        rows=math.floor(rows),
    )


def _counts(name: str, values: ArrayLike) -> NDArray[np.float64]:
    counts = np.asarray(values, np.float64)
    if counts.ndim != 1 or not np.all((counts >= 0) & (counts < np.inf)) or not counts.sum() > 0:
        raise DataError(
            f"stability_index: {name} must be counts of at least one row, got {counts.tolist()!r}. "
            "Wait for rows."
        )
    return counts
