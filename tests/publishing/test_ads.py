"""Ads of a log with the bids of a table: row for row, and refusals of tables that do not fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tamis.data.columns import Origin, as_codes
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.ingest import ingest
from tamis.data.market import simulate
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import DataError
from tamis.publishing.ads import make_inventory
from tamis.publishing.recipe import AdsRecipe


@pytest.fixture(scope="module")
def data(market_world: Path) -> Dataset:
    return Dataset.open(market_world / "data")


def _table(market_world: Path) -> pa.Table:
    """The market's ads, with a way of billing and a quality for each."""
    ads = pq.read_table(market_world / "market" / "ads.parquet")
    number = ads["ad_id"].to_numpy()
    billing = np.array(["click", "conversion"])[number % 2]
    ads = ads.append_column("pays", pa.array(billing))
    return ads.append_column("worth", pa.array(number / 7 - 3))


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_ads_bid_what_their_row_says(
    market_world: Path, tmp_path: Path, data: Dataset, ending: str
) -> None:
    table, path = _table(market_world), tmp_path / f"ads.{ending}"
    # In another order than the log's.
    table = table.take(np.random.default_rng(0).permutation(table.num_rows))
    (pq.write_table if ending == "parquet" else pyarrow.csv.write_csv)(table, path)
    recipe = AdsRecipe(
        table=str(path),
        bid="bid_micros",
        bid_unit=1e-6,
        advertiser="advertiser_id",
        billing="pays",
        quality="worth",
    )

    found = make_inventory(recipe, data)

    def codes(name: str) -> list[int]:
        return as_codes(table[name].combine_chunks()).tolist()

    by_code = dict(zip(codes("ad_id"), table.to_pylist(), strict=True))
    owners = dict(zip(table["advertiser_id"].to_pylist(), codes("advertiser_id"), strict=True))
    ads = found.attributes
    for at, code in enumerate(found.codes.tolist()):
        row = by_code[code]
        assert ads.bid[at] == row["bid_micros"] * 1e-6
        assert ads.billing[at] == row["pays"]
        assert ads.quality[at] == pytest.approx(row["worth"], rel=1e-15)
        assert ads.advertiser[at] == owners[row["advertiser_id"]]
    assert len(set(ads.billing.tolist())) == 2


def test_ads_are_those_of_the_splits_and_popular_by_clicks(data: Dataset) -> None:
    found = make_inventory(AdsRecipe(splits=("train",)), data)

    split = data.split("train")
    item, clicks = split.role("item"), split.labels()[:, 0]
    assert item is not None
    assert sorted(found.codes.tolist()) == sorted(set(item.tolist()))
    for at in (0, 5, len(found) - 1):
        assert found.popularity[at] == clicks[item == found.codes[at]].sum()
    assert found.popularity.sum() == clicks.sum()
    both = make_inventory(AdsRecipe(), data)
    assert len(both) > len(found)


def test_ads_without_an_advertiser_compete(
    market_world: Path, tmp_path: Path, data: Dataset
) -> None:
    table = _table(market_world)
    owner = table["advertiser_id"].to_pylist()
    nobody = pa.array([None if at % 2 else name for at, name in enumerate(owner)])
    pq.write_table(table.append_column("owner", nobody), tmp_path / "ads.parquet")
    recipe = AdsRecipe(table=str(tmp_path / "ads.parquet"), bid="bid_micros", advertiser="owner")

    found = make_inventory(recipe, data)

    place = np.argsort(as_codes(table["ad_id"].combine_chunks()))
    codes = as_codes(table["ad_id"].combine_chunks())[place]
    is_alone = place[np.searchsorted(codes, found.codes)] % 2 == 1
    alone, owned = found.attributes.advertiser[is_alone], found.attributes.advertiser[~is_alone]
    assert len(set(alone.tolist())) == len(alone) > 1
    assert not set(alone.tolist()) & set(owned.tolist())
    assert len(set(owned.tolist())) < len(owned)


def test_rows_that_do_not_say_their_ad_are_of_none(tmp_path: Path) -> None:
    count = 400
    ads = [None if at % 3 == 0 else f"ad{at % 7}" for at in range(count)]
    rows = pa.table(
        {
            "ad": ads,
            "user": [f"user{at % 5}" for at in range(count)],
            "time": 1_700_000_000 + np.arange(count),
            "click": np.arange(count) % 2,
        }
    )
    pq.write_table(rows, tmp_path / "log.parquet")
    schema = Schema(
        fields=(
            Field(name="user", kind="categorical", side="user"),
            Field(name="ad", kind="categorical", side="item"),
        ),
        tasks=(Task(name="click"),),
        roles=Roles(time="time", item="ad"),
    )
    data = ingest(tmp_path / "log.parquet", tmp_path / "data", schema=schema)

    found = make_inventory(AdsRecipe(splits=("train",)), data)

    item, clicks = data.split("train").role("item"), data.split("train").labels()[:, 0]
    assert item is not None
    assert found.codes.tolist() == sorted(set(item[item >= 0].tolist()))
    assert found.popularity.tolist() == [clicks[item == code].sum() for code in found.codes]
    nowhere = rows.set_column(0, "ad", pa.nulls(count, pa.string()))
    pq.write_table(nowhere, tmp_path / "log.parquet")
    data = ingest(tmp_path / "log.parquet", tmp_path / "nowhere", schema=schema)
    with pytest.raises(DataError, match=r"splits 'train': some row must say which ad .* 'ad'"):
        make_inventory(AdsRecipe(splits=("train",)), data)


def test_ads_without_a_table_bid_alike_and_compete(data: Dataset) -> None:
    found = make_inventory(AdsRecipe(pays_for="conversion"), data).attributes

    assert set(found.bid.tolist()) == {1.0}
    assert set(found.billing.tolist()) == {"conversion"}
    assert len(set(found.advertiser.tolist())) == len(found)
    assert not found.quality.any()


def _refused(tmp_path: Path, data: Dataset, table: pa.Table, message: str, **settings: str) -> None:
    pq.write_table(table, tmp_path / "ads.parquet")
    recipe = AdsRecipe(table=str(tmp_path / "ads.parquet"), bid="bid_micros", **settings)
    with pytest.raises(DataError, match=message):
        make_inventory(recipe, data)


def test_tables_that_do_not_fit_are_refused(
    market_world: Path, tmp_path: Path, data: Dataset
) -> None:
    ads = _table(market_world)
    shown = make_inventory(AdsRecipe(), data).codes
    is_shown = np.isin(as_codes(ads["ad_id"].combine_chunks()), shown)
    fewer = ads.filter(pa.array(~is_shown | (np.cumsum(is_shown) > 3)))

    _refused(tmp_path, data, fewer, rf"none for 3 of {len(shown)}, such as that of row [\d,]+ of")
    twice = pa.concat_tables([ads, ads.slice(4, 1)])
    _refused(tmp_path, data, twice, rf"'ad_id', row {len(ads) + 1}: every ad must stand in one row")
    _refused(tmp_path, data, ads.drop_columns("bid_micros"), r"must hold column 'bid_micros', got")
    at = int(np.argmax(is_shown))
    for bid, got in ((-1.0, "-1"), (None, "none")):
        bids = ads["bid_micros"].cast(pa.float64()).to_pylist()
        bids[at] = bid
        # What ads bid that nobody shows does not matter.
        bids[int(np.argmin(is_shown))] = None
        wrong = ads.set_column(ads.column_names.index("bid_micros"), "bid_micros", [bids])
        message = rf"ads.parquet, column 'bid_micros', row {at + 1}: a bid must be .* got {got}\."
        _refused(tmp_path, data, wrong, message)
    _refused(tmp_path, data, ads.slice(0, 0), r"must hold ads, got a header only")
    _refused(tmp_path, data, ads, r"'ad_id', row \d+: must be 'click' or 'con", billing="ad_id")
    _refused(tmp_path, data, ads, r"must hold column 'owner', got ad_id", advertiser="owner")


def test_ads_without_a_bid_are_left_out_where_they_may_be(
    market_world: Path, tmp_path: Path, data: Dataset
) -> None:
    ads, shown = _table(market_world), make_inventory(AdsRecipe(), data)
    codes = as_codes(ads["ad_id"].combine_chunks())
    absent, unpaid, *_ = np.flatnonzero(np.isin(codes, shown.codes))
    bids = ads["bid_micros"].to_pylist()
    bids[unpaid] = None
    ads = ads.set_column(ads.column_names.index("bid_micros"), "bid_micros", [bids])
    pq.write_table(ads.filter(pa.array(np.arange(len(ads)) != absent)), tmp_path / "ads.parquet")
    recipe = AdsRecipe(table=str(tmp_path / "ads.parquet"), bid="bid_micros")

    found = make_inventory(replace(recipe, without_bid="leave_out"), data)

    of_log = replace(recipe, without_bid="leave_out", log=str(market_world / "market"))
    raw = make_inventory(of_log, data).raw
    assert raw is not None
    assert as_codes(raw["ad_id"].combine_chunks()).tolist() == found.codes.tolist()
    kept = ~np.isin(shown.codes, codes[[absent, unpaid]])
    assert found.codes.tolist() == shown.codes[kept].tolist()
    assert found.popularity.tolist() == shown.popularity[kept].tolist()
    for name, ids in found.rows.ids.items():
        assert ids.tolist() == shown.rows.ids[name][kept].tolist()
    with pytest.raises(DataError, match=r"set ads\.without_bid = 'leave_out'"):
        make_inventory(recipe, data)
    pq.write_table(ads.filter(pa.array(~np.isin(codes, shown.codes))), tmp_path / "ads.parquet")
    with pytest.raises(DataError, match="'ad_id': must hold the id of some ad that the log shows"):
        make_inventory(replace(recipe, without_bid="leave_out"), data)
    at = ads.column_names.index("bid_micros")
    unpaid = ads.set_column(at, "bid_micros", pa.nulls(len(ads), pa.int64()))
    pq.write_table(unpaid, tmp_path / "ads.parquet")
    with pytest.raises(DataError, match="'bid_micros': must hold a bid for some ad that the log"):
        make_inventory(replace(recipe, without_bid="leave_out"), data)


def test_ads_that_do_not_say_what_they_pay_for_pay_for_what_all_do(
    market_world: Path, tmp_path: Path, data: Dataset
) -> None:
    ads = _table(market_world)
    some = [None if at % 2 else "click" for at in range(len(ads))]
    pq.write_table(ads.append_column("by", pa.array(some)), tmp_path / "ads.parquet")
    recipe = AdsRecipe(
        table=str(tmp_path / "ads.parquet"), bid="bid_micros", billing="by", pays_for="conversion"
    )

    assert set(make_inventory(recipe, data).attributes.billing.tolist()) == {"click", "conversion"}


def test_folder_of_several_files_is_no_table(
    market_world: Path, tmp_path: Path, data: Dataset
) -> None:
    for name in "ab":
        pq.write_table(_table(market_world), tmp_path / f"{name}.parquet")

    with pytest.raises(DataError, match=r"must be one file of ads, got 2. Name the file"):
        make_inventory(AdsRecipe(table=str(tmp_path)), data)


def test_split_that_there_is_not_is_refused(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"must have a split 'later', got train, valid, test"):
        make_inventory(AdsRecipe(splits=("later",)), data)


def test_columns_of_the_log_are_those_that_the_features_were_encoded_from(
    market_world: Path, data: Dataset
) -> None:
    found = make_inventory(AdsRecipe(log=str(market_world / "market")), data)

    raw = found.raw
    assert raw is not None
    assert as_codes(raw["ad_id"].combine_chunks()).tolist() == found.codes.tolist()
    encoders = Encoders.load(data.encoders_path, data.schema)
    of_item = {item.source for item in data.schema.fields if item.side == "item"}
    assert set(raw.column_names) == of_item
    table = raw
    for item in data.schema.fields:
        if item.source not in of_item:
            table = table.append_column(item.source, pa.nulls(len(found)))
    again = encoders.encode(table, first_row=0, origin=Origin(file="raw"), inputs_only=True)
    for name, ids in found.rows.ids.items():
        assert again.ids[name].tolist() == ids.tolist()
    for name, numbers in found.rows.numeric.items():
        assert again.numeric[name].tolist() == numbers.tolist()


def test_other_log_than_the_datasets_is_refused(
    market_world: Path, tmp_path: Path, data: Dataset
) -> None:
    simulate(6000, tmp_path / "other", seed=5)

    with pytest.raises(DataError, match=r"'ad_id': must be the log that the dataset was made of"):
        make_inventory(AdsRecipe(log=str(tmp_path / "other")), data)


def test_shorter_log_than_the_datasets_is_refused(
    market_world: Path, tmp_path: Path, data: Dataset
) -> None:
    simulate(1000, tmp_path / "short", seed=4)

    with pytest.raises(DataError, match=r"'ad_id': must be the log that the dataset was made of"):
        make_inventory(AdsRecipe(log=str(tmp_path / "short")), data)
