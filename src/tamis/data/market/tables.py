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
_STAMP = pa.timestamp("us", tz="UTC")


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
    users, ads, ad = population.users, population.ads, shown.ad
    history_ads, history_categories = _history_columns(shown.history, ads)
    columns: dict[str, Any] = {
        "impression_id": impression_id,
        "request_id": impression_id // slate,
        "event_time": pa.array(event_micros, _STAMP),
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
        "ad_age_days": np.float32(hour / 24) - ads.born[ad],
        "ad_click_rate": counters.ad_click_rate,
        "budget_left": counters.budget_left,
        "user_requests": counters.user_requests,
        "history_ads": history_ads,
        "history_categories": history_categories,
        "click": events.click.astype(np.int8),
        "conversion": pa.array(events.conversion.astype(np.int8), mask=~events.click),
        "conversion_time": pa.array(events.conversion_micros, mask=~events.conversion).cast(_STAMP),
        "hide": events.hide.astype(np.int8),
    }
    return pa.table(columns)


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
    return pa.array(START_MICROS + micros, _STAMP)


def _text(codes: Ints, labels: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(labels))
