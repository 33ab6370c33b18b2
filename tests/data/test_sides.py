"""What each side brings along, of a spec and of a batch."""

from dataclasses import replace

import torch

from tamis.data.schema import InputSpec
from tamis.data.sides import side_batch, side_spec, with_side
from tamis.testing.models import example_batch, example_spec


def _names(spec: InputSpec) -> tuple:
    return (
        spec.numeric,
        tuple(item.name for item in spec.categorical),
        tuple(group.name for group in spec.sequences),
        tuple(table.name for table in spec.tables),
    )


def test_spec_of_a_side_holds_its_inputs_and_their_tables() -> None:
    spec = example_spec()

    # The history's columns share the tables of field0 and field1.
    user = (("number0",), ("field0",), ("history",), ("field0", "field1"))
    assert _names(side_spec(spec, "user")) == user
    assert _names(side_spec(spec, "item")) == (("number1",), ("field1",), (), ("field1",))
    assert _names(side_spec(spec, "context")) == ((), ("field2",), (), ("field2",))


def test_numbers_without_sides_are_of_the_context() -> None:
    spec = replace(example_spec(), numeric_sides=())

    assert side_spec(spec, "context").numeric == ("number0", "number1")
    assert side_spec(spec, "user").numeric == ()


def test_numbers_of_a_side_keep_what_they_count() -> None:
    spec = replace(example_spec(), numeric_counts=("history", ""))

    assert side_spec(spec, "user").numeric_counts == ("history",)
    assert side_spec(spec, "item").numeric_counts == ("",)
    assert side_spec(spec, "context").numeric_counts == ()
    assert side_spec(replace(spec, numeric_counts=()), "user").numeric_counts == ()


def test_batch_of_a_side_holds_its_columns() -> None:
    spec = example_spec()
    batch = example_batch(spec, rows=4)

    user, item = (side_batch(batch, spec, side) for side in ("user", "item"))
    assert torch.equal(user.ids, batch.ids[:, :1])
    assert torch.equal(item.ids, batch.ids[:, 1:2])
    assert torch.equal(item.numeric, batch.numeric[:, 1:])
    assert list(user.sequences) == ["history"]
    assert not item.sequences
    assert torch.equal(user.labels, batch.labels)


def test_one_side_is_taken_from_other_rows_and_the_rest_stays() -> None:
    spec = example_spec()
    batch = example_batch(spec, rows=4)
    others = batch.take(torch.tensor([1, 2, 3, 0]))

    context, user = (with_side(batch, others, spec, side) for side in ("context", "user"))
    # field2 is of the context; field0, number0 and the history are the user's.
    assert torch.equal(context.ids[:, 2], others.ids[:, 2])
    assert torch.equal(context.ids[:, :2], batch.ids[:, :2])
    assert torch.equal(context.numeric, batch.numeric)
    assert context.sequences == batch.sequences
    assert torch.equal(user.ids[:, 0], others.ids[:, 0])
    assert torch.equal(user.ids[:, 1:], batch.ids[:, 1:])
    assert torch.equal(user.numeric[:, 0], others.numeric[:, 0])
    assert torch.equal(user.numeric[:, 1], batch.numeric[:, 1])
    assert user.sequences["history"] is others.sequences["history"]
    assert torch.equal(user.labels, batch.labels)
    assert not torch.equal(batch.ids[:, 2], others.ids[:, 2])
