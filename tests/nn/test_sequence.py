"""Jagged events: alignment of groups, the merge of columns, recent events."""

import numpy as np
import pytest
import torch

from tamis.data.batch import Batch, Jagged
from tamis.data.schema import InputSpec, SequenceInput, Table, Task
from tamis.nn.embedding import EmbeddingTables
from tamis.nn.sequence import Events, EventVectors, HistoryTokens, last_events


def test_recent_events_come_newest_first_after_the_first_tokens() -> None:
    tokens = torch.arange(10.0).view(2, 5, 1)
    recent = last_events(tokens, torch.tensor([3, 1]), 2, first=2)

    # Row 0 has its events in places 2 to 4; row 1 has one, in place 2 (value 7).
    assert recent.squeeze(2).tolist() == [[4, 3], [7, 0]]


@pytest.fixture
def spec() -> InputSpec:
    """One group of two columns and one of a single column."""
    return InputSpec(
        numeric=(),
        categorical=(),
        sequences=(
            SequenceInput(
                name="views", fields=("item", "shop"), tables=("item", "shop"), max_length=9
            ),
            SequenceInput(name="buys", fields=("bought",), tables=("item",), max_length=9),
        ),
        tables=(Table(name="item", num_rows=6), Table(name="shop", num_rows=4)),
        tasks=(Task(name="click"),),
    )


@pytest.fixture
def batch() -> Batch:
    """Views of two, three and no events; buys of one, three and two."""
    views = torch.tensor([[1, 1], [2, 3], [3, 0], [4, 2], [5, 1]], dtype=torch.int32)
    buys = torch.tensor([[2], [5], [4], [3], [1], [2]], dtype=torch.int32)
    return Batch(
        numeric=torch.zeros(3, 0),
        ids=torch.zeros((3, 0), dtype=torch.int32),
        labels=torch.zeros(3, 1),
        weights=torch.ones(3),
        sequences={
            "views": Jagged(values=views, offsets=torch.tensor([0, 2, 5, 5])),
            "buys": Jagged(values=buys, offsets=torch.tensor([0, 1, 4, 6])),
        },
    )


@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_groups_are_aligned_at_their_recent_ends_and_merged(
    spec: InputSpec, batch: Batch, activation: str
) -> None:
    torch.manual_seed(0)
    tables = EmbeddingTables(spec, 2, init_std=1.0)
    module = EventVectors(spec, 2, mask_activation=activation)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    events = module(batch, tables)
    weight = tables.weight.detach().double().numpy()
    shop = 6  # first row of the shops

    def merged(view: tuple[int, int] | None, buy: int | None) -> np.ndarray:
        parts = np.zeros(4) if view is None else np.r_[weight[view[0]], weight[shop + view[1]]]
        s = np.r_[parts, np.zeros(2) if buy is None else weight[buy]]

        def linear(layer: torch.nn.Module, x: np.ndarray) -> np.ndarray:
            return layer.weight.detach().double().numpy() @ x + layer.bias.detach().numpy()

        mask = linear(module.mask.layers[0], s)
        mask = 1 / (1 + np.exp(-mask)) if activation == "sigmoid" else mask
        hidden = linear(module.merge.layers[0], s * mask)
        return linear(module.merge.layers[2], hidden / (1 + np.exp(-hidden)))

    # Row 0: the one buy happened with the second view; row 2 has no views.
    expected = [
        *(merged((1, 1), None), merged((2, 3), 2)),
        *(merged((3, 0), 5), merged((4, 2), 4), merged((5, 1), 3)),
        *(merged(None, 1), merged(None, 2)),
    ]
    assert events.offsets.tolist() == [0, 2, 5, 7]
    np.testing.assert_allclose(events.values.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("activation", "start"), [("none", 1.0), ("sigmoid", 0.0)])
def test_mask_of_events_starts_from_one_but_before_a_sigmoid_from_zero(
    spec: InputSpec, activation: str, start: float
) -> None:
    mask = EventVectors(spec, 2, mask_activation=activation).mask

    assert mask(torch.zeros(1, 6)).tolist() == [[start] * 6]


def test_a_single_column_may_stay_as_it_is_embedded(spec: InputSpec, batch: Batch) -> None:
    single = InputSpec(
        numeric=(), categorical=(), sequences=spec.sequences[1:], tables=spec.tables, tasks=()
    )
    tables = EmbeddingTables(single, 2, init_std=1.0)
    events = EventVectors(single, 2, merge_single=False)(batch, tables)

    rows = batch.sequences["buys"].values.squeeze(1).long()
    assert torch.equal(events.values, tables.weight[rows])


def test_events_are_counted_back_and_summed_by_row() -> None:
    values = torch.tensor([[1.0, 0.0], [2.0, 5.0], [4.0, -3.0]])
    events = Events(values=values, offsets=torch.tensor([0, 0, 2, 2, 3]))

    assert events.rows.tolist() == [1, 1, 3]
    assert events.ages.tolist() == [1, 0, 0]
    assert events.sum().tolist() == [[0, 0], [3, 5], [0, 0], [4, -3]]
    expected = torch.cat([values[:2].softmax(0), torch.ones(1, 2)])
    torch.testing.assert_close(events.softmax(), expected)


def test_softmax_of_large_scores_and_of_no_events_is_finite() -> None:
    events = Events(values=torch.tensor([[1e4], [-1e4]]), offsets=torch.tensor([0, 2, 2]))

    assert events.softmax().flatten().tolist() == [1.0, 0.0]
    empty = Events(values=torch.zeros(0, 1), offsets=torch.tensor([0, 0, 0]))
    assert empty.softmax().shape == (0, 1)


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_history_becomes_one_token_for_each_column(spec: InputSpec, kind: str) -> None:
    torch.manual_seed(0)
    tables = EmbeddingTables(spec, 4, init_std=1.0)
    views = torch.tensor([[1, 2], [3, 1], [5, 3]], dtype=torch.int32)
    batch = Batch(
        numeric=torch.zeros(2, 0),
        ids=torch.zeros(2, 0, dtype=torch.int32),
        labels=torch.zeros(2, 1),
        weights=torch.ones(2),
        sequences={
            "views": Jagged(values=views, offsets=torch.tensor([0, 2, 3])),
            "buys": Jagged(values=views[:1, :1], offsets=torch.tensor([0, 0, 1])),
        },
    )
    module = HistoryTokens(spec, 4, kind=kind)
    tokens = module(batch, tables)

    histories = [[[1, 3], [5]], [[2, 1], [3]], [[], [1]]]  # ids of each column, row by row
    assert tokens.shape == (2, 3, 4)
    for column, (rows, table) in enumerate(zip(histories, ("item", "shop", "item"), strict=True)):
        for row, ids in enumerate(rows):
            first = tables.first_row[table]
            events = tables.weight[[first + id_ for id_ in ids]]
            maker = module.makers[column]
            if kind == "mlp":
                padded = torch.cat([torch.zeros(9 - len(ids), 4), events]).flatten()
                expected = maker(padded)
            else:
                valid = torch.ones(1, max(1, len(ids)), dtype=torch.bool) & bool(ids)
                events = events if ids else torch.zeros(1, 4)
                expected = maker(events.unsqueeze(0), valid)[0, 0]
            assert torch.allclose(tokens[row, column], expected, atol=1e-6)


def test_a_history_longer_than_its_places_keeps_its_end(spec: InputSpec) -> None:
    torch.manual_seed(0)
    spec = InputSpec(
        numeric=(),
        categorical=(),
        sequences=(SequenceInput(name="buys", fields=("bought",), tables=("item",), max_length=2),),
        tables=spec.tables,
        tasks=spec.tasks,
    )
    tables = EmbeddingTables(spec, 4, init_std=1.0)
    module = HistoryTokens(spec, 4, kind="mlp")

    def token(ids: list[int]) -> torch.Tensor:
        values = torch.tensor(ids, dtype=torch.int32).unsqueeze(1)
        batch = Batch(
            numeric=torch.zeros(1, 0),
            ids=torch.zeros(1, 0, dtype=torch.int32),
            labels=torch.zeros(1, 1),
            weights=torch.ones(1),
            sequences={"buys": Jagged(values=values, offsets=torch.tensor([0, len(ids)]))},
        )
        return module(batch, tables)

    assert torch.equal(token([5, 1, 2]), token([1, 2]))
    assert not torch.equal(token([5, 1, 2]), token([2, 1]))
