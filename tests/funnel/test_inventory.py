"""The ads of a funnel: every column survives the disk, and columns that do not fit are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
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


def test_billing_without_a_meaning_is_refused() -> None:
    ads = replace(_inventory().attributes, billing=np.array(["click", "view", "click"]))

    with pytest.raises(DataError, match=r"billing must be one of .* got 'view' for ad 1"):
        replace(_inventory(), attributes=ads)


def test_columns_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    write_inventory(tmp_path, _inventory())
    (tmp_path / "ads.json").write_text('{"billing": ["click"], "sequences": []}')

    with pytest.raises(ArtifactError, match=r"must hold whole columns of ads, got index 1 is out"):
        read_inventory(tmp_path)
