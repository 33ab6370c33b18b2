"""Ids: what is said where they may not be told apart."""

import pyarrow as pa
import pytest

from tamis.data.id_columns import id_doubts

LARGE = 2.0**53
SAID = (
    "it: holds whole numbers of 2^53 and more as floats, in which ids that differ may be one; "
    "write them as integers or texts"
)


@pytest.mark.parametrize(
    ("name", "column", "is_said"),
    [
        ("item_id", pa.array([3.0, LARGE, None]), True),
        ("past", pa.array([[], [3.0, -LARGE]]), True),
        ("item_id", pa.array([3.0, LARGE - 1]), False),
        ("item_id", pa.array([3.5, LARGE]), False),
        ("price", pa.array([3.0, LARGE]), False),
        ("item_id", pa.array([3, 2**62]), False),
    ],
    ids=["ids", "history", "small", "fractions", "numbers", "integers"],
)
def test_large_ids_in_floats_are_doubted(name: str, column: pa.Array, is_said: bool) -> None:
    said = SAID.replace("it:", f"{name}:")

    assert [*id_doubts(name, column)] == [said] * is_said
