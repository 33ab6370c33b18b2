"""Merged tables: right rows, sparse gradients, exact ids."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tamis.data.batch import Batch, Jagged
from tamis.data.schema import CategoricalInput, InputSpec, SequenceInput, Table, Task
from tamis.nn.embedding import (
    DenseSideTokens,
    EmbeddingTables,
    FieldTokens,
    FirstOrder,
    FlatInputs,
    GivenTable,
    OneHotInputs,
    give_rows,
)


@pytest.fixture
def two_fields() -> InputSpec:
    return InputSpec(
        numeric=("price",),
        categorical=(
            CategoricalInput(name="user", table="user"),
            CategoricalInput(name="item", table="item"),
        ),
        sequences=(SequenceInput(name="past", fields=("past",), tables=("item",), max_length=9),),
        tables=(Table(name="user", num_rows=3), Table(name="item", num_rows=4)),
        tasks=(Task(name="click"),),
    )


@pytest.fixture
def batch() -> Batch:
    return Batch(
        numeric=torch.tensor([[2.0], [-1.0]]),
        ids=torch.tensor([[2, 0], [1, 3]], dtype=torch.int32),
        labels=torch.zeros(2, 1),
        weights=torch.ones(2),
        sequences={
            "past": Jagged(
                values=torch.tensor([[1], [3], [3]], dtype=torch.int32),
                offsets=torch.tensor([0, 0, 3]),
            )
        },
    )


def _numbered(tables: EmbeddingTables) -> None:
    with torch.no_grad():
        tables.weight.copy_(torch.arange(tables.weight.numel()).view_as(tables.weight))


def test_lookup_reads_each_field_from_its_own_table(two_fields: InputSpec, batch: Batch) -> None:
    tables = EmbeddingTables(two_fields, 1)
    _numbered(tables)

    # Rows 0-2 are users, rows 3-6 items: item 0 is row 3, item 3 is row 6.
    assert tables.lookup(batch.ids)[..., 0].tolist() == [[2.0, 3.0], [1.0, 6.0]]


def test_pool_is_the_mean_of_a_history_and_zero_without_one(
    two_fields: InputSpec, batch: Batch
) -> None:
    tables = EmbeddingTables(two_fields, 1)
    _numbered(tables)

    # The second history holds items 1, 3, 3: rows 4, 6, 6, mean 16 / 3.
    pooled = tables.pool("past", batch.sequences["past"])[:, 0, 0]
    assert pooled.tolist() == pytest.approx([0.0, 16 / 3])
    assert tables.lookup_events("past", batch.sequences["past"])[:, 0, 0].tolist() == [4, 6, 6]


def test_gradient_holds_the_rows_of_the_batch_only(two_fields: InputSpec, batch: Batch) -> None:
    tables = EmbeddingTables(two_fields, 2)
    pooled = tables.pool("past", batch.sequences["past"])
    (tables.lookup(batch.ids).sum() + pooled.sum()).backward()

    gradient = tables.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    dense = gradient.to_dense()[:, 0]
    # Users 2 and 1 once; items 0 and 3 once; history adds 1/3 to item 1 and 2/3 to item 3.
    assert dense.tolist() == pytest.approx([0, 1, 1, 1, 1 / 3, 0, 1 + 2 / 3])


def test_lookup_is_exact_beyond_2_to_24() -> None:
    spec = InputSpec(
        numeric=(),
        categorical=(CategoricalInput(name="a", table="a"),),
        sequences=(),
        tables=(Table(name="a", num_rows=2**24 + 3),),
        tasks=(Task(name="click"),),
    )
    tables = EmbeddingTables(spec, 1, init_std=0.0)
    with torch.no_grad():
        tables.weight[2**24 + 1] = 7.0

    found = tables.lookup(torch.tensor([[2**24], [2**24 + 1], [2**24 + 2]], dtype=torch.int32))

    assert found.flatten().tolist() == [0.0, 7.0, 0.0]


def test_tokens_stand_in_the_promised_order(two_fields: InputSpec, batch: Batch) -> None:
    module = FieldTokens(two_fields, 1)
    _numbered(module.tables)
    with torch.no_grad():
        module.numeric_weight.fill_(10.0)
        module.numeric_bias.fill_(1.0)

    # user, item, pooled history, price * 10 + 1.
    assert module(batch)[0, :, 0].tolist() == [2.0, 3.0, 0.0, 21.0]
    assert module.num_tokens == 4


def test_flat_inputs_end_in_raw_numbers(two_fields: InputSpec, batch: Batch) -> None:
    module = FlatInputs(two_fields, 1)
    _numbered(module.tables)

    assert module(batch)[0].tolist() == [2.0, 3.0, 0.0, 2.0]
    assert module.out_dim == 4


def test_one_hot_inputs_have_a_column_for_every_table_row(
    two_fields: InputSpec, batch: Batch
) -> None:
    module = OneHotInputs(two_fields)
    first, second = module(batch).tolist()

    # Three users, four items, four items of the history, the price.
    assert first == [0, 0, 1, *(1, 0, 0, 0), *(0, 0, 0, 0), 2]
    # The second history is item 1 once and item 3 twice.
    assert second == pytest.approx([0, 1, 0, *(0, 0, 0, 1), *(0, 1 / 3, 0, 2 / 3), -1])
    assert module.out_dim == 12
    assert not list(module.parameters())


def test_dense_side_becomes_the_last_tokens(two_fields: InputSpec, batch: Batch) -> None:
    module = DenseSideTokens(two_fields, 2, hidden_units=(), num_dense_tokens=3)
    dense = module.dense
    assert dense is not None

    tokens = module(batch)

    assert tokens.shape == (2, 6, 2)
    assert torch.allclose(tokens[:, 3:].flatten(1), dense(batch.numeric))


def test_first_order_sums_the_weights_of_a_row(two_fields: InputSpec, batch: Batch) -> None:
    module = FirstOrder(two_fields)
    _numbered(module.tables)
    with torch.no_grad():
        module.numeric_weight.fill_(100.0)
        module.bias.fill_(0.5)

    # Row 1: 2 + 3 + 0 + 200 + 0.5; row 2: 1 + 6 + 16 / 3 - 100 + 0.5.
    assert module(batch)[:, 0].tolist() == pytest.approx([205.5, 12.8333333 - 100])


@pytest.fixture
def given(two_fields: InputSpec) -> InputSpec:
    """The same fields, of which the item's vectors are given."""
    user, item = two_fields.tables
    return replace(two_fields, tables=(user, replace(item, vectors=2)))


# Rows of items 0 to 3; their maps add both numbers, and take the first.
_ROWS = {"item": np.array([[0, 0], [1, 10], [2, 20], [3, 30]], np.float32)}
_MAP = torch.tensor([[1.0, 1.0], [1.0, 0.0]])


def _filled(module: nn.Module) -> None:
    give_rows(module, _ROWS)
    for part in module.modules():
        if isinstance(part, EmbeddingTables):
            _numbered(part)
        if isinstance(part, GivenTable):
            part.project.weight = nn.Parameter(_MAP[: part.project.out_features].clone())


def test_given_vectors_are_mapped_in_the_place_of_their_columns(
    given: InputSpec, batch: Batch
) -> None:
    tables = EmbeddingTables(given, 2)
    _filled(tables)
    past = batch.sequences["past"]

    assert tables.weight.shape == (3, 2), "users alone"
    # Users 2 and 1; items 0 and 3.
    assert tables.lookup(batch.ids).tolist() == [[[4, 5], [0, 0]], [[2, 3], [33, 3]]]

    def looked_up(*places: int) -> torch.Tensor:
        index = torch.tensor(places)
        return tables.lookup_columns(batch.ids, index, tables.columns_of(places))

    assert looked_up(1).tolist() == [[[0, 0]], [[33, 3]]]
    assert torch.equal(looked_up(1, 0), tables.lookup(batch.ids).flip(1))
    assert tables.lookup_events("past", past)[:, 0].tolist() == [[11, 1], [33, 3], [33, 3]]
    pooled = tables.pool("past", past)[:, 0].tolist()
    assert pooled == [[0, 0], pytest.approx([77 / 3, 7 / 3])]


def test_given_vectors_stay_and_their_map_is_learned(given: InputSpec, batch: Batch) -> None:
    tables = EmbeddingTables(given, 2)
    _filled(tables)
    pooled = tables.pool("past", batch.sequences["past"])
    (tables.lookup(batch.ids).sum() + pooled.sum()).backward()

    assert [name for name, _ in tables.named_parameters()] == ["weight", "given.0.project.weight"]
    assert tables.weight.grad is not None
    assert tables.weight.grad.is_sparse
    # Of each output the sum of what was read: item 3, and the mean of items 1, 3 and 3.
    total = [3 + 7 / 3, 30 + 70 / 3]
    gradient = tables.given[0].project.weight.grad
    assert gradient.tolist() == [pytest.approx(total)] * 2


def test_a_first_order_weight_of_given_vectors_starts_from_zero(
    given: InputSpec, batch: Batch
) -> None:
    module = FirstOrder(given)
    give_rows(module, _ROWS)
    assert module(batch).tolist() == [[0.0], [0.0]]

    _filled(module)
    # Users 2 and 1 have weights 2 and 1; items 0 and 3 0 and 33; the history 77 / 3.
    assert module(batch)[:, 0].tolist() == pytest.approx([2, 1 + 33 + 77 / 3])


def test_given_vectors_stand_as_they_are_beside_one_hot_columns(
    given: InputSpec, batch: Batch
) -> None:
    module = OneHotInputs(given)
    give_rows(module, _ROWS)

    assert module.out_dim == 3 + 2 + 2 + 1
    assert module(batch).tolist() == [
        [0, 0, 1, 0, 0, 0, 0, 2],
        [0, 1, 0, 3, 30, pytest.approx(7 / 3), pytest.approx(70 / 3), -1],
    ]


def test_vectors_that_were_never_given_are_no_numbers(given: InputSpec, batch: Batch) -> None:
    found = EmbeddingTables(given, 2).lookup(batch.ids)

    assert found[0].isfinite().all(), "row 0 needs no vector"
    assert found[1, 1].isnan().all()


def test_tables_take_over_rows_and_maps_of_another(given: InputSpec, batch: Batch) -> None:
    of_items = replace(
        given, categorical=given.categorical[1:], tables=given.tables[1:], numeric=()
    )
    theirs, ours = EmbeddingTables(given, 2), EmbeddingTables(of_items, 2)
    _filled(theirs)
    ours.copy_tables(theirs)

    assert torch.equal(ours.lookup(batch.ids[:, 1:]), theirs.lookup(batch.ids)[:, 1:])
