"""Live ads: the bundle's and the store's, row for row, in every combination of the two."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tamis.data.columns import as_codes
from tamis.errors import ArtifactError, DataError
from tamis.funnel.bundle import Bundle, read_bundle
from tamis.serving.live import ServedBundle
from tamis.serving.live_ads import Catalogue, codes_of
from tamis.serving.records import StoredAd


@pytest.fixture(scope="module")
def bundle(bundles: Path) -> Bundle:
    return read_bundle(bundles / "first")


@pytest.fixture(scope="module")
def catalogue(bundle: Bundle) -> Catalogue:
    return Catalogue(bundle.blueprint)


def test_without_a_store_the_ads_are_the_bundles(bundle: Bundle, catalogue: Catalogue) -> None:
    found, expected = catalogue.live({}), bundle.blueprint.inventory

    assert found.inventory.codes is expected.codes
    assert found.inventory.rows is expected.rows
    assert codes_of(found.ids).tolist() == expected.codes.tolist()
    assert expected.raw is not None
    for row in (0, 7):
        raw = expected.raw.slice(row, 1).to_pylist()[0]
        (columns,) = found.columns(np.array([row]))
        assert columns["price"] == raw["price"]
        assert columns["ad_id"] == str(raw["ad_id"]) == found.ids[row]
        assert columns["format"] == raw["format"]


def test_ad_that_is_put_as_the_bundle_has_it_changes_no_feature(
    bundle: Bundle, catalogue: Catalogue
) -> None:
    before, inventory = catalogue.live({}), bundle.blueprint.inventory
    row = 11
    same = StoredAd(
        ad=before.ids[row],
        columns=before.columns(np.array([row]))[0],
        bid=float(inventory.attributes.bid[row]),
        billing="click",
        advertiser=str(before.columns(np.array([row]))[0]["advertiser_id"]),
        popularity=float(inventory.popularity[row]),
    )

    found = catalogue.live({same.ad: same})

    last = len(found) - 1
    assert (len(found), found.row_by_id[same.ad]) == (len(before), last)
    assert found.columns(np.array([last])) == before.columns(np.array([row]))
    assert found.inventory.codes[last] == inventory.codes[row]
    for name, ids in inventory.rows.ids.items():
        assert found.inventory.rows.ids[name][last] == ids[row]
    for name, numbers in inventory.rows.numeric.items():
        assert found.inventory.rows.numeric[name][last] == numbers[row]
    for name in ("bid", "billing", "advertiser", "quality"):
        ours, theirs = (
            getattr(found.inventory.attributes, name),
            getattr(inventory.attributes, name),
        )
        assert ours[last] == theirs[row]
    assert found.inventory.popularity[last] == inventory.popularity[row]
    # The others have moved up, each with all of its own.
    assert found.ids[row] == before.ids[row + 1]
    assert found.inventory.rows.ids["ad_id"][row] == inventory.rows.ids["ad_id"][row + 1]


def test_new_ads_are_beside_and_deleted_ones_are_gone(
    catalogue: Catalogue, make_ad: Callable[..., StoredAd]
) -> None:
    before = catalogue.live({})
    gone = before.ids[3]
    new = make_ad("brand new", columns={"price": 2.5, "format": "video", "of another": "bundle"})

    found = catalogue.live({"brand new": new, gone: None, "never was": None})

    assert set(found.ids) == {*before.ids, "brand new"} - {gone}
    row = found.row_by_id["brand new"]
    (columns,) = found.columns(np.array([row]))
    assert columns["price"] == 2.5
    assert columns["ad_id"] == "brand new"
    assert columns["category"] is None
    # No ad of the log was called so: row 0, as training has it for what it did not see.
    assert found.inventory.rows.ids["ad_id"][row] == 0
    assert found.inventory.attributes.bid[row] == 1 / 3
    assert found.inventory.attributes.advertiser[row] == codes_of(["x"])[0]
    # As popular as the bundle's ads on average, until somebody knows better.
    assert found.inventory.popularity[row] == before.inventory.popularity.mean()


def test_ad_without_an_advertisers_name_has_the_bundles_or_is_alone(
    catalogue: Catalogue, make_ad: Callable[..., StoredAd]
) -> None:
    before = catalogue.live({})
    known = before.ids[3]
    ads = {name: make_ad(name, advertiser=None) for name in (known, "new", "newer")}

    found = catalogue.live(ads | {"named": make_ad("named")})

    expected, advertisers = before.inventory.attributes, found.inventory.attributes.advertiser
    assert advertisers[found.row_by_id[known]] == expected.advertiser[3]
    alone = [advertisers[found.row_by_id[name]] for name in ("new", "newer")]
    assert all(np.count_nonzero(advertisers == code) == 1 for code in alone)
    assert found.advertisers == (None, None, None, "x")


@pytest.mark.parametrize(("price", "is_read"), [("3.5", True), ("dear", False)])
def test_ad_of_another_schema_is_read_or_named(
    catalogue: Catalogue, make_ad: Callable[..., StoredAd], price: str, *, is_read: bool
) -> None:
    ads = {"mine": make_ad("mine", columns={"price": price, "category": 4.0})}

    if is_read:
        (columns,) = (found := catalogue.live(ads)).columns(np.array([len(found) - 1]))
        assert (columns["price"], columns["category"]) == (3.5, "4")
    else:
        with pytest.raises(DataError, match=r"column 'price' of ad 'mine': must be a number, got"):
            catalogue.live(ads)


def test_all_ads_can_be_deleted(catalogue: Catalogue, bundle: Bundle) -> None:
    ids = catalogue.live({}).ids

    live = ServedBundle(bundle).live(dict.fromkeys(ids))

    assert len(live.ads) == 0
    assert live.funnel is None


def test_bundle_without_the_ads_columns_is_refused(bundle: Bundle) -> None:
    inventory = replace(bundle.blueprint.inventory, raw=None)

    with pytest.raises(ArtifactError, match=r"must hold the ids and columns of its ads to be serv"):
        Catalogue(replace(bundle.blueprint, inventory=inventory))


def test_codes_of_ids_are_those_of_a_logs_numbers() -> None:
    import pyarrow as pa

    assert codes_of(["7", "12"]).tolist() == as_codes(pa.array([7, 12])).tolist()
