"""Looking at an experiment while it runs: intervals and p-values that hold at every look.

A 95 % interval is wrong in 5 % of the experiments if it is read once. Read every day until it
excludes 0, it is wrong far more often. The intervals here are wider and hold for all looks at once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.significance import require_confidence

LEAST_USERS = 100
"""Users with something to count in each arm before a first look: with fewer, estimates are not
normal, and false alarms come several times as often as they should."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SequentialLooks:
    """An experiment at L looks, first to last, each with what was known by then."""

    lower: NDArray[np.float64]
    """(L,) lower end of the interval; never falls."""
    upper: NDArray[np.float64]
    """(L,) upper end of the interval; never rises."""
    p_value: NDArray[np.float64]
    """(L,) p-value; never rises."""
    confidence: float
    """Chance, at least, that the true difference is inside the interval at every look."""

    @property
    def stopped_at(self) -> int | None:
        """First look, from 0, at which the experiment may end with a difference; None for none."""
        decided = self.p_value <= 1.0 - self.confidence
        return int(np.argmax(decided)) if decided.any() else None

    def to_json(self) -> dict[str, Any]:
        """Writes the looks for strict JSON.

        Returns:
            Columns by name, and the confidence.
        """
        return {
            "lower": self.lower.tolist(),
            "upper": self.upper.tolist(),
            "p_value": self.p_value.tolist(),
            "confidence": self.confidence,
        }


def may_look(is_treated: NDArray[np.bool_], denominator: NDArray[np.float64]) -> bool:
    """Whether both arms have users enough for a look.

    Args:
        is_treated: (U,) arm of each user.
        denominator: (U,) what a metric divides by; users at 0 do not count.
    """
    counted = denominator > 0.0
    return all(np.count_nonzero(counted & arm) >= LEAST_USERS for arm in (is_treated, ~is_treated))


def always_valid_looks(
    difference: ArrayLike,
    standard_error: ArrayLike,
    *,
    mixture_sd: float,
    confidence: float = 0.95,
) -> SequentialLooks:
    """Turns the differences of several looks into intervals that allow stopping at any of them.

    With estimate d, error s, mixture tau and alpha = 1 - confidence, the likelihood ratio of a
    difference drawn from N(0, tau^2) against none is

        sqrt(s^2 / (s^2 + tau^2)) * exp(d^2 tau^2 / (2 s^2 (s^2 + tau^2))).

    Without a difference it is a martingale with mean 1, so that it ever exceeds 1 / alpha with
    chance alpha at most. The p-value is its inverse, the least so far; the interval holds the
    differences that no look has refused,

        d +- sqrt(s^2 (s^2 + tau^2) / tau^2 * (log(1 + tau^2 / s^2) - 2 log(alpha))).

    Args:
        difference: (L,) difference of the arms at each look, of all data until then.
        standard_error: (L,) its standard errors, above 0.
        mixture_sd: tau, above 0: the size of difference that one hopes to see, in the unit of the
            metric. Fixed before the first look: any choice is valid, a bad one is only wider.
        confidence: Coverage over all looks, in (0, 1).

    Returns:
        Intervals and p-values of every look.

    Raises:
        DataError: A number has no meaning, or there is no look.

    Source:
        Johari, Koomen, Pekelis and Walsh, Always Valid Inference: Continuous Monitoring of A/B
        Tests, Operations Research 2022, section 4 (mixture sequential probability ratio test);
        Robbins, Statistical methods related to the law of the iterated logarithm, 1970.

    Differs from the source:
        Each look's variance is estimated and arms may be of unequal size; the estimate is taken
        for normal, and each look for one with more users. So the first look needs ``LEAST_USERS``
        of each arm, which is for the caller to see to; the chance of a false alarm is alpha in that
        limit, and further visits of users who were counted before make it approximate.
    """
    require_confidence("always_valid_looks", confidence)
    found, error = np.asarray(difference, np.float64), np.asarray(standard_error, np.float64)
    if found.ndim != 1 or found.size == 0 or error.shape != found.shape:
        raise DataError(
            "always_valid_looks: there must be one difference and one standard error per look, got "
            f"shapes {found.shape} and {error.shape}. Pass the looks in order."
        )
    if not np.isfinite(found).all() or not ((error > 0.0) & np.isfinite(error)).all():
        raise DataError(
            "always_valid_looks: differences must be finite and standard errors above 0, got "
            f"{found.tolist()!r} and {error.tolist()!r}. Start with the first look that has events."
        )
    if not (mixture_sd > 0.0 and np.isfinite(mixture_sd)):
        raise DataError(
            f"always_valid_looks: mixture_sd must be above 0 and finite, got {mixture_sd!r}. Use "
            "the smallest difference that matters."
        )
    variance, mixture = error * error, mixture_sd * mixture_sd
    widening = np.log1p(mixture / variance)
    log_ratio = 0.5 * (found * found / variance * (mixture / (variance + mixture)) - widening)
    half = np.sqrt(
        variance * (variance + mixture) / mixture * (widening - 2.0 * np.log(1.0 - confidence))
    )
    return SequentialLooks(
        lower=np.maximum.accumulate(found - half),
        upper=np.minimum.accumulate(found + half),
        # A ratio below 1 speaks against a difference: no p-value is above 1.
        p_value=np.minimum.accumulate(np.exp(-np.maximum(log_ratio, 0.0))),
        confidence=confidence,
    )
