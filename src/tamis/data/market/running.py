"""A running market: what it remembers, and how one hour follows from those before it."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.market import behaviour, policy
from tamis.data.market import rules as names
from tamis.data.market.behaviour import Impressions, Intercepts, intercept_for, sigmoid
from tamis.data.market.population import Ints, Population, populate
from tamis.data.market.rules import MarketRules
from tamis.data.market.tables import HOUR_MICROS, START_MICROS, Counters, Events, log_table

# Share of a day's requests in each of its hours, up to a factor: quiet nights, busy evenings.
_HOURLY_LOAD = (3, 2, 1, 1, 1, 2, 3, 5, 6, 6, 6, 7, 8, 7, 7, 7, 7, 8, 9, 10, 11, 10, 8, 5)
_PILOT_REQUESTS = 20_000
_PILOT_HOUR = 12


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
        requests = -(-self.rows // self.rules.slate)
        load = np.tile(np.asarray(_HOURLY_LOAD, np.float64), self.rules.days)
        bounds = np.rint(np.cumsum(load) / load.sum() * requests).astype(np.int64)
        first = 0
        for hour, last in enumerate(bounds.tolist()):
            if hour % 24 == 0:
                self._impressions_today[:] = 0
            if last > first:
                yield self._hour(hour, first, last)
            first = last

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
        rules = self.rules
        user = np.searchsorted(self._activity, generator.random(requests)).astype(np.int32)
        device = self.population.users.device[user]
        elsewhere = generator.random(requests) < 0.2
        other = generator.integers(0, len(names.DEVICES), requests, dtype=np.int32)
        device = np.where(elsewhere, other, device)
        placement = np.searchsorted((0.7, 0.9), generator.random(requests)).astype(np.int32)
        chosen = self._choose(user, hour, generator)
        return Impressions(
            user=np.repeat(user, rules.slate),
            ad=chosen.reshape(-1),
            device=np.repeat(device, rules.slate),
            placement=np.repeat(placement, rules.slate),
            position=np.tile(np.arange(1, rules.slate + 1, dtype=np.int32), requests),
            daypart=hour % 24 // (24 // names.DAYPARTS),
            time=hour / (24 * rules.days),
            history=np.repeat(self._history[user], rules.slate, axis=0),
        )

    def _choose(self, user: Ints, hour: int, generator: np.random.Generator) -> Ints:
        rules = self.rules
        candidates = policy.draw_candidates(
            self.population.ads, len(user), day=hour / 24, rules=rules, generator=generator
        )
        scores = policy.policy_scores(
            self.population,
            user,
            candidates,
            self._click_rate(),
            time=hour / (24 * rules.days),
            rules=rules,
        )
        return policy.choose_slates(candidates, scores, rules=rules, generator=generator)

    def _click_rate(self) -> NDArray[np.float64]:
        """Smoothed click rate of every ad, from what is over."""
        rate: NDArray[np.float64] = (self._ad_clicks + 3.0) / (self._ad_impressions + 100.0)
        return rate

    def _hour(self, hour: int, first: int, last: int) -> tuple[pa.Table, pa.Table]:
        generator = np.random.default_rng([self.seed, 3, hour])
        slate = self.rules.slate
        shown = self._slates(last - first, hour=hour, generator=generator)
        truth = behaviour.true_probabilities(self.population, shown, self.intercepts, self.rules)
        draws = generator.random((3, len(shown.user)))
        click = draws[0] < truth.click
        offsets = np.sort(generator.integers(0, HOUR_MICROS, last - first))
        times = np.repeat(START_MICROS + hour * HOUR_MICROS + offsets, slate)
        delay = self.rules.conversion_delay_hours * np.exp(generator.standard_normal(len(times)))
        events = Events(
            click=click,
            conversion=click & (draws[1] < truth.conversion),
            conversion_micros=times + np.rint(delay * HOUR_MICROS).astype(np.int64),
            hide=draws[2] < truth.hide,
        )
        rows = np.arange(first * slate, last * slate, dtype=np.int64)
        log = log_table(
            self.population,
            shown,
            self._counters(shown),
            events,
            impression_id=rows,
            event_micros=times,
            hour=hour,
            slate=slate,
        )
        self._remember(shown, events.click)
        truths = {"click": truth.click, "conversion": truth.conversion, "hide": truth.hide}
        truth_table = pa.table({"impression_id": rows, **truths})
        # The last slate is cut where the rows are not a multiple of it.
        count = min(len(rows), self.rows - first * slate)
        return log.slice(0, count), truth_table.slice(0, count)

    def _counters(self, shown: Impressions) -> Counters:
        used = self._impressions_today[shown.ad] / self.population.ads.daily_budget[shown.ad]
        return Counters(
            ad_click_rate=self._click_rate()[shown.ad].astype(np.float32),
            budget_left=(1 - np.minimum(1, used)).astype(np.float32),
            user_requests=self._user_requests[shown.user],
        )

    def _remember(self, shown: Impressions, clicked: NDArray[np.bool_]) -> None:
        """Take the hour's events into counts and histories; they show from the next hour on."""
        slate = self.rules.slate
        np.add.at(self._user_requests, shown.user[::slate], 1)
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
