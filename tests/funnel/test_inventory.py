"""The ads of a funnel: every column survives the disk, and columns that do not fit are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tamis.data.dataset import EncodedRows
from tamis.errors import ArtifactError, DataError
from tamis.funnel.ads import AdTable
from tamis.funnel.inventory import Inventory, read_inventory, write_inventory


def _inventory() -> Inventory:
    lengths = np.array([2, 0, 1])
    rows = EncodedRows(
        row=np.arange(3),
        # Columns of one array, as encoders hand them out.
        numeric=dict(zip("ab", np.arange(6, dtype=np.float32).reshape(2, 3) / 3, strict=True)),
        ids={"brand": np.array([5, 0, 2**31 - 1], np.int32)},
        sequences={"words": (np.array([[1, 4], [2, 5], [3, 6]], np.int32), lengths)},
    )
    return Inventory(
        codes=np.array([2**62, 7, 9]),
        attributes=AdTable(
            bid=np.array([1 / 3, 0.0, 1e300]),
            billing=np.array(["conversion", "click", "conversion"]),
            advertiser=np.array([1, 1, 2**40]),
            quality=np.array([-1 / 7, 0.0, 5e-324]),
        ),
        rows=rows,
        popularity=np.array([3.0, 1.0, 2.0]),
    )


def test_every_number_survives_the_disk(tmp_path: Path) -> None:
    first = _inventory()
    write_inventory(tmp_path, first)

    found = read_inventory(tmp_path)

    for name in ("codes", "popularity"):
        assert getattr(found, name).tolist() == getattr(first, name).tolist()
    for name in ("bid", "billing", "advertiser", "quality"):
        assert getattr(found.attributes, name).tolist() == getattr(first.attributes, name).tolist()
    assert found.rows.row.tolist() == [0, 1, 2]
    for name in ("numeric", "ids"):
        ours, theirs = getattr(found.rows, name), getattr(first.rows, name)
        assert ours.keys() == theirs.keys()
        for field, values in theirs.items():
            assert ours[field].tolist() == values.tolist()
            assert ours[field].dtype == values.dtype
    for ours, theirs in zip(found.rows.sequences["words"], first.rows.sequences["words"],
                            strict=True):  # fmt: skip
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.arange(4)}, r"codes must be one for each of 3 ads, got 4"),
        ({"popularity": np.ones(2)}, r"popularity must be one for each of 3 ads, got 2"),
        ({"rows": EncodedRows(row=np.arange(1))}, r"rows must be one for each of 3 ads, got 1"),
        ({"codes": np.array([3, 4, 3])}, r"codes must differ, got 3 of which 2 differ"),
    ],
)
def test_columns_of_other_ads_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(_inventory(), **changes)


def _two_more() -> Inventory:
    more = _inventory().without_ads(np.array([7]))
    attributes = replace(more.attributes, bid=np.array([0.5, 0.25]))
    return replace(more, codes=np.array([21, 20]), attributes=attributes)


def test_more_ads_stand_after_those_that_were_there() -> None:
    grown = _inventory().with_ads(_two_more())

    assert grown.codes.tolist() == [2**62, 7, 9, 21, 20]
    assert grown.attributes.bid.tolist() == [1 / 3, 0.0, 1e300, 0.5, 0.25]
    assert grown.attributes.advertiser.tolist() == [1, 1, 2**40, 1, 2**40]
    assert grown.popularity.tolist() == [3.0, 1.0, 2.0, 3.0, 2.0]
    assert grown.rows.row.tolist() == [0, 1, 2, 3, 4]
    assert grown.rows.ids["brand"].tolist() == [5, 0, 2**31 - 1, 5, 2**31 - 1]
    events, lengths = grown.rows.sequences["words"]
    assert events.tolist() == [[1, 4], [2, 5], [3, 6], [1, 4], [2, 5], [3, 6]]
    assert lengths.tolist() == [2, 0, 1, 2, 1]


def test_other_ads_move_up_when_some_are_removed() -> None:
    left = _inventory().without_ads(np.array([7]))

    assert left.codes.tolist() == [2**62, 9]
    assert left.attributes.quality.tolist() == [-1 / 7, 5e-324]
    assert left.attributes.billing.tolist() == ["conversion", "conversion"]
    assert left.rows.row.tolist() == [0, 1]
    assert left.rows.sequences["words"][0].tolist() == [[1, 4], [2, 5], [3, 6]]
    assert left.rows.sequences["words"][1].tolist() == [2, 1]
    assert left.popularity.tolist() == [3.0, 2.0]


def test_ads_come_once_and_go_once() -> None:
    first = _inventory()
    with pytest.raises(DataError, match=r"codes must differ, got 6 of which 3 differ"):
        first.with_ads(first)
    with pytest.raises(
        DataError, match=r"ads to remove must be there, got 1 of 2 that are not, .* 8"
    ):
        first.without_ads(np.array([9, 8]))


def test_more_ads_must_have_the_fields_of_the_others() -> None:
    poor = _two_more()
    poor = replace(poor, rows=replace(poor.rows, ids={}))

    with pytest.raises(DataError, match=r"rows must hold the item field 'brand' as the ads before"):
        _inventory().with_ads(poor)


def test_billing_without_a_meaning_is_refused() -> None:
    ads = replace(_inventory().attributes, billing=np.array(["click", "view", "click"]))

    with pytest.raises(DataError, match=r"billing must be one of .* got 'view' for ad 1"):
        replace(_inventory(), attributes=ads)


def test_columns_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    write_inventory(tmp_path, _inventory())
    (tmp_path / "ads.json").write_text('{"billing": ["click"], "sequences": []}')

    with pytest.raises(ArtifactError, match=r"must hold whole columns of ads, got index 1 is out"):
        read_inventory(tmp_path)


def test_columns_of_the_log_survive_the_disk(tmp_path: Path) -> None:
    raw = pa.table({"ad": [7, 8, 9], "words": [["a"], [], None], "price": [1.5, None, -2.0]})
    write_inventory(tmp_path, replace(_inventory(), raw=raw))

    assert read_inventory(tmp_path).raw.equals(raw)


def test_columns_of_the_log_of_other_ads_are_refused() -> None:
    with pytest.raises(DataError, match=r"raw must be one for each of 3 ads, got 2"):
        replace(_inventory(), raw=pa.table({"ad": [7, 8]}))


def test_damaged_columns_of_the_log_are_refused(tmp_path: Path) -> None:
    write_inventory(tmp_path, replace(_inventory(), raw=pa.table({"ad": [7, 8, 9]})))
    path = tmp_path / "raw.arrow"
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(ArtifactError, match=r"raw.arrow: must be whole columns of ads, got"):
        read_inventory(tmp_path)
