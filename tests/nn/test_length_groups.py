"""Rows by length: padding and back, the order of rows, and cuts that no others beat."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from tamis.nn import length_groups
from tamis.nn.length_groups import LengthGroups


def _offsets(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)])


def test_padding_keeps_events_from_the_left_and_has_a_mask() -> None:
    groups = LengthGroups(_offsets(2, 0, 1), 3)
    (padded,) = groups.pad(torch.tensor([[1.0], [2], [3]]))

    assert groups.order.tolist() == [1, 2, 0]
    assert padded.squeeze(2).tolist() == [[0, 0], [3, 0], [1, 2]]
    assert groups.valid[0].tolist() == [[False, False], [True, False], [True, True]]


def test_padding_of_nothing_has_one_place_that_is_not_valid() -> None:
    groups = LengthGroups(_offsets(0, 0), 0)
    (padded,) = groups.pad(torch.zeros(0, 3))

    assert padded.shape == (2, 1, 3)
    assert not groups.valid[0].any()


def test_a_batch_without_rows_is_one_group_without_rows() -> None:
    groups = LengthGroups(_offsets(), 0)

    assert groups.pad(torch.zeros(0, 3))[0].shape == (0, 1, 3)
    assert groups.join(groups.split(torch.zeros(0, 2))).shape == (0, 2)


def test_padding_hands_gradients_back_to_every_event() -> None:
    values = torch.randn(4, 2, requires_grad=True)
    (padded,) = LengthGroups(_offsets(1, 3), 4).pad(values)
    (padded * torch.arange(12.0).view(2, 3, 2)).sum().backward()

    assert values.grad.tolist() == [[0, 1], [6, 7], [8, 9], [10, 11]]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12))
def test_groups_hold_every_row_and_event_once_and_lead_back(lengths: list[int], cost: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(length_groups, "_PLACES_PER_GROUP_ON_CPU", cost)
        groups = LengthGroups(_offsets(*lengths), sum(lengths))
    events = torch.arange(1.0, sum(lengths) + 1).unsqueeze(1)
    rows = torch.arange(float(len(lengths)))
    padded = groups.pad(events)

    assert torch.equal(groups.flat(padded), events)
    assert torch.equal(groups.join(groups.split(rows)), rows)
    expected = iter(events.squeeze(1).split(lengths)[row] for row in groups.order)
    for part, valid in zip(padded, groups.valid, strict=True):
        assert valid.shape[1] == max(1, int(valid.sum(1).max()))
        assert not part[~valid].any()
        for place in range(len(part)):
            assert torch.equal(part[place, valid[place], 0], next(expected))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9).map(sorted), st.integers(0, 12))
def test_no_other_cuts_cost_less(ordered: list[int], cost: int) -> None:
    def total(cuts: list[tuple[int, int]]) -> int:
        return sum((end - start) * max(1, ordered[end - 1]) + cost for start, end in cuts)

    found = length_groups._cheapest_cuts(ordered, cost)

    assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]
    assert (found[0][0], found[-1][1]) == (0, len(ordered))
    inner = range(1, len(ordered))
    for count in range(len(ordered)):
        for places in itertools.combinations(inner, count):
            bounds = [0, *places, len(ordered)]
            assert total(found) <= total(list(itertools.pairwise(bounds)))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_model_that_is_exported_has_one_group_in_the_order_of_its_rows(lengths: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_exporting", lambda: True)
        groups = LengthGroups(_offsets(*lengths), sum(lengths))
    events = torch.arange(1.0, sum(lengths) + 1).unsqueeze(1)
    rows = torch.arange(float(len(lengths)))

    (padded,), (valid,) = groups.pad(events), groups.valid
    assert padded.shape == (len(lengths), max(2, *lengths, 0), 1)
    assert valid.sum(1).tolist() == lengths
    assert torch.equal(padded[valid], events)
    assert not padded[~valid].any()
    assert torch.equal(groups.flat([padded]), events)
    assert torch.equal(groups.join(groups.split(rows)), rows)
