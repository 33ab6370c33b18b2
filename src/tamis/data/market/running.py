"""A running market: what it remembers, and how one hour follows from those before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.market import behaviour, policy
from tamis.data.market import rules as names
from tamis.data.market.behaviour import Impressions, Intercepts, intercept_for, sigmoid
from tamis.data.market.population import Floats, Ints, Population, populate
from tamis.data.market.rules import MarketRules
from tamis.data.market.tables import (
    HOUR_MICROS,
    START_MICROS,
    Counters,
    Events,
    ad_columns,
    log_table,
    request_columns,
)

# Share of a day's requests in each of its hours, up to a factor: quiet nights, busy evenings.
_HOURLY_LOAD = (3, 2, 1, 1, 1, 2, 3, 5, 6, 6, 6, 7, 8, 7, 7, 7, 7, 8, 9, 10, 11, 10, 8, 5)
_PILOT_REQUESTS = 20_000
_PILOT_HOUR = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """n requests of one hour."""

    hour: int
    """Hours since the start of the log."""
    request_id: NDArray[np.int64]
    """(n,) numbers, rising."""
    user: Ints
    device: Ints
    placement: Ints
    """(n,) who asks, and codes of where."""

    def take(self, rows: NDArray[np.int64]) -> "Asked":
        """Some of the requests, by place."""
        return Asked(
            hour=self.hour,
            request_id=self.request_id[rows],
            user=self.user[rows],
            device=self.device[rows],
            placement=self.placement[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Luck:
    """What chance has in store for n requests, whatever they are answered with."""

    draws: NDArray[np.float64]
    """(3, n * slate) uniform: an impression is clicked, converts, is hidden where its draw is below
    its chance."""
    micros: NDArray[np.int64]
    """(n,) times of the requests since 1970, rising."""
    delay_hours: NDArray[np.float64]
    """(n * slate,) from the request to a conversion."""


class RunningMarket:
    """The state of a market while its log is made.

    Histories and counters are refreshed at the end of every hour: an impression sees the events of
    earlier hours, never those of its own.
    """

    def __init__(self, rows: int, rules: MarketRules, seed: int) -> None:
        self.rows, self.rules, self.seed = rows, rules, seed
        self.population: Population = populate(rows, rules, seed)
        num_users = len(self.population.users.age)
        num_ads = len(self.population.ads.category)
        self._history = np.full((num_users, rules.history), -1, np.int32)
        self._user_requests = np.zeros(num_users, np.int64)
        self._ad_impressions = np.zeros(num_ads, np.int64)
        self._ad_clicks = np.zeros(num_ads, np.int64)
        self._impressions_today = np.zeros(num_ads, np.int64)
        self._activity = np.cumsum(self.population.users.activity)
        self._activity /= self._activity[-1]
        self.intercepts = self._calibrate()

    def hours(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Log and truth of each hour that has requests, in order; to be run through once."""
        first = 0
        for hour, last in enumerate(self.traffic().tolist()):
            if hour % 24 == 0:
                self.begin_day()
            if last > first:
                log, truth = self._hour(hour, first, last)
                # The last slate is cut where the rows are not a multiple of it.
                count = min(log.num_rows, self.rows - first * self.rules.slate)
                yield log.slice(0, count), truth.slice(0, count)
            first = last

    def traffic(self) -> NDArray[np.int64]:
        """Requests (hours,) until the end of each hour of the log."""
        requests = -(-self.rows // self.rules.slate)
        load = np.tile(np.asarray(_HOURLY_LOAD, np.float64), self.rules.days)
        until: NDArray[np.int64] = np.rint(np.cumsum(load) / load.sum() * requests).astype(np.int64)
        return until

    def begin_day(self) -> None:
        """Budgets are whole again; to be called before the first hour of a day."""
        self._impressions_today[:] = 0

    def ask(self, hour: int, first: int, last: int, generator: np.random.Generator) -> Asked:
        """Draw the requests of an hour, which have the numbers ``first`` to ``last`` - 1."""
        count = last - first
        user = np.searchsorted(self._activity, generator.random(count)).astype(np.int32)
        device = self.population.users.device[user]
        elsewhere = generator.random(count) < 0.2
        other = generator.integers(0, len(names.DEVICES), count, dtype=np.int32)
        placement = np.searchsorted((0.7, 0.9), generator.random(count)).astype(np.int32)
        return Asked(
            hour=hour,
            request_id=np.arange(first, last, dtype=np.int64),
            user=user,
            device=np.where(elsewhere, other, device),
            placement=placement,
        )

    def draw_luck(self, asked: Asked, generator: np.random.Generator) -> Luck:
        """Draw what chance has in store for the requests of an hour."""
        count, slate = len(asked.user), self.rules.slate
        draws = generator.random((3, count * slate))
        offsets = np.sort(generator.integers(0, HOUR_MICROS, count))
        noise = generator.standard_normal(count * slate)
        return Luck(
            draws=draws,
            micros=START_MICROS + asked.hour * HOUR_MICROS + offsets,
            delay_hours=self.rules.conversion_delay_hours * np.exp(noise),
        )

    def settle(self, asked: Asked, slates: Ints, luck: Luck) -> tuple[pa.Table, pa.Table]:
        """Log and truth of an hour that was answered; the market remembers what came of it.

        Args:
            asked: Requests of the hour.
            slates: (n, slate) ads by position; -1 where a place was left empty.
            luck: What chance has in store for them.
        """
        is_shown = slates.reshape(-1) >= 0
        shown = self.impressions(asked, slates)
        truth = behaviour.true_probabilities(self.population, shown, self.intercepts, self.rules)
        draws = luck.draws[:, is_shown]
        click = draws[0] < truth.click
        times = np.repeat(luck.micros, self.rules.slate)[is_shown]
        delay = np.rint(luck.delay_hours[is_shown] * HOUR_MICROS).astype(np.int64)
        events = Events(
            click=click,
            conversion=click & (draws[1] < truth.conversion),
            conversion_micros=times + delay,
            hide=draws[2] < truth.hide,
        )
        slate = self.rules.slate
        rows = np.repeat(asked.request_id * slate, slate)[is_shown] + shown.position - 1
        log = log_table(
            self.population,
            shown,
            self._counters(shown),
            events,
            impression_id=rows,
            event_micros=times,
            hour=asked.hour,
            slate=slate,
        )
        self._remember(asked, shown, events.click)
        truths = {"click": truth.click, "conversion": truth.conversion, "hide": truth.hide}
        return log, pa.table({"impression_id": rows, **truths})

    def impressions(self, asked: Asked, slates: Ints) -> Impressions:
        """Ads (n, slate) by position as impressions; those of -1 are left out."""
        slate = slates.shape[1]
        is_shown = slates.reshape(-1) >= 0
        request = np.repeat(np.arange(len(asked.user)), slate)[is_shown]
        position = np.tile(np.arange(1, slate + 1, dtype=np.int32), len(asked.user))[is_shown]
        return self.pairs(asked, request, slates.reshape(-1)[is_shown], position)

    def pairs(
        self, asked: Asked, request: NDArray[np.int64], ad: Ints, position: Ints
    ) -> Impressions:
        """Pairs of request and ad as the true probabilities see them.

        Args:
            asked: Requests of the hour that is served.
            request: (m,) place of each pair's request among them.
            ad: (m,) ads.
            position: (m,) from 1.
        """
        return Impressions(
            user=asked.user[request],
            ad=ad,
            device=asked.device[request],
            placement=asked.placement[request],
            position=position,
            daypart=asked.hour % 24 // (24 // names.DAYPARTS),
            time=self._time(asked.hour),
            history=self._history[asked.user[request]],
        )

    def living(self, hour: int) -> Ints:
        """Ads that are alive in an hour, rising.

        Raises:
            DataError: There is none.
        """
        return policy.living_ads(self.population.ads, hour / 24)

    def request_columns(self, asked: Asked) -> dict[str, Any]:
        """What is known of user and context of the requests, as the log will show it."""
        return request_columns(
            self.population,
            asked.user,
            asked.device,
            asked.placement,
            self._history[asked.user],
            self._user_requests[asked.user],
            hour=asked.hour,
        )

    def ad_columns(self, ad: Ints, hour: int) -> dict[str, Any]:
        """What is known of some ads in the hour that is served, as the log will show it."""
        rate = self._click_rate()[ad].astype(np.float32)
        return ad_columns(self.population.ads, ad, rate, self._budget_left(ad), hour=hour)

    def score_candidates(self, asked: Asked, generator: np.random.Generator) -> tuple[Ints, Floats]:
        """Candidates (n, C) that the logging policy draws, and what it values them at."""
        candidates = policy.draw_candidates(
            self.population.ads,
            len(asked.user),
            day=asked.hour / 24,
            rules=self.rules,
            generator=generator,
        )
        scores = policy.policy_scores(
            self.population,
            asked.user,
            candidates,
            self._click_rate(),
            time=self._time(asked.hour),
            rules=self.rules,
        )
        return candidates, scores

    def _calibrate(self) -> Intercepts:
        """Intercepts that give the rates of the rules on slates of the first noon."""
        rules = self.rules
        generator = np.random.default_rng([self.seed, 2])
        impressions = self._slates(_PILOT_REQUESTS, hour=_PILOT_HOUR, generator=generator)
        matched = behaviour.match(self.population, impressions, rules)
        clicks = behaviour.click_logit(self.population, impressions, matched, rules)
        click = intercept_for(clicks, rules.click_rate)
        # Conversions exist among clicks only, so their rate is that of clicked impressions; five
        # times as many as will be clicked, for a steadier mean.
        clicked = generator.random(len(clicks)) < sigmoid(clicks + click) * 5
        conversions = behaviour.conversion_logit(self.population, impressions, rules)
        hides = behaviour.hide_logit(self.population, impressions, matched, rules)
        return Intercepts(
            click=click,
            conversion=intercept_for(conversions[clicked], rules.conversion_rate),
            hide=intercept_for(hides, rules.hide_rate),
        )

    def _slates(self, requests: int, *, hour: int, generator: np.random.Generator) -> Impressions:
        """Requests of one hour and the slates that the logging policy answers them with."""
        asked = self.ask(hour, 0, requests, generator)
        return self.impressions(asked, self._choose(asked, generator))

    def _choose(self, asked: Asked, generator: np.random.Generator) -> Ints:
        candidates, scores = self.score_candidates(asked, generator)
        return policy.choose_slates(candidates, scores, rules=self.rules, generator=generator)

    def _time(self, hour: int) -> float:
        """In [0, 1] of the log."""
        return hour / (24 * self.rules.days)

    def _click_rate(self) -> NDArray[np.float64]:
        """Smoothed click rate of every ad, from what is over."""
        rate: NDArray[np.float64] = (self._ad_clicks + 3.0) / (self._ad_impressions + 100.0)
        return rate

    def _hour(self, hour: int, first: int, last: int) -> tuple[pa.Table, pa.Table]:
        generator = self.generator(hour)
        asked = self.ask(hour, first, last, generator)
        slates = self._choose(asked, generator)
        return self.settle(asked, slates, self.draw_luck(asked, generator))

    def generator(self, hour: int) -> np.random.Generator:
        """Source of all that is drawn in an hour."""
        return np.random.default_rng([self.seed, 3, hour])

    def _counters(self, shown: Impressions) -> Counters:
        return Counters(
            ad_click_rate=self._click_rate()[shown.ad].astype(np.float32),
            budget_left=self._budget_left(shown.ad),
            user_requests=self._user_requests[shown.user],
        )

    def _budget_left(self, ad: Ints) -> Floats:
        used = self._impressions_today[ad] / self.population.ads.daily_budget[ad]
        left: Floats = (1 - np.minimum(1, used)).astype(np.float32)
        return left

    def _remember(self, asked: Asked, shown: Impressions, clicked: NDArray[np.bool_]) -> None:
        """Take the hour's events into counts and histories; they show from the next hour on."""
        np.add.at(self._user_requests, asked.user, 1)
        shown_counts = np.bincount(shown.ad, minlength=len(self._ad_impressions))
        self._ad_impressions += shown_counts
        self._impressions_today += shown_counts
        self._ad_clicks += np.bincount(shown.ad[clicked], minlength=len(self._ad_clicks))
        users, ads = shown.user[clicked], shown.ad[clicked]
        # Several clicks of one user in an hour enter one after the other, in order of time.
        while len(users):
            unique, position = np.unique(users, return_index=True)
            self._history[unique, 1:] = self._history[unique, :-1]
            self._history[unique, 0] = ads[position]
            rest = np.ones(len(users), bool)
            rest[position] = False
            users, ads = users[rest], ads[rest]
