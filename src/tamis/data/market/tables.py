"""The market's arrays as Arrow tables: the log, and what is known of users and ads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.market import rules as names
from tamis.data.market.behaviour import Impressions
from tamis.data.market.population import Ads, Floats, Ints, Population, Users

# 2024-01-01 00:00 UTC, a Monday, in microseconds since 1970.
START_MICROS = 1_704_067_200_000_000
HOUR_MICROS = 3_600_000_000
STAMP = pa.timestamp("us", tz="UTC")
"""Type of the log's times."""
LOG_COLUMNS = (
    *("impression_id", "request_id", "event_time"),
    *("user_id", "age", "gender", "country"),
    *("ad_id", "campaign_id", "advertiser_id", "category", "format"),
    *("device", "placement", "position", "hour", "weekday"),
    *("bid_micros", "price", "ad_age_days", "ad_click_rate", "budget_left"),
    *("user_requests", "history_ads", "history_categories"),
    *("click", "conversion", "conversion_time", "hide"),
)
"""Columns of the log, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """What n impressions show of the past: everything up to the hour before theirs."""

    ad_click_rate: Floats
    """(n,) smoothed click rate of the ad."""
    budget_left: Floats
    """(n,) share of the day's planned impressions of the ad that are left."""
    user_requests: NDArray[np.int64]
    """(n,) requests of the user so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """What came of n impressions."""

    click: NDArray[np.bool_]
    conversion: NDArray[np.bool_]
    """(n,) true only where there was a click."""
    conversion_micros: NDArray[np.int64]
    """(n,) time of the conversion since 1970; without meaning where there is none."""
    hide: NDArray[np.bool_]


def log_table(
    population: Population,
    shown: Impressions,
    counters: Counters,
    events: Events,
    *,
    impression_id: NDArray[np.int64],
    event_micros: NDArray[np.int64],
    hour: int,
    slate: int,
) -> pa.Table:
    """The log of n impressions of one hour.

    Args:
        population: Users and ads.
        shown: The impressions, slates one after another.
        counters: What was known before the hour.
        events: What came of them.
        impression_id: (n,) numbers of the rows.
        event_micros: (n,) times since 1970.
        hour: Hours since the start of the log.
        slate: Impressions of one request.

    Returns:
        A row per impression, in the same order.
    """
    ad = shown.ad
    request = request_columns(
        population,
        shown.user,
        shown.device,
        shown.placement,
        shown.history,
        counters.user_requests,
        hour=hour,
    )
    item = ad_columns(population.ads, ad, counters.ad_click_rate, counters.budget_left, hour=hour)
    columns: dict[str, Any] = {
        "impression_id": impression_id,
        "request_id": impression_id // slate,
        "event_time": pa.array(event_micros, STAMP),
        **request,
        **item,
        "position": shown.position,
        "click": events.click.astype(np.int8),
        "conversion": pa.array(events.conversion.astype(np.int8), mask=~events.click),
        "conversion_time": pa.array(events.conversion_micros, mask=~events.conversion).cast(STAMP),
        "hide": events.hide.astype(np.int8),
    }
    return pa.table({name: columns[name] for name in LOG_COLUMNS})


def request_columns(
    population: Population,
    user: Ints,
    device: Ints,
    placement: Ints,
    history: Ints,
    user_requests: NDArray[np.int64],
    *,
    hour: int,
) -> dict[str, Any]:
    """What a log shows of user and context, but for the position, by column.

    Args:
        population: Users and ads.
        user: (n,) users.
        device: (n,) codes.
        placement: (n,) codes.
        history: (n, H) ads that the user clicked, newest first; -1 where there are fewer.
        user_requests: (n,) requests of the user so far.
        hour: Hours since the start of the log.
    """
    users = population.users
    history_ads, history_categories = _history_columns(history, population.ads)
    return {
        "user_id": user,
        "age": _text(users.age[user], names.AGES),
        "gender": _text(users.gender[user], names.GENDERS),
        "country": _text(users.country[user], names.COUNTRIES),
        "device": _text(device, names.DEVICES),
        "placement": _text(placement, names.PLACEMENTS),
        "hour": np.full(len(user), hour % 24, np.int32),
        "weekday": np.full(len(user), hour // 24 % 7, np.int32),
        "user_requests": user_requests,
        "history_ads": history_ads,
        "history_categories": history_categories,
    }


def ad_columns(
    ads: Ads, ad: Ints, click_rate: Floats, budget_left: Floats, *, hour: int
) -> dict[str, Any]:
    """What a log shows of ads, by column.

    Args:
        ads: All ads.
        ad: (n,) ads.
        click_rate: (n,) smoothed click rate of each so far.
        budget_left: (n,) share of the day's planned impressions that are left.
        hour: Hours since the start of the log.
    """
    return {
        "ad_id": ad,
        "campaign_id": ads.campaign[ad],
        "advertiser_id": ads.advertiser[ad],
        "category": ads.category[ad],
        "format": _text(ads.format[ad], names.FORMATS),
        "bid_micros": ads.bid_micros[ad],
        "price": ads.price[ad],
        "ad_age_days": np.float32(hour / 24) - ads.born[ad],
        "ad_click_rate": click_rate,
        "budget_left": budget_left,
    }


def users_table(users: Users) -> pa.Table:
    """What is known of every user; taste and readiness are not."""
    return pa.table(
        {
            "user_id": np.arange(len(users.age), dtype=np.int32),
            "age": _text(users.age, names.AGES),
            "gender": _text(users.gender, names.GENDERS),
            "country": _text(users.country, names.COUNTRIES),
            "usual_device": _text(users.device, names.DEVICES),
        }
    )


def ads_table(ads: Ads) -> pa.Table:
    """What is known of every ad; quality and appeal are not."""
    return pa.table(
        {
            "ad_id": np.arange(len(ads.category), dtype=np.int32),
            "campaign_id": ads.campaign,
            "advertiser_id": ads.advertiser,
            "category": ads.category,
            "format": _text(ads.format, names.FORMATS),
            "bid_micros": ads.bid_micros,
            "price": ads.price,
            "start_time": _day_times(ads.born),
            "end_time": _day_times(ads.dies),
        }
    )


def _history_columns(history: Ints, ads: Ads) -> tuple[pa.Array, pa.Array]:
    """Clicked ads and their categories, oldest first."""
    oldest_first = history[:, ::-1]
    known = oldest_first >= 0
    bounds = np.concatenate([[0], np.cumsum(known.sum(1))]).astype(np.int32)
    values = oldest_first[known]
    categories = ads.category[values]
    return (
        pa.ListArray.from_arrays(pa.array(bounds), pa.array(values)),
        pa.ListArray.from_arrays(pa.array(bounds), pa.array(categories)),
    )


def _day_times(days: Floats) -> pa.Array:
    micros = np.rint(days.astype(np.float64) * 24 * HOUR_MICROS).astype(np.int64)
    return pa.array(START_MICROS + micros, STAMP)


def _text(codes: Ints, labels: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(labels))
