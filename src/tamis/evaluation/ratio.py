"""The ratio of two sums over independent units, with its uncertainty.

A click rate is clicks over impressions, a self-normalised estimate is weighted rewards over
weights, and a mean is a sum over a count. They share one error formula and one bootstrap.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.bootstrap import poisson_copies, unit_codes
from tamis.evaluation.rows import number_column, refuse
from tamis.evaluation.significance import known, require_confidence, student_quantile


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number found from a sample, with its interval."""

    value: float
    """The estimate."""
    standard_error: float
    """Standard deviation of the estimate over repetitions of the sample; nan where the sample does
    not tell it, as are the ends of the interval then."""
    lower: float
    """Lower end of the interval."""
    upper: float
    """Upper end of the interval."""
    confidence: float
    """Coverage of the interval, in (0, 1)."""
    method: str
    """How the interval was found."""
    units: int
    """Independent units: rows, requests or users."""
    replicates: int
    """Bootstrap replicates used; 0 where none were drawn."""

    @property
    def has_spread(self) -> bool:
        """Whether units differ by more than the rounding of float64, of relative size 1e-16."""
        return self.standard_error > 1e-12 * abs(self.value)

    def to_json(self) -> dict[str, float | int | str | None]:
        """Writes the estimate for strict JSON.

        Returns:
            All fields; None stands for nan.
        """
        return {
            "value": self.value,
            "standard_error": known(self.standard_error),
            "lower": known(self.lower),
            "upper": known(self.upper),
            "confidence": self.confidence,
            "method": self.method,
            "units": self.units,
            "replicates": self.replicates,
        }


def ratio_of_sums(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    seed: int | None = None,
    replicates: int = 1000,
) -> Estimate:
    """Estimates sum(numerator) / sum(denominator) with whole units as the sample.

    With r = sum(N) / sum(D), the residual of a unit is e = N - r D, summed over its rows, and the
    standard error is ``sqrt(G / (G - 1) * sum(e ** 2)) / abs(sum(D))`` for G units. For D = 1 this
    is the usual error of a mean. Without ``seed`` the interval is that of Student's t; with it, the
    percentiles of a Poisson bootstrap of units, which follows skewed sums better.

    Args:
        numerator: (B,) finite numbers.
        denominator: (B,) finite numbers with a positive sum.
        groups: (B,) unit of each row, such as its user; None makes every row a unit.
        confidence: Coverage of the interval, in (0, 1).
        seed: Seed of the bootstrap, at least 0; None for the t interval.
        replicates: Bootstrap replicates, at least 100.

    Returns:
        The ratio with its interval.

    Raises:
        DataError: A value has no meaning, there are fewer than two units, or over 1 % of the
            replicates have a denominator of 0.

    Source:
        Cochran, Sampling Techniques, 3rd edition 1977, equation 6.13 (ratio estimator); Poisson
        bootstrap as in :func:`tamis.evaluation.bootstrap.paired_bootstrap`.

    Differs from the source:
        No correction for a finite population. Units that are all alike have an error of 0, which
        only says that none was seen.

    Example:
        >>> estimate = ratio_of_sums([1, 0, 1], [2, 2, 4])
        >>> estimate.value, round(estimate.standard_error, 4)
        (0.25, 0.1083)
    """
    require_confidence("ratio_of_sums", confidence)
    top, bottom = number_column("numerator", numerator), number_column("denominator", denominator)
    for name, column in (("numerator", top), ("denominator", bottom)):
        refuse(name, "finite", column, ~np.isfinite(column))
    group = None if groups is None else np.asarray(groups)
    if top.shape != bottom.shape or (group is not None and group.shape != top.shape):
        shapes = (top.shape, bottom.shape, None if group is None else group.shape)
        raise DataError(
            f"ratio_of_sums: numerator, denominator and groups must have one shape, got {shapes}. "
            "Pass one value per row."
        )
    unit = unit_codes(group, top.size)
    # The type checker takes every bincount for counts; the cast changes nothing.
    sums = np.stack([np.bincount(unit, weights=column) for column in (top, bottom)], axis=1).astype(
        np.float64, copy=False
    )
    units = sums.shape[0]
    total = sums.sum(axis=0)
    if units < 2 or not total[1] > 0.0:
        raise DataError(
            "ratio_of_sums: there must be at least two units and a positive sum of denominators, "
            f"got {units} and {float(total[1])!r}. Use more rows."
        )
    value = float(total[0] / total[1])
    if seed is None:
        residual = sums[:, 0] - value * sums[:, 1]
        error = math.sqrt(units / (units - 1) * float(residual @ residual)) / float(total[1])
        half = student_quantile(confidence, units - 1) * error
        lower, upper, method, used = value - half, value + half, "Student's t", 0
    else:
        drawn = _replicated_ratios(sums, seed, replicates)
        tail = (1.0 - confidence) / 2.0
        error = float(drawn.std(ddof=1))
        lower, upper = (float(end) for end in np.quantile(drawn, [tail, 1.0 - tail]))
        method, used = "Poisson bootstrap", drawn.size
    return Estimate(
        value=value,
        standard_error=error,
        lower=lower,
        upper=upper,
        confidence=confidence,
        method=method,
        units=units,
        replicates=used,
    )


def _replicated_ratios(
    sums: NDArray[np.float64], seed: int, replicates: int
) -> NDArray[np.float64]:
    if replicates < 100 or seed < 0:
        raise DataError(
            "ratio_of_sums: replicates must be at least 100 and seed at least 0, got "
            f"{replicates!r} and {seed!r}. Use 1000 replicates for a 95 % interval."
        )
    drawn = np.empty((replicates, 2))
    for start, copies in poisson_copies(sums.shape[0], replicates, np.random.default_rng(seed)):
        drawn[start : start + len(copies)] = copies @ sums
    defined = drawn[drawn[:, 1] > 0.0]
    if len(defined) < 0.99 * replicates:
        raise DataError(
            "ratio_of_sums: at most 1 % of the replicates may have no positive denominator, got "
            f"{replicates - len(defined)} of {replicates}. Use more units."
        )
    ratios: NDArray[np.float64] = defined[:, 0] / defined[:, 1]
    return ratios
