"""A part of the inputs: its columns in its order, and refusals of another encoding."""

from dataclasses import replace

import pyarrow as pa
import pytest

from tamis.data.encoders import Encoders
from tamis.data.inputs import InputSelection, check_encoding, reads_the_same
from tamis.data.numeric import NumericEncoder
from tamis.data.schema import Field, Schema, Task
from tamis.data.vocabulary import Vocabulary
from tamis.errors import SchemaError
from tamis.testing.models import example_batch, example_spec

_WHOLE = example_spec(num_categorical=4)
_PART = replace(
    _WHOLE,
    numeric=("number1",),
    numeric_sides=("item",),
    categorical=(_WHOLE.categorical[3], _WHOLE.categorical[1]),
    sequences=(replace(_WHOLE.sequences[0], fields=("past1",), tables=("field1",)),),
    tables=(_WHOLE.tables[1], _WHOLE.tables[3]),
    tasks=(Task(name="other"),),
)


def test_columns_of_the_part_are_picked_in_its_order() -> None:
    batch = example_batch(_WHOLE, rows=5)

    found = InputSelection(_WHOLE, _PART)(batch)

    assert found.numeric.tolist() == batch.numeric[:, 1:].tolist()
    assert found.ids.tolist() == batch.ids[:, [3, 1]].tolist()
    assert found.ids.dtype == batch.ids.dtype
    history, before = found.sequences["history"], batch.sequences["history"]
    assert history.values.tolist() == before.values[:, 1:].tolist()
    assert history.offsets.tolist() == before.offsets.tolist()
    assert found.labels is batch.labels
    assert found.num_rows == 5


def test_part_without_any_kind_of_input_has_empty_columns() -> None:
    empty = replace(_PART, numeric=(), numeric_sides=(), categorical=(), sequences=(), tables=())

    found = InputSelection(_WHOLE, empty)(example_batch(_WHOLE, rows=5))

    assert (found.numeric.shape, found.ids.shape, found.sequences) == ((5, 0), (5, 0), {})


def test_same_inputs_are_told_from_others_whatever_the_tasks() -> None:
    assert reads_the_same(_WHOLE, replace(_WHOLE, tasks=(Task(name="other"),)))
    assert not reads_the_same(_WHOLE, _PART)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"numeric": ("numbr1",)},
            r"field 'numbr1' must be a number of the item in the rows at hand, got no such field",
        ),
        (
            {"numeric_sides": ("user",)},
            r"'number1' must be a number of the user in the rows .*, got a number of the item",
        ),
        (
            {"categorical": (replace(_WHOLE.categorical[1], table="field3"),)},
            r"'field1' must be a category of the item in table 'field3' .* in table 'field1'",
        ),
        (
            {"sequences": (replace(_WHOLE.sequences[0], max_length=3),)},
            r"'past0' must be an event .* group 'history', 3 at most in .* 'history', 5 at most",
        ),
        (
            {"tables": (replace(_WHOLE.tables[1], num_rows=7),)},
            r"table 'field1' must be of 7 rows, got 50",
        ),
    ],
)
def test_input_that_the_whole_lacks_is_named(changes: dict, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        InputSelection(_WHOLE, replace(_PART, **changes))


def _encoders(names: str = "abc", mean: float = 1.5, fields: int = 3) -> Encoders:
    schema = Schema(
        fields=(
            Field(name="price", kind="numeric"),
            Field(name="brand", kind="categorical"),
            Field(name="place", kind="categorical", encoding="hashing", num_buckets=9),
        )[:fields],
        tasks=(Task(name="click"),),
    )
    vocabularies = {
        "brand": Vocabulary(values=pa.array(list(names)), num_rows=len(names) + 1),
        "place": Vocabulary(values=None, num_rows=10),
    }
    numeric = NumericEncoder(transform="standardise", mean=mean, std=2.0, minimum=0.0, maximum=9.0)
    known = [item.name for item in schema.fields]
    return Encoders(
        schema=schema,
        vocabularies={name: vocabularies[name] for name in known if name in vocabularies},
        numeric={"price": numeric},
    )


def test_part_of_the_same_encoding_passes() -> None:
    check_encoding(_encoders(), _encoders(fields=2), where="stage 'early'")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (_encoders("acb"), r"stage 'early': field 'brand' must be encoded .* other categories in"),
        (_encoders(mean=1.25), r"stage 'early': field 'price' must be .* got other numbers in"),
        (_encoders("abcd"), r"stage 'early': table 'brand' must be of 5 rows, got 4"),
    ],
)
def test_other_encoding_is_named(part: Encoders, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        check_encoding(_encoders(), part, where="stage 'early'")


def test_field_that_the_whole_lacks_is_named() -> None:
    with pytest.raises(SchemaError, match=r"early: field 'place' must be a category of the cont"):
        check_encoding(_encoders(fields=2), _encoders(), where="early")
