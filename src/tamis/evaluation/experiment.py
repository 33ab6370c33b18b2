"""An A/B test of two arms: rates and value per user, the lift, and whether the split is sound.

Users are randomised, so users are the units: impressions of one user depend on each other. The
intervals hold for one look at the end; ``sequential.py`` has those that allow many looks.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.bootstrap import unit_codes
from tamis.evaluation.ratio import Estimate, ratio_of_sums
from tamis.evaluation.rows import number_column, refuse
from tamis.evaluation.sequential import always_valid_looks
from tamis.evaluation.significance import (
    known,
    normal_p_value,
    normal_quantile,
    require_confidence,
)

ExperimentMetric = Literal["click_rate", "conversion_rate", "hide_rate", "value_per_user"]
"""Clicks and hides per impression, conversions per click, total value per user."""

MISMATCH_P_VALUE = 0.001
"""A split this unlikely is taken for broken: the check runs on every experiment, and a false alarm
costs a whole one."""
_SPLIT_SHIFT = 0.01
"""How far from the plan a share of users is that a broken split has, at many looks."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UserTotals:
    """U users of an experiment. A user without impressions may stand here, with zeros."""

    is_treated: NDArray[np.bool_]
    """(U,) whether the user sees the treatment; the others see the control."""
    impressions: NDArray[np.float64]
    """(U,) impressions."""
    clicks: NDArray[np.float64]
    """(U,) clicks."""
    settled_clicks: NDArray[np.float64]
    """(U,) clicks of which it is known whether a conversion followed."""
    conversions: NDArray[np.float64]
    """(U,) conversions among these."""
    hides: NDArray[np.float64]
    """(U,) hides."""
    value: NDArray[np.float64]
    """(U,) total value."""

    def ratio(self, metric: ExperimentMetric) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Numerator (U,) and denominator (U,) of a metric, for :func:`arm_difference`."""
        ratios: dict[ExperimentMetric, tuple[NDArray[np.float64], NDArray[np.float64]]] = {
            "click_rate": (self.clicks, self.impressions),
            "conversion_rate": (self.conversions, self.settled_clicks),
            "hide_rate": (self.hides, self.impressions),
            "value_per_user": (self.value, np.ones(self.value.size)),
        }
        return ratios[metric]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmDifference:
    """Treatment minus control on one metric, with its uncertainty.

    Error and intervals are nan where the error of an arm is not known, and so are p-value and lift
    unless the arms are alike.
    """

    metric: str
    """Name of the metric."""
    control: Estimate
    """Metric of the control."""
    treatment: Estimate
    """Metric of the treatment."""
    difference: float
    """Treatment minus control."""
    standard_error: float
    """Standard deviation of the difference over repetitions of the experiment."""
    lower: float
    """Lower end of the interval of the difference."""
    upper: float
    """Upper end of the interval of the difference."""
    p_value: float
    """Two-sided: chance of a difference this large when there is none. For one look only."""
    lift: float
    """Difference over the control, where 0.01 is 1 %; nan too unless the control is above 0."""
    lift_lower: float
    """Lower end of the interval of the lift."""
    lift_upper: float
    """Upper end of the interval of the lift."""
    confidence: float
    """Coverage of the intervals, in (0, 1)."""

    @property
    def is_significant(self) -> bool:
        """Whether the p-value is known and below one minus the confidence."""
        return self.p_value < 1.0 - self.confidence

    def to_json(self) -> dict[str, Any]:
        """Writes the difference for strict JSON.

        Returns:
            All fields with ``is_significant``; None stands for nan.
        """
        return {
            "metric": self.metric,
            "control": self.control.to_json(),
            "treatment": self.treatment.to_json(),
            "difference": self.difference,
            "standard_error": known(self.standard_error),
            "lower": known(self.lower),
            "upper": known(self.upper),
            "p_value": known(self.p_value),
            "is_significant": self.is_significant,
            "lift": known(self.lift),
            "lift_lower": known(self.lift_lower),
            "lift_upper": known(self.lift_upper),
            "confidence": self.confidence,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRatio:
    """Whether users were split as planned."""

    control_users: int
    """Users of the control."""
    treated_users: int
    """Users of the treatment."""
    treated_share: float
    """Planned share of treated users."""
    p_value: float
    """Chance of a split at least this far from the plan when the split is sound."""

    @property
    def is_mismatch(self) -> bool:
        """Whether the split is too far from the plan to trust any other number."""
        return self.p_value < MISMATCH_P_VALUE

    def to_json(self) -> dict[str, Any]:
        """Writes the split for strict JSON.

        Returns:
            All fields with ``is_mismatch``.
        """
        return {
            "control_users": self.control_users,
            "treated_users": self.treated_users,
            "treated_share": self.treated_share,
            "p_value": self.p_value,
            "is_mismatch": self.is_mismatch,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentResult:
    """An experiment at its end."""

    sample_ratio: SampleRatio
    """The split. With a mismatch, the differences below may be of the users, not of the arms."""
    differences: tuple[ArmDifference, ...]
    """Click rate, conversion rate (where both arms have settled clicks), hide rate and value per
    user. Each p-value stands for itself:
    of four metrics without any effect, one in twenty each is significant at 95 %."""


def user_totals(
    user: ArrayLike,
    is_treated: ArrayLike,
    *,
    click: ArrayLike,
    conversion: ArrayLike,
    hide: ArrayLike,
    value: ArrayLike,
) -> UserTotals:
    """Adds up the impressions of each user.

    Args:
        user: (B,) user of each impression, integers or strings.
        is_treated: (B,) whether the impression was answered by the treatment; a user sees one arm.
        click: (B,) of 0 and 1.
        conversion: (B,) of 0, 1 and NaN: NaN without a click, and while a click may still convert.
        hide: (B,) of 0 and 1.
        value: (B,) total value that came of the impression.

    Returns:
        Totals of every user with an impression.

    Raises:
        DataError: A column has a wrong shape or a value without meaning, a user is in both arms,
            or an impression has a conversion without a click.
    """
    ids = np.asarray(user)
    if ids.ndim != 1 or ids.size == 0:
        raise DataError(
            f"user_totals: there must be one user per impression, got shape {ids.shape}. "
            "Pass the column of users."
        )
    arm, clicked, hidden = (
        _events(name, values, ids.size)
        for name, values in (("is_treated", is_treated), ("click", click), ("hide", hide))
    )
    worth = number_column("value", value, size=ids.size, like="users")
    refuse("value", "finite", worth, ~np.isfinite(worth))
    known = number_column("conversion", conversion, size=ids.size, like="users")
    is_settled = ~np.isnan(known) & (clicked == 1.0)
    converted = _events("conversion", np.where(np.isnan(known), 0.0, known), ids.size)
    orphan = (converted == 1.0) & (clicked == 0.0)
    if orphan.any():
        raise DataError(
            "user_totals: a conversion needs a click, got one without at position "
            f"{int(np.argmax(orphan))} ({np.count_nonzero(orphan)} such rows). Join the labels of "
            "one impression."
        )
    code = unit_codes(ids, ids.size)
    rows, treated = _sum(code, np.ones(ids.size)), _sum(code, arm)
    both = (treated > 0.0) & (treated < rows)
    if both.any():
        position = int(np.argmax(both[code]))
        raise DataError(
            f"user_totals: a user must see one arm, got user {ids.tolist()[position]!r} in both "
            f"({np.count_nonzero(both)} such users). Randomise by user, or leave them out of both "
            "arms."
        )
    return UserTotals(
        is_treated=treated > 0.0,
        impressions=rows,
        clicks=_sum(code, clicked),
        settled_clicks=_sum(code, is_settled.astype(np.float64)),
        conversions=_sum(code, converted),
        hides=_sum(code, hidden),
        value=_sum(code, worth),
    )


def compare_arms(
    totals: UserTotals, *, treated_share: float = 0.5, confidence: float = 0.95
) -> ExperimentResult:
    """Compares treatment and control on the four metrics, and checks the split first.

    Args:
        totals: Users of both arms. Where the treatment may change who comes back, all users that
            were assigned, with zeros for those who never came: else value per user compares
            different users.
        treated_share: Planned share of treated users, in (0, 1).
        confidence: Coverage of the intervals, in (0, 1).

    Returns:
        The split and the differences; without that of conversions where an arm has no settled
        click.

    Raises:
        DataError: An arm has fewer than two users, or no impression.
    """
    is_treated = totals.is_treated
    treated_users = int(np.count_nonzero(is_treated))
    arms = (is_treated, ~is_treated)
    has_settled = all(totals.settled_clicks[arm].any() for arm in arms)
    return ExperimentResult(
        sample_ratio=sample_ratio(
            is_treated.size - treated_users, treated_users, treated_share=treated_share
        ),
        differences=tuple(
            arm_difference(metric, is_treated, *totals.ratio(metric), confidence=confidence)
            for metric in get_args(ExperimentMetric)
            if has_settled or metric != "conversion_rate"
        ),
    )


def arm_difference(
    metric: str,
    is_treated: ArrayLike,
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    confidence: float = 0.95,
) -> ArmDifference:
    """Compares a ratio metric of two arms by the delta method, with users as units.

    Each arm's ratio has the error of :func:`tamis.evaluation.ratio.ratio_of_sums`. With control c
    and treatment t the difference has variance se_t^2 + se_c^2, and the lift t / c - 1 has
    (se_t / c)^2 + (t se_c / c^2)^2: the noise of the control widens it.

    An arm all of whose users have one ratio, such as a single click or no conversion at all, shows
    no error, which is not an error of 0: error and intervals of the difference are nan. Its p-value
    is nan too, unless both arms are so and alike.

    Args:
        metric: Name of the metric, for the result.
        is_treated: (U,) arm of each user.
        numerator: (U,) sum of each user, such as clicks.
        denominator: (U,) sum of each user, such as impressions; ones for a mean per user.
        confidence: Coverage of the intervals, in (0, 1).

    Returns:
        The difference and the lift.

    Raises:
        DataError: The columns do not fit, or an arm has fewer than two users or nothing to divide
            by.

    Source:
        Deng, Knoblich and Lu, Applying the Delta Method in Metric Analytics: A Practical Guide
        with Novel Ideas, KDD 2018, sections 2 and 3.

    Differs from the source:
        Variances use n - 1. Arms are independent, so there is no covariance between them.
    """
    require_confidence("arm_difference", confidence)
    arm = np.asarray(is_treated, dtype=bool)
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if arm.ndim != 1 or top.shape != arm.shape or bottom.shape != arm.shape:
        raise DataError(
            "arm_difference: is_treated, numerator and denominator must have one value per user, "
            f"got shapes {arm.shape}, {top.shape} and {bottom.shape}. Add up the rows of a user."
        )
    control, treatment = (
        _arm_ratio(metric, name, top[member], bottom[member], confidence)
        for name, member in (("control", ~arm), ("treatment", arm))
    )
    # Equal ratios of other users differ by rounding.
    is_alike = math.isclose(treatment.value, control.value, rel_tol=1e-12)
    difference = 0.0 if is_alike else treatment.value - control.value
    error = math.hypot(treatment.standard_error, control.standard_error)
    spreads = [control.has_spread, treatment.has_spread]
    is_same = is_alike and not any(spreads)
    if not all(spreads):
        error = float("nan")
    half = normal_quantile(confidence) * error
    lift = lift_half = float("nan")
    if control.value > 0.0 and (all(spreads) or is_same):
        ratio = 1.0 if is_alike else treatment.value / control.value
        lift = ratio - 1.0
        if all(spreads):
            lift_error = math.hypot(treatment.standard_error, ratio * control.standard_error)
            lift_half = normal_quantile(confidence) * lift_error / control.value
    return ArmDifference(
        metric=metric,
        control=control,
        treatment=treatment,
        difference=difference,
        standard_error=error,
        lower=difference - half,
        upper=difference + half,
        p_value=1.0 if is_same else normal_p_value(difference, error),
        lift=lift,
        lift_lower=lift - lift_half,
        lift_upper=lift + lift_half,
        confidence=confidence,
    )


def sample_ratio(
    control_users: int, treated_users: int, *, treated_share: float = 0.5, many_looks: bool = False
) -> SampleRatio:
    """Checks the split of users against the plan with a chi-squared test.

    Users that a broken treatment loses (a crash, a redirect, a filter) are missing from one arm
    only, and no comparison of those that are left is fair.

    Args:
        control_users: Users of the control.
        treated_users: Users of the treatment.
        treated_share: Planned share of treated users, in (0, 1).
        many_looks: Whether the split is looked at while users come: the p-value is then that of
            :func:`tamis.evaluation.sequential.always_valid_looks`, and holds for all looks.

    Returns:
        The split with its p-value.

    Raises:
        DataError: There are no users, a number is negative, or the share is out of range.

    Source:
        Fabijan et al., Diagnosing Sample Ratio Mismatch in Online Controlled Experiments,
        KDD 2019.

    Differs from the source:
        With two arms the chi-squared test of one degree of freedom is a normal test.
    """
    users = control_users + treated_users
    if min(control_users, treated_users) < 0 or users == 0 or not 0.0 < treated_share < 1.0:
        raise DataError(
            "sample_ratio: there must be users, and treated_share must lie strictly between 0 and "
            f"1, got {control_users!r} and {treated_users!r} users and {treated_share!r}. Count "
            "the users of both arms."
        )
    spread = math.sqrt(users * treated_share * (1.0 - treated_share))
    surplus = treated_users - users * treated_share
    p_value = normal_p_value(surplus, spread)
    if many_looks:
        looks = always_valid_looks([surplus / users], [spread / users], mixture_sd=_SPLIT_SHIFT)
        p_value = float(looks.p_value[0])
    return SampleRatio(
        control_users=control_users,
        treated_users=treated_users,
        treated_share=treated_share,
        p_value=p_value,
    )


def _arm_ratio(
    metric: str,
    arm: str,
    top: NDArray[np.float64],
    bottom: NDArray[np.float64],
    confidence: float,
) -> Estimate:
    if top.size < 2 or not bottom.sum() > 0.0:
        raise DataError(
            f"arm_difference: {arm} must have at least two users and a positive denominator of "
            f"{metric}, got {top.size} users with sum {float(bottom.sum())!r}. Wait for more data."
        )
    return ratio_of_sums(top, bottom, confidence=confidence)


def _events(name: str, values: ArrayLike, size: int) -> NDArray[np.float64]:
    column = number_column(name, values, size=size, like="users")
    refuse(name, "0 or 1", column, ~np.isin(column, (0.0, 1.0)))
    return column


def _sum(code: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    # The type checker takes every bincount for counts; the cast changes nothing.
    return np.bincount(code, weights=values).astype(np.float64, copy=False)
