"""Columns and types of what is written, which others rely on."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tamis.data.market import MarketRules
from tamis.data.market.population import populate
from tamis.data.market.tables import ads_table, users_table


def test_columns_of_the_log_are_stable(log: pa.Table) -> None:
    types = {field.name: _plain(field.type) for field in log.schema}

    assert types == {
        "impression_id": "int64",
        "request_id": "int64",
        "event_time": "timestamp[us, tz=UTC]",
        "user_id": "int32",
        "age": "string",
        "gender": "string",
        "country": "string",
        "ad_id": "int32",
        "campaign_id": "int32",
        "advertiser_id": "int32",
        "category": "int32",
        "format": "string",
        "device": "string",
        "placement": "string",
        "position": "int32",
        "hour": "int32",
        "weekday": "int32",
        "bid_micros": "int64",
        "price": "float",
        "ad_age_days": "float",
        "ad_click_rate": "float",
        "budget_left": "float",
        "user_requests": "int64",
        "history_ads": "list<int32>",
        "history_categories": "list<int32>",
        "click": "int8",
        "conversion": "int8",
        "conversion_time": "timestamp[us, tz=UTC]",
        "hide": "int8",
    }


def test_truth_has_a_chance_per_task(truth: pa.Table) -> None:
    types = {field.name: str(field.type) for field in truth.schema}

    assert types == {
        "impression_id": "int64",
        "click": "double",
        "conversion": "double",
        "hide": "double",
    }


def test_log_agrees_with_the_inventory(market: Path, log: pa.Table) -> None:
    ads, users = pq.read_table(market / "ads.parquet"), pq.read_table(market / "users.parquet")
    assert ads["ad_id"].to_pylist() == list(range(600))
    assert users["user_id"].to_pylist() == list(range(1500))
    ad, user = log["ad_id"], log["user_id"]
    for name in ("campaign_id", "advertiser_id", "category", "format", "bid_micros", "price"):
        assert _decoded(ads[name].take(ad)).equals(_decoded(log[name])), name
    for name in ("age", "gender", "country"):
        assert _decoded(users[name].take(user)).equals(_decoded(log[name])), name


def test_usual_device_is_the_one_mostly_used(market: Path, log: pa.Table) -> None:
    usual = pq.read_table(market / "users.parquet")["usual_device"].take(log["user_id"])
    same = pc.equal(_decoded(usual), _decoded(log["device"])).to_numpy(zero_copy_only=False)

    # Four of five requests, and a quarter of the others by chance: 0.85.
    assert 0.83 < same.mean() < 0.87


def test_inventory_tells_nothing_that_only_the_truth_knows() -> None:
    population = populate(1000, MarketRules(), seed=0)

    assert users_table(population.users).column_names == [
        *("user_id", "age", "gender", "country", "usual_device")
    ]
    assert ads_table(population.ads).column_names == [
        *("ad_id", "campaign_id", "advertiser_id", "category", "format"),
        *("bid_micros", "price", "start_time", "end_time"),
    ]


def test_request_hour_and_weekday_follow_from_the_rows(log: pa.Table) -> None:
    rows = log["impression_id"].to_numpy()
    assert np.array_equal(rows, np.arange(300_000))
    assert np.array_equal(log["request_id"].to_numpy(), rows // 4)
    assert np.array_equal(log["position"].to_numpy(), rows % 4 + 1)
    times = log["event_time"].cast(pa.int64()).to_numpy()
    assert (np.diff(times) >= 0).all()
    hours = times // 3_600_000_000
    assert np.array_equal(log["hour"].to_numpy(), hours % 24)
    # 1970-01-01 was a Thursday: day 3 of a week that starts on Monday.
    assert np.array_equal(log["weekday"].to_numpy(), (hours // 24 + 3) % 7)


def _plain(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind):
        return f"list<{kind.value_type}>"
    return str(kind)


def _decoded(column: pa.ChunkedArray) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return column.cast(kind).combine_chunks()
