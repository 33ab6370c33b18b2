"""The answer to "is it better?": one paired difference, and the distributions behind its p-value.

The tests themselves are next door: ``delong.py`` (AUC), ``bootstrap.py`` (NE, log loss, AUC and
grouped AUC, by user) and ``seeds.py`` (repeated training runs).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from tamis.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """Candidate minus baseline on one metric, with its uncertainty."""

    metric: str
    """Name of the metric, such as "ne" or "auc"."""
    baseline: float
    """Metric of the baseline."""
    candidate: float
    """Metric of the candidate."""
    difference: float
    """Candidate minus baseline. For NE and log loss, below 0 is better."""
    standard_error: float
    """Standard deviation of the difference over repetitions of the sample."""
    lower: float
    """Lower end of the interval of the difference."""
    upper: float
    """Upper end of the interval of the difference."""
    p_value: float
    """Two-sided: chance of a difference this large when there is none."""
    confidence: float
    """Coverage of the interval, in (0, 1)."""
    method: str
    """How the uncertainty was found."""
    units: int
    """Independent units that were compared: rows, users or seeds."""
    replicates: int
    """Bootstrap replicates used; 0 where none were drawn."""

    @property
    def relative(self) -> float:
        """Difference as a share of the baseline: the "NE diff" of papers, where 0.01 is 1 %."""
        return self.difference / self.baseline if self.baseline else float("nan")

    @property
    def is_significant(self) -> bool:
        """Whether the p-value is below one minus the confidence."""
        return self.p_value < 1.0 - self.confidence

    def to_json(self) -> dict[str, str | float | int | bool | None]:
        """Writes the difference for strict JSON.

        Returns:
            All fields with ``relative`` and ``is_significant``; None stands for nan.
        """
        return {
            "metric": self.metric,
            "baseline": self.baseline,
            "candidate": self.candidate,
            "difference": self.difference,
            "relative": known(self.relative),
            "standard_error": self.standard_error,
            "lower": self.lower,
            "upper": self.upper,
            "p_value": self.p_value,
            "is_significant": self.is_significant,
            "confidence": self.confidence,
            "method": self.method,
            "units": self.units,
            "replicates": self.replicates,
        }


def known(number: float) -> float | None:
    """A number as strict JSON holds it: None for nan, which it cannot."""
    return None if math.isnan(number) else number


def require_confidence(where: str, confidence: float) -> None:
    """Refuses a coverage that is none.

    Args:
        where: Name of the caller, for the message.
        confidence: Coverage of an interval.

    Raises:
        DataError: It is not strictly between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise DataError(
            f"{where}: confidence must lie strictly between 0 and 1, got {confidence!r}. "
            "Use 0.95 for 95 %."
        )


def normal_quantile(confidence: float) -> float:
    """Half-width of a two-sided normal interval in standard errors.

    Args:
        confidence: Coverage, in (0, 1).

    Returns:
        1.96 for 0.95.
    """
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)


def normal_p_value(difference: float, standard_error: float) -> float:
    """Two-sided p-value of a normal test.

    Args:
        difference: The estimate.
        standard_error: Its standard error; 0 means that it cannot vary.

    Returns:
        A number in [0, 1]; without variation 1 for no difference and 0 for any.
    """
    if standard_error == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    return math.erfc(abs(difference) / standard_error / math.sqrt(2.0))


def student_p_value(statistic: float, degrees: int) -> float:
    """Two-sided p-value of Student's t.

    Args:
        statistic: The t value.
        degrees: Degrees of freedom, at least 1.

    Returns:
        Chance of a value at least as far from 0, in [0, 1].
    """
    if math.isinf(statistic):
        return 0.0
    square = statistic * statistic
    total = degrees + square
    return _incomplete_beta(degrees / 2.0, 0.5, degrees / total, square / total)


def student_quantile(confidence: float, degrees: int) -> float:
    """Half-width of a two-sided t interval in standard errors.

    Args:
        confidence: Coverage, in (0, 1).
        degrees: Degrees of freedom, at least 1.

    Returns:
        The t value whose two-sided p-value is ``1 - confidence``.
    """
    tail = 1.0 - confidence
    low, high = 0.0, 1.0
    while student_p_value(high, degrees) > tail:
        low, high = high, 2.0 * high
    # Halving until the two floats touch: exact to the last digits, and never asked in a loop.
    while (middle := 0.5 * (low + high)) not in (low, high):
        if student_p_value(middle, degrees) > tail:
            low = middle
        else:
            high = middle
    return high


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Regularised incomplete beta function I_x(a, b), given also ``rest`` = 1 - x unrounded."""
    if x <= 0.0 or rest <= 0.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        # The fraction converges fast only below this point; the mirror image lies there.
        return 1.0 - _incomplete_beta(b, a, rest, x)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    )
    return math.exp(log_front) / (a * _beta_fraction(a, b, x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction 1 + d1/(1 + d2/(1 + ...)) of DLMF 8.17.22, by Lentz's method."""
    tiny = 1e-300
    value = 1.0
    forward, backward = 1.0, 0.0
    for step in range(1, 10_000):
        m, is_odd = divmod(step, 2)
        if is_odd:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        backward = 1.0 / ((1.0 + term * backward) or tiny)
        forward = (1.0 + term / forward) or tiny
        change = forward * backward
        value *= change
        if abs(change - 1.0) < 1e-16:
            break
    return value
