"""How much of a request's total value is kept: one request's arrays in, one number out."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Measure = Callable[[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]], float]
"""How good it is to keep some of a request's candidates, given three columns (n,): their total
values, whether they are golden, whether they are kept. NaN: the request cannot tell."""


def golden_recall(
    values: NDArray[np.float64], golden: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> float:
    """Share of the golden ads that are kept: hard ads recall."""
    del values
    count = int(golden.sum())
    return float((golden & kept).sum()) / count if count else float("nan")


def soft_recall(
    values: NDArray[np.float64], golden: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> float:
    """Total value of what is kept over that of as many ads, chosen best.

    Unlike :func:`value_kept` it minds every ad that is kept, not the best of them alone. A negative
    value counts as 0, since the auction would leave the slot empty.

    Source:
        Wang et al., Towards the Better Ranking Consistency, AdKDD 2023, section 3.3, as a reader's
        notes give it.

    Differs from the source:
        Negative values, for which the notes say nothing.
    """
    del golden
    worth = np.maximum(values, 0.0)
    count = int(kept.sum())
    best = _sum_of_best(worth, count)
    return _sum_of_best(worth[kept], count) / best if best > 0 else float("nan")


def value_kept(
    values: NDArray[np.float64], golden: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> float:
    """Best total value that as many kept ads as there are golden ones reach, over that of these.

    What perfect later stages could still show. It is 1 where the golden ads are kept, and never
    more. A negative value counts as 0, since the auction would leave the slot empty.
    """
    worth = np.maximum(values, 0.0)
    count = int(golden.sum())
    best = _sum_of_best(worth[golden], count)
    return _sum_of_best(worth[kept], count) / best if best > 0 else float("nan")


def top_regret(
    values: NDArray[np.float64], golden: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> float:
    """Share of the best ad's total value that is lost with what is not kept."""
    del golden
    best = float(values.max(initial=0.0))
    return 1.0 - float(values[kept].max(initial=0.0)) / best if best > 0 else float("nan")


DEFAULT_MEASURES: Mapping[str, Measure] = {
    "recall": golden_recall,
    "soft_recall": soft_recall,
    "value_kept": value_kept,
    "regret": top_regret,
}


def _sum_of_best(worth: NDArray[np.float64], count: int) -> float:
    # Of one length and order, so that rounding never makes a part more than the whole.
    best = np.zeros(count)
    found = np.sort(worth)[::-1][:count]
    best[: len(found)] = found
    return float(best.sum())
