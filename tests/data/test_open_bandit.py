"""The reader of Open Bandit: columns, places, the published rates."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.public_sets.open_bandit import ITEMS, POSITIONS, open_bandit_men
from tamis.errors import DataError


def test_columns_keep_their_meaning_and_places_count_from_zero(tmp_path: Path) -> None:
    table = {
        "item_id": [5, 33],
        "position": [3, 1],
        "click": [0, 1],
        "propensity_score": [0.25, 0.5],
        **{f"user_feature_{index}": [f"a{index}", f"b{index}"] for index in range(4)},
        **{f"user-item_affinity_{item}": [float(item), 0.0] for item in range(ITEMS)},
    }
    pq.write_table(pa.table(table), tmp_path / "bts.parquet")

    log = open_bandit_men(tmp_path, "bts")

    assert log.item.tolist() == [5, 33]
    assert log.position.tolist() == [2, 0]
    assert log.click.tolist() == [0.0, 1.0]
    assert log.propensity.tolist() == [0.25, 0.5]
    assert log.user_features.tolist() == [["a0", "a1", "a2", "a3"], ["b0", "b1", "b2", "b3"]]
    assert log.affinity.shape == (2, ITEMS)
    assert log.affinity[0].tolist() == list(range(ITEMS))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"random\.parquet: must exist"):
        open_bandit_men(tmp_path, "random")


def test_published_files_have_the_published_rates() -> None:
    root = os.environ.get("TAMIS_DATA")
    if not root:
        pytest.skip("TAMIS_DATA is not set: the public sets are not at hand")
    random, bts = (open_bandit_men(Path(root) / "open_bandit_men", p) for p in ("random", "bts"))
    # 10,000 rows each, click rates 0.46 % and 0.69 %.
    assert (random.click.sum(), bts.click.sum()) == (46, 69)
    assert (random.click.size, bts.click.size) == (10_000, 10_000)
    assert np.all(random.propensity == 1 / ITEMS)
    for log in (random, bts):
        assert np.unique(log.position).tolist() == list(range(POSITIONS))
        assert np.unique(log.item).tolist() == list(range(ITEMS))
