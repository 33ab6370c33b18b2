"""Rows of a batch picked and put together, histories with them."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.data.batch import Batch, Jagged, blank_batch, concatenate
from tamis.data.schema import InputSpec


def _jagged(rows: list[list[int]]) -> Jagged:
    values = torch.tensor([value for row in rows for value in row], dtype=torch.int32)
    lengths = torch.tensor([0, *map(len, rows)])
    return Jagged(values=values.unsqueeze(1), offsets=lengths.cumsum(0))


def _rows(jagged: Jagged) -> list[list[int]]:
    bounds = jagged.offsets.tolist()
    values = jagged.values[:, 0].tolist()
    return [values[a:b] for a, b in pairwise(bounds)]


_HISTORIES = st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=6)


@given(_HISTORIES, st.data())
@settings(deadline=None)
def test_taken_histories_are_those_of_the_rows(rows: list[list[int]], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9))

    taken = _jagged(rows).take(torch.tensor(places, dtype=torch.int64))

    assert _rows(taken) == [rows[place] for place in places]
    assert taken.values.dtype == torch.int32


def _batch(first: int, rows: list[list[int]]) -> Batch:
    count = len(rows)
    return Batch(
        numeric=torch.full((count, 1), float(first)),
        ids=torch.arange(first, first + count, dtype=torch.int32).unsqueeze(1),
        labels=torch.zeros(count, 2),
        weights=torch.full((count,), first + 1.0),
        sequences={"past": _jagged(rows)},
    )


def test_concatenated_batches_stand_one_after_another() -> None:
    joined = concatenate([_batch(0, [[1, 2], []]), _batch(5, [[3]])])

    assert joined.ids[:, 0].tolist() == [0, 1, 5]
    assert joined.numeric[:, 0].tolist() == [0.0, 0.0, 5.0]
    assert joined.weights.tolist() == [1.0, 1.0, 6.0]
    assert joined.labels.shape == (3, 2)
    assert _rows(joined.sequences["past"]) == [[1, 2], [], [3]]


def test_taken_rows_bring_all_their_columns() -> None:
    whole = concatenate([_batch(0, [[1, 2], []]), _batch(5, [[3]])])

    taken = whole.take(torch.tensor([2, 0, 2]))

    assert taken.ids[:, 0].tolist() == [5, 0, 5]
    assert taken.numeric[:, 0].tolist() == [5.0, 0.0, 5.0]
    assert taken.weights.tolist() == [6.0, 1.0, 6.0]
    assert taken.labels.shape == (3, 2)
    assert _rows(taken.sequences["past"]) == [[3], [1, 2], [3]]


def test_row_that_is_not_there_cannot_be_taken() -> None:
    with pytest.raises(IndexError):
        _jagged([[1]]).take(torch.tensor([1]))


def test_rows_of_nothing_have_the_shapes_of_the_spec_and_no_label(spec: InputSpec) -> None:
    batch = blank_batch(spec, 3, torch.device("cpu"))

    assert not batch.ids.any()
    assert batch.ids.shape == (3, 2)
    assert batch.numeric.tolist() == [[0.0]] * 3
    assert batch.labels.isnan().all()
    assert batch.labels.shape == (3, 2)
    assert _rows(batch.sequences["past"]) == [[], [], []]
    assert batch.weights.tolist() == [1.0] * 3


def test_taken_rows_keep_all_their_columns() -> None:
    batch = concatenate([_batch(0, [[1, 2], []]), _batch(5, [[3]])])
    taken = batch.take(torch.tensor([2, 0, 2]))

    assert taken.ids[:, 0].tolist() == [5, 0, 5]
    assert taken.numeric[:, 0].tolist() == [5.0, 0.0, 5.0]
    assert taken.weights.tolist() == [6.0, 1.0, 6.0]
    assert taken.labels.shape == (3, 2)
    assert _rows(taken.sequences["past"]) == [[3], [1, 2], [3]]
