"""Rows of events: the same by both ways, on histories that are empty or not there at all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tamis.nn.event_rows import event_rows


@given(st.lists(st.integers(0, 4), max_size=9))
def test_both_ways_give_the_row_of_each_event(lengths: list[int]) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    expected = [row for row, length in enumerate(lengths) for _ in range(length)]

    assert event_rows(offsets, sum(lengths)).tolist() == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_exporting", lambda: True)
        assert event_rows(offsets, sum(lengths)).tolist() == expected
