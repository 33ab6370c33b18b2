"""A simulated market as a retrieval task: the ads that are alive one morning, and who asks then.

The market is denser in users and ads than the default one, and its ads live longer, so that many
of them are alive at once; everything else follows the frozen rules.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.market import behaviour
from tamis.data.market.behaviour import Impressions
from tamis.data.market.population import Ints
from tamis.data.market.rules import MarketRules
from tamis.data.market.running import Asked, RunningMarket
from tamis.data.public_sets.retrieval import SAME_CATEGORY, Goal, RetrievalSet, matches_of_rows
from tamis.data.schema import Field, Roles, Schema, Side, Task
from tamis.errors import DataError
from tamis.evaluation.retrieval import ItemLists

ROWS_PER_AD = 30
"""Impressions per ad of the population."""
_RULES = MarketRules(
    rows_per_ad=ROWS_PER_AD,
    rows_per_user=60,
    min_users=100,
    min_ads=1,
    alive_at_start=0.9,
    mean_lifetime_days=60.0,
)
_KEPT = 8
"""One impression without a click of so many is kept, and weighs as much as they."""
_UNSEEN_SHARE = 0.5
"""Rows of ads drawn uniformly, for each row that is kept of a training hour."""
_FEWEST_ADS = 100
_VALID_DAY, _TEST_DAY = 12, 13
_ASKED_AT = 24 * _TEST_DAY + 8
"""Hour at which everybody asks, since the start of the log."""

_USER = (
    *("user_id", "age", "gender", "country", "device", "placement", "hour", "weekday"),
    *("user_requests", "history_ads", "history_categories"),
)
_ITEM = (
    *("ad_id", "campaign_id", "advertiser_id", "category", "format", "price"),
    *("ad_age_days", "ad_click_rate"),
)
_NUMBERS = ("price", "ad_age_days", "ad_click_rate", "user_requests")
_NAMES = {
    "user_id": "user",
    "ad_id": "item",
    "history_ads": "history_item",
    "history_categories": "history_category",
}


def market_retrieval(num_ads: int, *, seed: int = 0, requests: int = 200) -> RetrievalSet:
    """Simulate a market and ask it for the ads that are alive on its last morning.

    Rows of the first 12 days train, those of the 13th validate and those of the last day test. All
    clicks are rows; of the impressions without one an eighth, which weigh eight times as much.
    Beside those that train stand rows without a label: requests of the log with ads drawn uniformly
    from the living, which no policy has chosen. The ads of such rows are as they were at the end of
    their hour.

    The goal is at 8 o'clock of the last day: what a user clicked after it, and what every living ad
    is truly worth to him then, which is the chance of his click on it at the first position.
    Nothing is masked, as an ad may be clicked again. Goals of the splits ``valid`` and ``test`` are
    of that one hour and of different users, so that how a corpus is searched can be chosen by some
    and judged by others.

    Args:
        num_ads: Ads of the population, at least 100; nine in ten of them are alive at once.
        seed: Decides everything.
        requests: Users of each goal, at most, of those who clicked something after the morning;
            half of these where there are fewer than twice as many.

    Raises:
        DataError: There are too few ads, or fewer than two users clicked on what was alive.
    """
    if num_ads < _FEWEST_ADS:
        raise DataError(f"market_retrieval: num_ads must be at least {_FEWEST_ADS}, got {num_ads}.")
    market = RunningMarket(ROWS_PER_AD * num_ads, _RULES, seed)
    generator = np.random.default_rng([seed, 4])
    tables: dict[str, list[pa.Table]] = {"train": [], "valid": [], "test": []}
    impressions = np.zeros(num_ads, np.int64)
    positives = np.zeros(num_ads, np.int64)
    hours = _busy_hours(market)
    for hour, log in hours:
        split = _split_of(hour)
        tables[split].append(_labelled(log, generator))
        # Ads that were shown on the day that validates are known by their click rates.
        impressions += np.bincount(log["ad_id"].to_numpy(), minlength=num_ads)
        if split == "train":
            positives += np.bincount(_clicked(log)["ad_id"].to_numpy(), minlength=num_ads)
            tables[split].append(_unseen(market, tables[split][-1], hour, generator))
        if hour >= _ASKED_AT - 1:
            break
    morning = _Morning.of(market)
    clicks = []
    for hour, log in hours:
        tables[_split_of(hour)].append(_labelled(log, generator))
        clicks.append(_clicked(log).select(["user_id", "ad_id"]))
    goals = morning.goals(pa.concat_tables(clicks), generator, requests=requests)
    return RetrievalSet(
        tables={split: _as_rows(pa.concat_tables(parts)) for split, parts in tables.items()},
        schema=_schema(),
        corpus=_as_rows(morning.corpus(goals["test"].requests)),
        goals=goals,
        matched=market.population.ads.category[morning.living].astype(np.int64),
        positives=positives[morning.living],
        impressions=impressions[morning.living],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Morning:
    """The market as it is when everybody asks, before anything of that hour has happened."""

    market: RunningMarket
    living: Ints
    """(V,) ads that are alive, rising: the corpus."""
    ads: pa.Table
    """What the log shows of them."""
    users: pa.Table
    """What the log shows of every user."""
    asked: Impressions
    """A pair for each user, with what the truth knows of him."""

    @classmethod
    def of(cls, market: RunningMarket) -> "_Morning":
        living, users = market.living(_ASKED_AT), market.population.users
        everybody = np.arange(len(users.age), dtype=np.int32)
        nothing = np.zeros_like(everybody)
        asked = Asked(
            hour=_ASKED_AT,
            request_id=everybody.astype(np.int64),
            user=everybody,
            device=users.device,
            placement=nothing,
        )
        return cls(
            market=market,
            living=living,
            ads=pa.table(market.ad_columns(living, _ASKED_AT)),
            users=pa.table(market.request_columns(asked)),
            asked=market.pairs(asked, asked.request_id, nothing, nothing + 1),
        )

    def goals(
        self, clicks: pa.Table, generator: np.random.Generator, *, requests: int
    ) -> dict[str, Goal]:
        """What two groups of those who clicked later on are to be answered with."""
        user, ad = (clicks[name].to_numpy() for name in ("user_id", "ad_id"))
        place = np.searchsorted(self.living, ad).clip(max=len(self.living) - 1)
        is_there = self.living[place] == ad  # what was born after the morning cannot be found
        pairs = np.unique(np.stack([user[is_there], place[is_there]], axis=1), axis=0)
        who = generator.permutation(np.unique(pairs[:, 0]))
        if len(who) < 2:
            raise DataError(
                f"market_retrieval: two users must click on an ad of the corpus, got {len(who)}. "
                f"Take more ads."
            )
        count = min(requests, len(who) // 2)
        return {
            "valid": self._goal(np.sort(who[count : 2 * count]), pairs),
            "test": self._goal(np.sort(who[:count]), pairs),
        }

    def _goal(self, who: NDArray[np.int64], pairs: NDArray[np.int64]) -> Goal:
        """What some users, rising, clicked of pairs of a user and a place in the corpus."""
        pairs = pairs[np.isin(pairs[:, 0], who)]
        blanks = pa.table(
            {name: pa.nulls(len(who), self.ads[name].type) for name in _ITEM}
            | {"click": pa.nulls(len(who), pa.int8()), "weight": np.ones(len(who), np.float32)}
        )
        shown = self.users.take(pa.array(who)).select(_USER)
        for name in blanks.column_names:
            shown = shown.append_column(name, blanks[name])
        return Goal(
            requests=_as_rows(shown),
            relevant=ItemLists.of_pairs(
                np.searchsorted(who, pairs[:, 0]), pairs[:, 1], num_users=len(who)
            ),
            masked=ItemLists.of([[]] * len(who)),
            values=np.stack([self._values(int(user)) for user in who]),
        )

    def corpus(self, requests: pa.Table) -> pa.Table:
        """The living ads, with nothing in the columns of users."""
        back = {new: old for old, new in _NAMES.items()}
        named = requests.rename_columns([back.get(name, name) for name in requests.column_names])
        count = len(self.living)
        columns = {name: pa.nulls(count, named[name].type) for name in (*_USER, "click")}
        columns |= {name: self.ads[name] for name in _ITEM}
        return pa.table(columns | {"weight": np.ones(count, np.float32)})

    def _values(self, user: int) -> NDArray[np.float32]:
        """(V,) chances of a user's click."""
        count, asked, market = len(self.living), self.asked, self.market
        pairs = Impressions(
            user=np.full(count, user, np.int32),
            ad=self.living,
            device=np.full(count, asked.device[user]),
            placement=np.full(count, asked.placement[user]),
            position=np.ones(count, np.int32),
            daypart=asked.daypart,
            time=asked.time,
            history=np.broadcast_to(asked.history[user], (count, asked.history.shape[1])),
        )
        matched = behaviour.match(market.population, pairs, market.rules)
        logits = behaviour.click_logit(market.population, pairs, matched, market.rules)
        values: NDArray[np.float32] = behaviour.sigmoid(logits + market.intercepts.click).astype(
            np.float32
        )
        return values


def _busy_hours(market: RunningMarket) -> Iterator[tuple[int, pa.Table]]:
    """Hours that have requests, and their logs; while one is looked at the market stands after it.

    The hour before everybody asks comes along in any case, with an empty log if it was idle.
    """
    until = market.traffic()
    has_requests = np.diff(until, prepend=0) > 0
    logs = market.hours()
    empty: pa.Table | None = None
    for hour in range(len(until)):
        if has_requests[hour]:
            log, _ = next(logs)
            empty = log.slice(0, 0)
            yield hour, log
        elif hour == _ASKED_AT - 1 and empty is not None:
            yield hour, empty


def _split_of(hour: int) -> str:
    day = hour // 24
    return "train" if day < _VALID_DAY else "valid" if day < _TEST_DAY else "test"


def _clicked(log: pa.Table) -> pa.Table:
    return log.filter(pa.array(log["click"].to_numpy() == 1))


def _labelled(log: pa.Table, generator: np.random.Generator) -> pa.Table:
    """Rows of an hour that are kept, with their weights."""
    is_click = log["click"].to_numpy() == 1
    kept = is_click | (generator.random(log.num_rows) < 1 / _KEPT)
    weight = np.where(is_click[kept], 1.0, _KEPT).astype(np.float32)
    rows = log.filter(pa.array(kept)).select([*_USER, *_ITEM, "click"])
    return rows.append_column("weight", pa.array(weight))


def _unseen(
    market: RunningMarket, rows: pa.Table, hour: int, generator: np.random.Generator
) -> pa.Table:
    """Requests of an hour with living ads that nobody chose, and no label."""
    count = int(generator.binomial(rows.num_rows, _UNSEEN_SHARE))
    chosen = rows.take(pa.array(generator.integers(0, max(1, rows.num_rows), count)))
    ads = market.ad_columns(generator.choice(market.living(hour), count), hour)
    columns = {name: chosen[name] for name in _USER} | {name: ads[name] for name in _ITEM}
    columns["click"] = pa.nulls(count, rows["click"].type)
    return pa.table(columns | {"weight": np.ones(count, np.float32)}).cast(rows.schema)


def _as_rows(log: pa.Table) -> pa.Table:
    """The columns by the names of the schema, with the feature of pairs."""
    rows = log.rename_columns([_NAMES.get(name, name) for name in log.column_names])
    return rows.append_column("same_category", pa.array(matches_of_rows(rows)))


def _schema() -> Schema:
    sides: tuple[tuple[Side, tuple[str, ...]], ...] = (("user", _USER[:-2]), ("item", _ITEM))
    fields = [_field(name, side) for side, names in sides for name in names]
    fields += [
        Field(
            name=name,
            kind="sequence",
            side="user",
            shares=shares,
            group="history",
            max_length=_RULES.history,
        )
        for name, shares in (("history_item", "item"), ("history_category", "category"))
    ]
    fields.append(SAME_CATEGORY)
    return Schema(
        fields=tuple(fields),
        tasks=(Task(name="click", may_be_missing=True),),
        roles=Roles(user="user", item="item", weight="weight"),
    )


def _field(column: str, side: Side) -> Field:
    name = _NAMES.get(column, column)
    if column in _NUMBERS:
        return Field(name=name, kind="numeric", side=side, transform="log")
    # Rare ids share a row, so that it is trained before a new one meets it.
    count = 3 if column.endswith("_id") else 1
    return Field(name=name, kind="categorical", side=side, min_count=count)
