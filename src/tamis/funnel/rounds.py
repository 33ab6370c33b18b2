"""Rounds of serving and retraining on one market that goes on: what a policy makes of its own log.

A policy that learns from what it showed never learns about what it did not show. Each round says
how far that went: ads that nobody ever saw, impressions that few ads share, and what it costs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.market import LiveMarket, Policy, ServedHour, known_at
from tamis.errors import ConfigError, DataError
from tamis.evaluation.ratio import Estimate, ratio_of_sums
from tamis.evaluation.stages import StageLosses
from tamis.funnel.ads import AdTable, Valuation
from tamis.funnel.live import true_losses
from tamis.funnel.outcomes import Outcomes, outcomes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KnownLog:
    """All that is known at the end of a round, from the market's first hour on; no truth."""

    log: pa.Table
    """A row for each impression, with the columns of an ordinary log, as :func:`known_at` gives it:
    conversions that have not come yet look as if they never will."""
    slates: pa.Table
    """``impression_id``, ``cost_per_click`` and ``propensity`` of the same rows; null where the
    policy did not say."""
    candidates: pa.Table
    """A row for each candidate of the judged requests: ``request_id``, ``ad_id``, ``survived``,
    ``stages``, and scores and predictions by stage and task, null where there are none."""
    ads: pa.Table
    """A row for each ad of each hour in which it lived: ``market_hour`` since the market's start,
    and the log's columns of the ad as they were then."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Round:
    """One round, judged when all that ever comes of it has come. Users are the units."""

    number: int
    """From 0, which the first policy served."""
    requests: int
    """Requests."""
    impressions: int
    """Impressions."""
    value: Estimate
    """Total value per request, money."""
    click_rate: Estimate
    """Clicks per impression."""
    conversion_rate: Estimate | None
    """Conversions per click; None where there was no click."""
    hide_rate: Estimate
    """Hides per impression."""
    losses: StageLosses | None
    """What the stages truly lost in the judged requests; None where none was judged."""
    never_shown: float
    """Share of the ads alive in the round that had no impression in any round so far."""
    not_shown: float
    """Share of the same ads without an impression in this round."""
    top_tenth_share: float
    """Share of the impressions of the tenth of these ads that was shown most; 0.1 if all ads are
    shown equally often."""

    @property
    def regret(self) -> float:
        """Mean true value of the best living ad less that of the best shown; NaN if not judged."""
        return float("nan") if self.losses is None else float(self.losses.regret.mean())

    def to_json(self) -> dict[str, Any]:
        """Fields by name, losses as the mean by stage; None stands for what is not known."""
        losses, conversions = self.losses, self.conversion_rate
        return {
            "number": self.number,
            "requests": self.requests,
            "impressions": self.impressions,
            "value": self.value.to_json(),
            "click_rate": self.click_rate.to_json(),
            "conversion_rate": None if conversions is None else conversions.to_json(),
            "hide_rate": self.hide_rate.to_json(),
            "regret": None if losses is None else self.regret,
            "lost": None
            if losses is None
            else dict(zip(losses.stages, losses.lost.mean(axis=1).tolist(), strict=True)),
            "never_shown": self.never_shown,
            "not_shown": self.not_shown,
            "top_tenth_share": self.top_tenth_share,
        }


def run_rounds(
    market: LiveMarket,
    first: Policy,
    retrain: Callable[[KnownLog], Policy],
    *,
    rounds: int,
    days: int,
    ads: AdTable,
    value: Valuation,
    progress: Callable[[Round], None] | None = None,
) -> list[Round]:
    """Serve a market round by round, each by a policy that was trained on the rounds before.

    Args:
        market: Goes on from its next hour; it must have ``rounds * days`` days left.
        first: Serves round 0, as the incumbent whose log there is.
        retrain: Makes the next round's policy of everything that is known; a funnel is one by
            ``FunnelPolicy``. Not called after the last round.
        rounds: Rounds, that of the first policy included. At least 1.
        days: Days of a round. At least 1.
        ads: Attributes of all ads of the market, by ``ad_id``.
        value: Total value, by ``click``, ``conversion`` and ``hide``.
        progress: Told of each round when it is over.

    Raises:
        ConfigError: ``rounds`` is below 1.
        DataError: The market has not so many days left, an answer cannot be shown, funnels of a
            round have different stages, or fewer than two users were shown ads in it.
    """
    if rounds < 1:
        raise ConfigError(f"run_rounds.rounds: must be at least 1, got {rounds}.")
    market.require_days(rounds * days)
    policy = first
    done: list[Round] = []
    served: list[ServedHour] = []
    was_shown = np.zeros(len(ads), np.bool_)
    for number in range(rounds):
        hours = list(market.serve(policy, days=days))
        if sum(hour.log.num_rows for hour in hours) == 0:
            raise DataError(
                f"round {number}: must show ads, got none in {days} days. Check the policy."
            )
        found = outcomes(hours)
        was_shown[found.ad] = True
        done.append(_judge(number, hours, found, was_shown, ads, value))
        if progress is not None:
            progress(done[-1])
        served += hours
        if number < rounds - 1:
            policy = retrain(_known(served, market.now_micros))
    return done


def _judge(
    number: int,
    hours: list[ServedHour],
    found: Outcomes,
    was_shown: NDArray[np.bool_],
    ads: AdTable,
    value: Valuation,
) -> Round:
    judged = [part for hour in hours for part in hour.candidates]
    asked = np.concatenate([hour.user for hour in hours])
    shown, clicks = np.ones(len(found)), found.click.astype(np.float64)
    # Requests without an ad count too, so that values and requests stand in rows of their own.
    worth = np.concatenate([found.total_value(ads, value), np.zeros(len(asked))])
    requests = np.concatenate([np.zeros(len(found)), np.ones(len(asked))])
    living = np.unique(np.concatenate([hour.living for hour in hours]))
    counts = np.sort(np.bincount(found.ad, minlength=len(ads))[living])[::-1]
    return Round(
        number=number,
        requests=len(asked),
        impressions=len(found),
        value=ratio_of_sums(worth, requests, groups=np.concatenate([found.user, asked])),
        click_rate=ratio_of_sums(clicks, shown, groups=found.user),
        conversion_rate=ratio_of_sums(found.converted(), clicks, groups=found.user)
        if found.click.any()
        else None,
        hide_rate=ratio_of_sums(found.hide, shown, groups=found.user),
        losses=true_losses(judged, ads, value) if judged else None,
        never_shown=float(1 - was_shown[living].mean()),
        not_shown=float((counts == 0).mean()),
        top_tenth_share=float(counts[: -(-len(living) // 10)].sum() / counts.sum()),
    )


def _known(served: list[ServedHour], now_micros: int) -> KnownLog:
    candidates = [part.tables()[0] for hour in served for part in hour.candidates]
    return KnownLog(
        log=known_at(pa.concat_tables([hour.log for hour in served]), now_micros),
        slates=pa.concat_tables([hour.slates for hour in served]),
        candidates=pa.concat_tables(candidates, promote_options="permissive")
        if candidates
        else pa.table({}),
        ads=pa.concat_tables([_with_hour(hour.ads, hour.hour) for hour in served]),
    )


def _with_hour(ads: pa.Table, hour: int) -> pa.Table:
    return ads.append_column("market_hour", pa.array(np.full(ads.num_rows, hour, np.int64)))
