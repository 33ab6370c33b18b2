"""A part of the inputs: its columns in its order, its own table rows, and refusals."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from tamis.data.batch import Batch, Jagged
from tamis.data.dataset import EncodedRows
from tamis.data.encoders import Encoders
from tamis.data.inputs import InputSelection
from tamis.data.numeric import NumericEncoder
from tamis.data.schema import Field, Schema, Task
from tamis.data.vocabulary import Vocabulary
from tamis.errors import SchemaError

_FIELDS = {
    item.name: item
    for item in (
        Field(name="price", kind="numeric", side="item"),
        Field(name="age", kind="numeric", side="user"),
        Field(name="brand", kind="categorical", side="item"),
        Field(name="place", kind="categorical", encoding="hashing", num_buckets=9),
        Field(name="user", kind="categorical", side="user"),
        Field(name="seen", kind="sequence", side="user", shares="brand", group="past"),
        Field(name="where", kind="sequence", side="user", shares="place", group="past"),
    )
}
_ALL = tuple(_FIELDS)


def _encoders(
    fields: Sequence[str] = _ALL, *, brands: str = "abcd", mean: float = 1.5, **changes: Field
) -> Encoders:
    schema = Schema(
        fields=tuple(changes.get(name, _FIELDS[name]) for name in fields),
        tasks=(Task(name="click"),),
    )
    vocabularies = {
        "brand": Vocabulary(values=pa.array(list(brands)), num_rows=len(brands) + 1),
        "place": Vocabulary(values=None, num_rows=10),
        "user": Vocabulary(values=pa.array(["u", "v"]), num_rows=3),
    }
    numbers = {"transform": "standardise", "std": 2.0, "minimum": 0.0, "maximum": 9.0}
    return Encoders(
        schema=schema,
        vocabularies={name: vocabularies[name] for name in fields if name in vocabularies},
        numeric={
            name: NumericEncoder(mean=mean, **numbers)  # type: ignore[arg-type]
            for name in fields
            if schema.fields[list(fields).index(name)].kind == "numeric"
        },
    )


def _batch() -> Batch:
    return Batch(
        numeric=torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]),
        # brand, place, user
        ids=torch.tensor([[0, 7, 1], [2, 8, 2], [4, 9, 0]], dtype=torch.int32),
        labels=torch.zeros(3, 1),
        weights=torch.ones(3),
        sequences={
            "past": Jagged(
                values=torch.tensor([[4, 5], [1, 6], [3, 7]], dtype=torch.int32),
                offsets=torch.tensor([0, 1, 1, 3]),
            )
        },
    )


def test_columns_of_the_part_are_picked_in_its_order() -> None:
    part = _encoders(("user", "age", "where", "place"))
    before = _batch()

    found = InputSelection(_encoders(), part, where="early")(before)

    assert found.numeric.tolist() == [[10.0], [20.0], [30.0]]
    assert found.ids.tolist() == [[1, 7], [2, 8], [0, 9]]
    assert found.ids.dtype == torch.int32
    assert found.sequences["past"].values.tolist() == [[5], [6], [7]]
    assert found.sequences["past"].offsets.tolist() == [0, 1, 1, 3]
    assert found.labels is before.labels


def test_categories_get_the_rows_of_the_parts_own_table() -> None:
    # a, b, c, d are rows 1 to 4 of the whole; d, b are rows 1 and 2 of the part.
    select = InputSelection(_encoders(), _encoders(brands="db"), where="early")
    before = _batch()

    found = select(before)

    assert found.ids[:, 0].tolist() == [0, 2, 1]  # unknown, b, d
    assert found.sequences["past"].values[:, 0].tolist() == [1, 0, 0]  # d, a, c
    assert found.ids[:, 1:].tolist() == before.ids[:, 1:].tolist()
    assert before.ids[:, 0].tolist() == [0, 2, 4]  # as it was
    assert before.sequences["past"].values[:, 0].tolist() == [4, 1, 3]
    assert not select.changes_nothing


def test_fields_of_ads_are_encoded_as_the_part_does() -> None:
    rows = EncodedRows(
        row=np.arange(3),
        numeric={"price": np.array([1, 2, 3], np.float32)},
        ids={"brand": np.array([4, 0, 2], np.int32), "place": np.array([1, 2, 3], np.int32)},
    )

    part = _encoders(("brand", "user", "price"), brands="db")
    found = InputSelection(_encoders(), part, where="early").of_fields(rows)

    assert found.ids["brand"].tolist() == [1, 0, 2]
    assert found.ids["brand"].dtype == np.int32
    assert found.ids.keys() == {"brand"}
    assert found.numeric["price"].tolist() == [1, 2, 3]


def test_events_of_ads_are_encoded_as_the_part_does() -> None:
    words = (np.array([[4, 7], [2, 8], [1, 9]], np.int32), np.array([2, 0, 1]))
    rows = EncodedRows(row=np.arange(3), sequences={"past": words})

    part = _encoders(("brand", "where", "place", "seen"), brands="db")
    found = InputSelection(_encoders(), part, where="early").of_fields(rows).sequences["past"]

    assert found[0].tolist() == [[7, 1], [8, 2], [9, 0]]
    assert found[1].tolist() == [2, 0, 1]


def test_part_without_any_kind_of_input_has_empty_columns() -> None:
    found = InputSelection(_encoders(), _encoders(("user",)), where="early")(_batch())

    assert (found.numeric.shape, found.ids.shape, found.sequences) == ((3, 0), (3, 1), {})


def test_same_encoders_change_nothing_whatever_the_tasks() -> None:
    other = _encoders()
    other = replace(other, schema=replace(other.schema, tasks=(Task(name="purchase"),)))

    assert InputSelection(_encoders(), other, where="early").changes_nothing
    assert not InputSelection(_encoders(), _encoders(_ALL[::-1]), where="early").changes_nothing


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (_encoders(brands="abe"), r"early: table 'brand' must know every .* got none for 1 of 3"),
        (_encoders(mean=1.25), r"early: field 'price' must be encoded as in .* other numbers in"),
        (
            _encoders(brand=Field(name="brand", kind="categorical", side="user")),
            r"field 'brand' must be a category of the user in table .*, got a category of the item",
        ),
        (
            _encoders(age=Field(name="age", kind="numeric", side="context")),
            r"field 'age' must be a number of the context in the rows at hand, got a number of the",
        ),
        (
            _encoders(age=replace(_FIELDS["age"], transform="none", counts="seen")),
            r"'age' must be a number of the user that counts 'seen' in .*, got a number of the us",
        ),
        (
            _encoders(
                seen=replace(_FIELDS["seen"], max_length=3),
                where=replace(_FIELDS["where"], max_length=3),
            ),
            r"'seen' must be an event .* group 'past', 3 at most in the .* 'past', 50 at most",
        ),
    ],
)
def test_input_that_means_something_else_is_named(part: Encoders, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        InputSelection(_encoders(), part, where="early")


def test_field_that_the_whole_lacks_is_named() -> None:
    with pytest.raises(SchemaError, match=r"early: field 'user' must be a category .* no such fie"):
        InputSelection(_encoders(_ALL[:4]), _encoders(_ALL[:5]), where="early")


def test_table_hashed_otherwise_is_named() -> None:
    part = _encoders()
    other = {**part.vocabularies, "place": Vocabulary(values=None, num_rows=20)}

    with pytest.raises(SchemaError, match=r"table 'place' must be hashed alike, got 20 rows in"):
        InputSelection(_encoders(), replace(part, vocabularies=other), where="early")
