"""An A/B test of two policies on one live market: users are split, and every day is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from tamis.data.hashing import hash_integers
from tamis.data.market import (
    JudgedCandidates,
    LiveMarket,
    LiveRequests,
    Policy,
    ServedHour,
    Slates,
    merge_slates,
)
from tamis.data.market.tables import HOUR_MICROS
from tamis.errors import ConfigError, DataError
from tamis.evaluation.experiment import (
    ArmDifference,
    ExperimentMetric,
    ExperimentResult,
    UserTotals,
    arm_difference,
    compare_arms,
    sample_ratio,
)
from tamis.evaluation.ratio import ratio_of_sums
from tamis.evaluation.sequential import SequentialLooks, always_valid_looks, may_look
from tamis.evaluation.stages import StageLosses
from tamis.funnel.ads import AdTable, Valuation
from tamis.funnel.live import true_losses
from tamis.funnel.outcomes import Outcomes, outcomes


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitByUser:
    """Which users see the treatment: those whose hash with a salt falls into its share."""

    salt: int
    """Another salt splits the users anew, independently of any other. At least 0."""
    treated_share: float = 0.5
    """Share of the users that see the treatment, in (0, 1)."""

    def __post_init__(self) -> None:
        if self.salt < 0 or not 0 < self.treated_share < 1:
            raise ConfigError(
                f"SplitByUser: salt must be at least 0 and treated_share in (0, 1), got salt="
                f"{self.salt}, treated_share={self.treated_share}."
            )

    def is_treated(self, user: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each of the users (n,) sees the treatment."""
        # The upper 53 bits are what a float64 in [0, 1) holds exactly.
        uniform = (hash_integers(user, seed=self.salt) >> np.uint64(11)) * 2.0**-53
        treated: NDArray[np.bool_] = uniform < self.treated_share
        return treated


class SplitPolicy:
    """Two policies behind one: each answers the requests of its own users."""

    def __init__(self, control: Policy, treatment: Policy, split: SplitByUser) -> None:
        """Take both policies and who sees which."""
        self._control, self._treatment, self._split = control, treatment, split

    def __call__(self, requests: LiveRequests) -> Slates:
        """The answers of both."""
        is_treated = self._split.is_treated(requests.user)
        parts = []
        for policy, mine in ((self._control, ~is_treated), (self._treatment, is_treated)):
            rows = np.flatnonzero(mine)
            if len(rows):
                parts.append((rows, policy(requests.take(rows))))
        return merge_slates(parts, requests)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GuardedMetric:
    """One metric at the daily looks, safe to read at each of them."""

    days: NDArray[np.int64]
    """(L,) days since the start of the test at each look; days on which the difference has no error
    yet are left out, such as those before an event in both arms."""
    looks: SequentialLooks
    """Intervals and p-values of treatment minus control."""

    @property
    def stopped_on(self) -> int | None:
        """Day after which the test could have been stopped with a difference; None for none."""
        at = self.looks.stopped_at
        return None if at is None else int(self.days[at])

    def to_json(self) -> dict[str, Any]:
        """The looks by column, with ``stopped_on``."""
        return {
            "days": self.days.tolist(),
            **self.looks.to_json(),
            "stopped_on": self.stopped_on,
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AbTest:
    """An A/B test at its end."""

    result: ExperimentResult
    """The split of the users that came, and the four metrics over all assigned ones. Conversions
    are those within the window of attribution, and all of them have been waited for."""
    value_per_request: ArmDifference
    """Total value per request over all assigned users, with users as units. Who comes how often
    adds noise to the value per user, not to this."""
    guarded: Mapping[ExperimentMetric, GuardedMetric | None]
    """The metrics that were looked at daily; None where the difference had an error on no day. Only
    conversions known at the look count. Value is per user and day here, so that a longer test has
    no larger difference to find."""
    control_losses: StageLosses | None
    """What the control's stages truly lost; None where none of its requests were judged, such as
    those of a policy that tells no candidates beside one that does."""
    treatment_losses: StageLosses | None
    """The same of the treatment."""

    def to_json(self, *, seed: int = 0) -> dict[str, Any]:
        """The test for strict JSON; None stands for what is not known.

        Args:
            seed: Of the bootstrap over requests that the intervals of the losses come from.

        Returns:
            The split; by metric the differences of the arms, value per request among them; by
            metric the looks; by arm what its stages lost, request by request on average, where
            enough requests were judged.
        """
        differences = (*self.result.differences, self.value_per_request)
        confidence = self.value_per_request.confidence
        return {
            "sample_ratio": self.result.sample_ratio.to_json(),
            "differences": {found.metric: found.to_json() for found in differences},
            "guarded": {
                metric: None if found is None else found.to_json()
                for metric, found in self.guarded.items()
            },
            "losses": {
                arm: None if losses is None else _losses_to_json(losses, seed, confidence)
                for arm, losses in (
                    ("control", self.control_losses),
                    ("treatment", self.treatment_losses),
                )
            },
        }


def run_ab_test(
    market: LiveMarket,
    control: Policy,
    treatment: Policy,
    *,
    days: int,
    split: SplitByUser,
    value: Valuation,
    ads: AdTable,
    smallest: Mapping[ExperimentMetric, float],
    attribution_hours: float = 48.0,
    confidence: float = 0.95,
) -> AbTest:
    """Serve a market by two policies and compare them.

    Both arms live in one market: counters of ads, such as click rates, are of all users, so an arm
    learns from what the other explores, as in a real test.

    Args:
        market: Goes on from its next hour; the looks are at the end of every 24 hours.
        control: Answers the users that are not treated.
        treatment: Answers the others.
        days: Length of the test.
        split: Who is treated.
        value: Total value, by ``click``, ``conversion`` and ``hide``.
        ads: Attributes of all ads of the market, by ``ad_id``.
        smallest: The metrics to guard, each with the smallest difference that matters, in its
            unit; value per user and day. Fixed beforehand; see ``mixture_sd`` of
            :func:`tamis.evaluation.sequential.always_valid_looks`.
        attribution_hours: A conversion counts in the conversion rate if it follows its click within
            so many hours, and a click is settled once they are over. Above 0. Total value counts
            conversions whenever they come.
        confidence: Coverage of the intervals, in (0, 1).

    Raises:
        ConfigError: ``attribution_hours`` or a smallest difference is not above 0, or there is no
            such metric.
        DataError: The market has fewer days left, an answer cannot be shown, or an arm has no
            events.
    """
    if not attribution_hours > 0:
        raise ConfigError(f"attribution_hours: must be above 0, got {attribution_hours}.")
    for metric, least in smallest.items():
        if metric not in get_args(ExperimentMetric) or not least > 0:
            raise ConfigError(
                f"smallest: must give a number above 0 for metrics of "
                f"{get_args(ExperimentMetric)}, got {least} for {metric!r}."
            )
    market.require_days(days)
    is_treated = split.is_treated(np.arange(market.num_users))
    policy = SplitPolicy(control, treatment, split)
    found: list[Outcomes] = []
    requests = np.zeros(market.num_users)
    judged: list[JudgedCandidates] = []
    at_looks: list[UserTotals] = []
    for _ in range(days):
        hours = list(market.serve(policy, days=1))
        found += [outcomes(hours)] if hours else []
        for hour in hours:
            requests += np.bincount(hour.user, minlength=market.num_users)
            judged += hour.candidates
        at_looks.append(
            totals_by_user(
                found,
                is_treated,
                ads=ads,
                value=value,
                attribution_hours=attribution_hours,
                now_micros=market.now_micros,
            )
        )
    final = totals_by_user(
        found, is_treated, ads=ads, value=value, attribution_hours=attribution_hours
    )
    control_losses, treatment_losses = (
        _losses([part.take(split.is_treated(part.user) == arm) for part in judged], ads, value)
        for arm in (False, True)
    )
    compared = compare_arms(final, treated_share=split.treated_share, confidence=confidence)
    # Who is assigned follows from the split alone; who came tells whether an arm lost some.
    came = np.bincount(is_treated[requests > 0], minlength=2)
    return AbTest(
        result=replace(
            compared,
            sample_ratio=sample_ratio(
                int(came[0]), int(came[1]), treated_share=split.treated_share
            ),
        ),
        value_per_request=arm_difference(
            "value_per_request", is_treated, final.value, requests, confidence=confidence
        ),
        guarded={
            metric: guard(at_looks, metric, smallest=least, confidence=confidence)
            for metric, least in smallest.items()
        },
        control_losses=control_losses,
        treatment_losses=treatment_losses,
    )


def smallest_differences(
    before: list[ServedHour],
    market: LiveMarket,
    ads: AdTable,
    value: Valuation,
    *,
    days: int,
    share: float,
) -> dict[ExperimentMetric, float]:
    """The smallest differences that matter, fixed by the days before a test.

    Args:
        before: Hours of these days; a conversion that has not come yet does not count.
        market: Stands at the end of them, where the test begins.
        ads: Attributes of all ads of the market, by ``ad_id``.
        value: Total value.
        days: How many days they are.
        share: What matters, as a share of each metric on these days. Above 0.

    Returns:
        For :func:`run_ab_test`; metrics that had no event are left out.
    """
    found, now = outcomes(before), market.now_micros
    clicks = int(np.count_nonzero(found.click))
    worth = found.total_value(ads, value, now_micros=now).sum()
    figures: dict[ExperimentMetric, float] = {
        "click_rate": clicks / len(found),
        "conversion_rate": np.count_nonzero(found.converted(now_micros=now)) / max(clicks, 1),
        "hide_rate": np.count_nonzero(found.hide) / len(found),
        "value_per_user": worth / (market.num_users * days),
    }
    return {metric: float(share * figure) for metric, figure in figures.items() if figure > 0}


def totals_by_user(
    found: list[Outcomes],
    is_treated: NDArray[np.bool_],
    *,
    ads: AdTable,
    value: Valuation,
    attribution_hours: float,
    now_micros: int | None = None,
) -> UserTotals:
    """Sums of every assigned user, zeros for those who never came.

    Args:
        found: Impressions of the test so far.
        is_treated: (U,) arm of each user.
        ads: Attributes of all ads, by ``ad_id``.
        value: Total value.
        attribution_hours: Within which a conversion counts in its rate.
        now_micros: What is known then; None: everything that ever comes.
    """
    window = round(attribution_hours * HOUR_MICROS)
    sums = np.zeros((6, len(is_treated)))
    for part in found:
        by_end = part.time_micros + window
        is_settled = part.click & (True if now_micros is None else by_end <= now_micros)
        columns = (
            np.ones(len(part)),
            part.click,
            is_settled,
            is_settled & (part.conversion_micros < by_end),
            part.hide,
            part.total_value(ads, value, now_micros=now_micros),
        )
        sums += [
            np.bincount(part.user, weights=column, minlength=len(is_treated)) for column in columns
        ]
    impressions, clicks, settled, conversions, hides, worth = sums
    return UserTotals(
        is_treated=is_treated,
        impressions=impressions,
        clicks=clicks,
        settled_clicks=settled,
        conversions=conversions,
        hides=hides,
        value=worth,
    )


def guard(
    at_looks: list[UserTotals],
    metric: ExperimentMetric,
    *,
    smallest: float,
    confidence: float = 0.95,
) -> GuardedMetric | None:
    """Always-valid intervals of one metric from the totals at the end of each day.

    Args:
        at_looks: Totals of everything up to the end of day 1, 2, ...
        metric: Which metric; value is taken per user and day.
        smallest: The smallest difference that matters; see :func:`run_ab_test`.
        confidence: Coverage over all looks, in (0, 1).

    Returns:
        The metric on the days with users enough (``may_look``) on which its difference has an
        error, as after events in both arms; None if there is no such day.
    """
    days, differences, errors = [], [], []
    for day, totals in enumerate(at_looks, start=1):
        top, bottom = totals.ratio(metric)
        if not may_look(totals.is_treated, bottom):
            continue
        per_day = day if metric == "value_per_user" else 1
        difference = arm_difference(
            metric, totals.is_treated, top / per_day, bottom, confidence=confidence
        )
        # nan with an arm without events.
        if not difference.standard_error > 0.0:
            continue
        days.append(day)
        differences.append(difference.difference)
        errors.append(difference.standard_error)
    if not days:
        return None
    return GuardedMetric(
        days=np.array(days, np.int64),
        looks=always_valid_looks(differences, errors, mixture_sd=smallest, confidence=confidence),
    )


def _losses(judged: list[JudgedCandidates], ads: AdTable, value: Valuation) -> StageLosses | None:
    some = [part for part in judged if len(part.user)]
    return true_losses(some, ads, value) if some else None


def _losses_to_json(losses: StageLosses, seed: int, confidence: float) -> dict[str, Any] | None:
    ones = np.ones(losses.died.size)
    try:
        regret = ratio_of_sums(losses.regret, ones, seed=seed, confidence=confidence)
        stages = losses.summary(seed=seed, confidence=confidence)
    except DataError:  # too few requests for an interval, on which a test of days must not end
        return None
    return {
        "requests": losses.died.size,
        "regret": regret.to_json(),
        "stages": [stage.to_json() for stage in stages],
    }
