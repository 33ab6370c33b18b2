"""Repeated training: mean and spread over seeds, and whether one recipe beats another."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.significance import (
    PairedDifference,
    require_confidence,
    student_p_value,
    student_quantile,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedSummary:
    """A metric over seeds."""

    mean: float
    """Mean over seeds."""
    sd: float
    """Standard deviation over seeds (n - 1); nan for one seed."""
    lower: float
    """Lower end of the t interval of the mean; nan for one seed."""
    upper: float
    """Upper end of the t interval of the mean; nan for one seed."""
    seeds: int
    """Number of seeds."""


def summarise_seeds(values: ArrayLike, *, confidence: float = 0.95) -> SeedSummary:
    """Mean and spread of a metric over training seeds.

    Args:
        values: (seeds,) the metric of each run.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        The summary; one seed has a mean but no spread.

    Raises:
        DataError: There is no value, one is not finite, or the confidence is out of range.
    """
    require_confidence("summarise_seeds", confidence)
    runs = _finite("summarise_seeds", values, at_least=1)
    mean = float(runs.mean())
    if runs.size == 1:
        nan = float("nan")
        return SeedSummary(mean=mean, sd=nan, lower=nan, upper=nan, seeds=1)
    sd = float(runs.std(ddof=1))
    half = student_quantile(confidence, runs.size - 1) * sd / math.sqrt(runs.size)
    return SeedSummary(mean=mean, sd=sd, lower=mean - half, upper=mean + half, seeds=runs.size)


def paired_t_test(
    metric: str, baseline: ArrayLike, candidate: ArrayLike, *, confidence: float = 0.95
) -> PairedDifference:
    """Paired t-test of two recipes trained with the same seeds on the same split.

    It covers the luck of initialisation and shuffling, not that of the test rows: for that, see
    :func:`tamis.evaluation.bootstrap.paired_bootstrap`.

    Args:
        metric: Name of the metric, for the result.
        baseline: (seeds,) the metric of the baseline, one per seed.
        candidate: (seeds,) the metric of the candidate, in the same order of seeds.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        The mean difference with its t interval. If all differences are equal, the p-value is 1
        for no difference and 0 for any.

    Raises:
        DataError: There are fewer than two pairs, unequal numbers, or a value is not finite.
    """
    require_confidence("paired_t_test", confidence)
    before = _finite("paired_t_test", baseline, at_least=2)
    after = _finite("paired_t_test", candidate, at_least=2)
    if before.size != after.size:
        raise DataError(
            f"paired_t_test: baseline and candidate must have one value per seed, got "
            f"{before.size} and {after.size}. Train the missing seeds."
        )
    change = after - before
    mean = float(change.mean())
    error = float(change.std(ddof=1)) / math.sqrt(change.size)
    if error > 0.0:
        p_value = student_p_value(mean / error, change.size - 1)
    else:
        p_value = 1.0 if mean == 0.0 else 0.0
    half = student_quantile(confidence, change.size - 1) * error
    return PairedDifference(
        metric=metric,
        baseline=float(before.mean()),
        candidate=float(after.mean()),
        difference=mean,
        standard_error=error,
        lower=mean - half,
        upper=mean + half,
        p_value=p_value,
        confidence=confidence,
        method="paired t-test over seeds",
        units=change.size,
        replicates=0,
    )


def _finite(where: str, values: ArrayLike, *, at_least: int) -> NDArray[np.float64]:
    runs = np.asarray(values, dtype=np.float64)
    if runs.ndim != 1 or runs.size < at_least:
        raise DataError(
            f"{where}: there must be at least {at_least} values in one dimension, got shape "
            f"{runs.shape}. Pass one value per seed."
        )
    if not np.isfinite(runs).all():
        position = int(np.argmin(np.isfinite(runs)))
        raise DataError(
            f"{where}: values must be finite, got {runs[position].item()!r} at position "
            f"{position}. Leave failed runs out of both sides."
        )
    return runs
