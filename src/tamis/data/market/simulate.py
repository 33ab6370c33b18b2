"""Runs the market hour by hour and writes the log and, apart from it, the truth."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tamis import artifacts
from tamis.data.market import behaviour
from tamis.data.market import rules as names
from tamis.data.market.behaviour import Impressions, intercept_for, sigmoid
from tamis.data.market.population import Ints, Population, populate
from tamis.data.market.rules import MarketRules
from tamis.errors import DataError

MARKET_VERSION = 1
ROWS_PER_FILE = 1 << 20
# 2024-01-01 00:00 UTC, a Monday, in microseconds since 1970.
_START_MICROS = 1_704_067_200_000_000
_HOUR_MICROS = 3_600_000_000
# Share of a day's requests in each of its hours, up to a factor: quiet nights, busy evenings.
_HOURLY_LOAD = (3, 2, 1, 1, 1, 2, 3, 5, 6, 6, 6, 7, 8, 7, 7, 7, 7, 8, 9, 10, 11, 10, 8, 5)
_PILOT_REQUESTS = 20_000
# Columns that Parquet stores as a dictionary; trying it on the others costs a third of the time.
_FEW_VALUES = [
    *("age", "gender", "country", "category", "format", "device", "placement", "position"),
    *("hour", "weekday", "click", "conversion", "hide"),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketSummary:
    """What was written."""

    out: Path
    """The folder."""
    rows: int
    """Impressions."""
    users: int
    """Users of the population."""
    ads: int
    """Ads of the population."""
    base_rates: dict[str, float]
    """Share of positives by task; conversions per click."""
    optimal_ne: dict[str, float]
    """NE of the true probabilities by task, on all rows: the best reachable."""


def simulate(
    rows: int,
    out: Path,
    *,
    seed: int = 0,
    rules: MarketRules | None = None,
    progress: Callable[[int], None] | None = None,
) -> MarketSummary:
    """Simulate a log of impressions.

    Memory does not grow with the rows, but for the state of users and ads. The same rows, seed and
    rules give the same bytes.

    Args:
        rows: Impressions.
        out: New folder: ``logs/`` and ``truth/`` with as many Parquet files of the same rows in
            the same order, and ``market.json``, written last.
        seed: Decides everything.
        rules: The market's rules.
        progress: Told the rows that are done.

    Raises:
        DataError: ``out`` is not empty, or there are too few rows.
        ArtifactError: The disk is full.
    """
    chosen = rules or MarketRules()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: must not exist or be empty, got files in it. Name another.")
    if rows < 1000:
        raise DataError(f"rows: must be at least 1000, got {rows}.")
    market = _Market(rows, chosen, seed)
    tally = _Tally()
    files: list[Path] = []
    pending: list[tuple[pa.Table, pa.Table]] = []
    waiting = done = 0
    for log, truth in market.hours():
        tally.add(log, truth)
        pending.append((log, truth))
        waiting += log.num_rows
        done += log.num_rows
        if waiting >= ROWS_PER_FILE:
            files += _write_files(out, len(files) // 2, pending)
            pending, waiting = [], 0
        if progress is not None:
            progress(done)
    if pending:
        files += _write_files(out, len(files) // 2, pending)
    summary = MarketSummary(
        out=out,
        rows=done,
        users=len(market.population.users.age),
        ads=len(market.population.ads.category),
        base_rates=tally.base_rates(),
        optimal_ne=tally.optimal_ne(),
    )
    artifacts.write_json(
        out / "market.json",
        {
            "kind": "market",
            "version": MARKET_VERSION,
            "seed": seed,
            "rules": dataclasses.asdict(chosen),
            "rows": summary.rows,
            "users": summary.users,
            "ads": summary.ads,
            "base_rates": summary.base_rates,
            "optimal_ne": summary.optimal_ne,
            "sha256": {
                file.relative_to(out).as_posix(): artifacts.sha256_file(file) for file in files
            },
        },
    )
    return summary


class _Market:
    """The state of a running market."""

    def __init__(self, rows: int, rules: MarketRules, seed: int) -> None:
        self.rows, self.rules, self.seed = rows, rules, seed
        self.population: Population = populate(rows, rules, seed)
        num_users = len(self.population.users.age)
        num_ads = len(self.population.ads.category)
        self.history = np.full((num_users, rules.history), -1, np.int32)
        self.user_requests = np.zeros(num_users, np.int64)
        self.ad_impressions = np.zeros(num_ads, np.int64)
        self.ad_clicks = np.zeros(num_ads, np.int64)
        self.impressions_today = np.zeros(num_ads, np.int64)
        self._activity = np.cumsum(self.population.users.activity)
        self._activity /= self._activity[-1]
        self.click_intercept, self.conversion_intercept, self.hide_intercept = self._calibrate()

    def hours(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Log and truth of each hour that has requests."""
        slate = self.rules.slate
        requests = -(-self.rows // slate)
        load = np.tile(np.asarray(_HOURLY_LOAD, np.float64), self.rules.days)
        bounds = np.rint(np.cumsum(load) / load.sum() * requests).astype(np.int64)
        first = 0
        for hour, last in enumerate(bounds.tolist()):
            if hour % 24 == 0:
                self.impressions_today[:] = 0
            if last > first:
                yield self._hour(hour, first, last)
            first = last

    def _calibrate(self) -> tuple[float, float, float]:
        """Intercepts that give the rates of the rules on slates of the first noon."""
        generator = np.random.default_rng([self.seed, 2])
        impressions = self._slates(_PILOT_REQUESTS, hour=12, generator=generator)
        matched = behaviour.match(self.population, impressions, self.rules)
        clicks = behaviour.click_logit(self.population, impressions, matched, self.rules)
        click = intercept_for(clicks, self.rules.click_rate)
        # Conversions exist among clicks only, so their rate is that of clicked impressions.
        clicked = generator.random(len(clicks)) < sigmoid(clicks + click) * 5
        conversions = behaviour.conversion_logit(self.population, impressions, self.rules)
        hides = behaviour.hide_logit(self.population, impressions, matched, self.rules)
        return (
            click,
            intercept_for(conversions[clicked], self.rules.conversion_rate),
            intercept_for(hides, self.rules.hide_rate),
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
            history=np.repeat(self.history[user], rules.slate, axis=0),
        )

    def _choose(self, user: Ints, hour: int, generator: np.random.Generator) -> Ints:
        """Ads (requests, slate), best first, of the logging policy.

        Its score is the log of bid times smoothed click rate, half of the taste match that it
        cannot know, and Gumbel noise; a share of requests is answered at random.
        """
        rules, ads = self.rules, self.population.ads
        alive = np.flatnonzero((ads.born <= hour / 24) & (hour / 24 < ads.dies))
        weights = np.cumsum(ads.popularity[alive])
        drawn = generator.random((len(user), rules.candidates)) * weights[-1]
        candidates = np.sort(alive[np.searchsorted(weights, drawn)], axis=1).astype(np.int32)
        value = np.log(ads.bid_micros / 1e6 * self._click_rate()).astype(np.float32)
        noise = generator.gumbel(size=candidates.shape).astype(np.float32)
        taste = self.population.users.taste_at(user, hour / (24 * rules.days))
        known = np.einsum("nk,nck->nc", taste, ads.appeal[candidates])
        score = value[candidates] + np.float32(0.5 / rules.taste_dim**0.5) * known + noise
        random = generator.random(len(user)) < rules.exploration
        score[random] = noise[random]
        # Candidates are drawn with replacement; a repeated one comes after all others.
        score[:, 1:][candidates[:, 1:] == candidates[:, :-1]] -= 1e3
        order = np.argsort(-score, axis=1, kind="stable")[:, : rules.slate]
        return np.take_along_axis(candidates, order, axis=1)

    def _click_rate(self) -> NDArray[np.float64]:
        """Smoothed click rate of every ad, from what is over."""
        rate: NDArray[np.float64] = (self.ad_clicks + 3.0) / (self.ad_impressions + 100.0)
        return rate

    def _hour(self, hour: int, first: int, last: int) -> tuple[pa.Table, pa.Table]:
        generator = np.random.default_rng([self.seed, 3, hour])
        rules, slate = self.rules, self.rules.slate
        shown = self._slates(last - first, hour=hour, generator=generator)
        matched = behaviour.match(self.population, shown, rules)
        clicks = behaviour.click_logit(self.population, shown, matched, rules)
        conversions = behaviour.conversion_logit(self.population, shown, rules)
        hides = behaviour.hide_logit(self.population, shown, matched, rules)
        truth = {
            "click": sigmoid(clicks + self.click_intercept),
            "conversion": sigmoid(conversions + self.conversion_intercept),
            "hide": sigmoid(hides + self.hide_intercept),
        }
        count = min(len(shown.user), self.rows - first * slate)
        draws = generator.random((3, len(shown.user)))
        events = {
            name: draw < probability
            for draw, (name, probability) in zip(draws, truth.items(), strict=True)
        }
        events["conversion"] &= events["click"]
        offsets = np.sort(generator.integers(0, _HOUR_MICROS, last - first))
        times = np.repeat(_START_MICROS + hour * _HOUR_MICROS + offsets, slate)
        delay = rules.conversion_delay_hours * np.exp(generator.standard_normal(len(times)))
        converted = times + np.rint(delay * _HOUR_MICROS).astype(np.int64)
        rows = np.arange(first * slate, last * slate, dtype=np.int64)
        log = self._log_table(shown, rows, times, converted, events, hour)
        self._remember(shown, events["click"])
        truth_table = pa.table({"impression_id": rows, **truth})
        return log.slice(0, count), truth_table.slice(0, count)

    def _log_table(
        self,
        shown: Impressions,
        rows: NDArray[np.int64],
        times: NDArray[np.int64],
        converted: NDArray[np.int64],
        events: dict[str, NDArray[np.bool_]],
        hour: int,
    ) -> pa.Table:
        users, ads, ad = self.population.users, self.population.ads, shown.ad
        clicked = events["click"]
        age_days = np.float32(hour / 24) - ads.born[ad]
        left = 1 - np.minimum(1, self.impressions_today[ad] / ads.daily_budget[ad])
        history_ads, history_categories = self._history_columns(shown)
        stamp = pa.timestamp("us", tz="UTC")
        columns: dict[str, Any] = {
            "impression_id": rows,
            "request_id": rows // self.rules.slate,
            "event_time": pa.array(times, stamp),
            "user_id": shown.user,
            "age": _text(users.age[shown.user], names.AGES),
            "gender": _text(users.gender[shown.user], names.GENDERS),
            "country": _text(users.country[shown.user], names.COUNTRIES),
            "ad_id": ad,
            "campaign_id": ads.campaign[ad],
            "advertiser_id": ads.advertiser[ad],
            "category": ads.category[ad],
            "format": _text(ads.format[ad], names.FORMATS),
            "device": _text(shown.device, names.DEVICES),
            "placement": _text(shown.placement, names.PLACEMENTS),
            "position": shown.position,
            "hour": np.full(len(ad), hour % 24, np.int32),
            "weekday": np.full(len(ad), hour // 24 % 7, np.int32),
            "bid_micros": ads.bid_micros[ad],
            "price": ads.price[ad],
            "ad_age_days": age_days,
            "ad_click_rate": self._click_rate()[ad].astype(np.float32),
            "budget_left": left.astype(np.float32),
            "user_requests": self.user_requests[shown.user],
            "history_ads": history_ads,
            "history_categories": history_categories,
            "click": clicked.astype(np.int8),
            "conversion": pa.array(events["conversion"].astype(np.int8), mask=~clicked),
            "conversion_time": pa.array(converted, mask=~events["conversion"]).cast(stamp),
            "hide": events["hide"].astype(np.int8),
        }
        return pa.table(columns)

    def _history_columns(self, shown: Impressions) -> tuple[pa.Array, pa.Array]:
        """Clicked ads and their categories, oldest first."""
        oldest_first = shown.history[:, ::-1]
        known = oldest_first >= 0
        bounds = np.concatenate([[0], np.cumsum(known.sum(1))]).astype(np.int32)
        values = oldest_first[known]
        categories = self.population.ads.category[values]
        return (
            pa.ListArray.from_arrays(pa.array(bounds), pa.array(values)),
            pa.ListArray.from_arrays(pa.array(bounds), pa.array(categories)),
        )

    def _remember(self, shown: Impressions, clicked: NDArray[np.bool_]) -> None:
        """Take the hour's events into counts and histories; they show from the next hour on."""
        slate = self.rules.slate
        np.add.at(self.user_requests, shown.user[::slate], 1)
        shown_counts = np.bincount(shown.ad, minlength=len(self.ad_impressions))
        self.ad_impressions += shown_counts
        self.impressions_today += shown_counts
        self.ad_clicks += np.bincount(shown.ad[clicked], minlength=len(self.ad_clicks))
        users, ads = shown.user[clicked], shown.ad[clicked]
        # Several clicks of one user in an hour enter one after the other, in order of time.
        while len(users):
            unique, position = np.unique(users, return_index=True)
            self.history[unique, 1:] = self.history[unique, :-1]
            self.history[unique, 0] = ads[position]
            rest = np.ones(len(users), bool)
            rest[position] = False
            users, ads = users[rest], ads[rest]


class _Tally:
    """Rates of events and losses of the truth."""

    def __init__(self) -> None:
        self._sums = {task: np.zeros(3) for task in ("click", "conversion", "hide")}

    def add(self, log: pa.Table, truth: pa.Table) -> None:
        for task, sums in self._sums.items():
            column = log[task].combine_chunks()
            known = column.is_valid().to_numpy(zero_copy_only=False)
            labels = column.fill_null(0).to_numpy(zero_copy_only=False)[known].astype(np.float64)
            p = truth[task].to_numpy()[known]
            loss = -(labels * np.log(p) + (1 - labels) * np.log1p(-p)).sum()
            np.add(sums, (len(labels), labels.sum(), loss), out=sums)

    def base_rates(self) -> dict[str, float]:
        return {
            task: float(sums[1] / sums[0]) if sums[0] else 0.0 for task, sums in self._sums.items()
        }

    def optimal_ne(self) -> dict[str, float]:
        result = {}
        for task, (rows, positives, loss) in self._sums.items():
            if 0 < positives < rows:
                rate = positives / rows
                entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
                result[task] = float(loss / rows / entropy)
        return result


def _text(codes: Ints, labels: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(labels))


def _write_files(out: Path, index: int, tables: list[tuple[pa.Table, pa.Table]]) -> list[Path]:
    written = []
    for folder, position in (("logs", 0), ("truth", 1)):
        path = out / folder / f"part-{index:05d}.parquet"
        whole = pa.concat_tables([pair[position] for pair in tables])
        with artifacts.atomic_path(path) as temporary:
            pq.write_table(
                whole,
                temporary,
                compression="lz4",
                row_group_size=1 << 17,
                use_dictionary=_FEW_VALUES if folder == "logs" else False,
                write_statistics=False,
            )
        written.append(path)
    return written
