"""Inputs that may be known only after the label are doubted, and others are not."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.inference import infer_schema
from tamis.data.late_outcomes import is_named_like_an_outcome, value_of_one_label

COUNT = 2000
CLICK = (np.random.default_rng(0).random(COUNT) < 0.2).astype(np.int64)
RARE = (np.random.default_rng(1).random(COUNT) < 0.3).astype(np.int64)
FEW = np.random.default_rng(2).integers(0, 3, COUNT)


def _warnings(tmp_path: Path, **columns: Any) -> tuple[str, ...]:
    table = pa.table({"device": FEW, "click": CLICK, **columns})
    pq.write_table(table, tmp_path / "log.parquet")
    return infer_schema(tmp_path / "log.parquet", ["click"]).warnings


def test_conversion_beside_the_click_is_doubted(tmp_path: Path) -> None:
    conversion = CLICK * RARE

    (warning,) = _warnings(tmp_path, conversion=conversion)

    rows = int(conversion.sum())
    assert warning == (
        f"conversion: taken as an input, but its name is that of an outcome, and all {rows} rows "
        f"where it is '1' have label 1; if it is known only after the label, ingest with it under "
        f"[[ignored]] of the schema, or as a label of its own"
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (CLICK * RARE, "where it is '1' have label 1"),
        (CLICK * RARE * np.arange(COUNT), "where it is not 0 have label 1"),
        ([f"t{k}" if CLICK[k] * RARE[k] else None for k in range(COUNT)], "is not missing have la"),
        (np.where(CLICK, RARE, RARE * 9), "where it is '9' have label 0"),
    ],
    ids=["0 or 1", "amount", "time of it", "one value never"],
)
def test_value_of_one_label_is_doubted_whatever_the_name(
    tmp_path: Path, values: Any, said: str
) -> None:
    assert any(
        warning.startswith("x: ") and said in warning for warning in _warnings(tmp_path, x=values)
    )


def test_values_of_one_label_by_chance_are_not_doubted(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    shop = generator.integers(0, 50, COUNT)
    rare = np.where(np.arange(COUNT) < 25, "rare", "usual")
    click = np.where(np.arange(COUNT) < 25, 0, CLICK).astype(np.float64)

    assert _warnings(tmp_path, shop=shop, price=generator.lognormal(1, 1, COUNT)) == ()
    assert value_of_one_label(pa.array(rare), click) == ""


@pytest.mark.parametrize(
    ("name", "is_outcome"),
    [
        *((name, True) for name in ("conversion", "is_click", "purchase", "buy", "hide", "order")),
        *((name, True) for name in ("paid_amount", "watch_time", "Converted")),
        *((name, False) for name in ("orders_30d", "past_clicks", "click_rate", "order_id")),
        *((name, False) for name in ("device", "buyer", "border", "user_likes")),
    ],
)
def test_names_of_outcomes(name: str, is_outcome: bool) -> None:
    assert is_named_like_an_outcome(name) is is_outcome
