"""Counts of pairs against a loop over pairs, bit for bit, and what they cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tamis.data.batch import Jagged
from tamis.data.schema import CategoricalInput, InputSpec, SequenceInput, Table
from tamis.retrieval.inverted_index import PairCount, pair_counts

_COUNT = PairCount(number=0, group="past", event=1, category=0)


def _jagged(rows: Sequence[Sequence[int]]) -> Jagged:
    """Events whose second column is given; the first one is of something else."""
    lengths = torch.tensor([0, *(len(row) for row in rows)])
    flat = [(9 - key, key) for row in rows for key in row]
    return Jagged(values=torch.tensor(flat).view(-1, 2).int(), offsets=lengths.cumsum(0))


def _met(past: Sequence[int], category: int) -> int:
    """Of one pair, event by event; category 0 is out of vocabulary."""
    return sum(1 for event in past if event == category and category != 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), max_size=9), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8)), max_size=30),
)
def test_counts_equal_a_loop_over_pairs_bit_for_bit(
    pasts: list[list[int]], pairs: list[tuple[int, int]]
) -> None:
    pairs = [(row % len(pasts), category) for row, category in pairs]
    rows, categories = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)

    found = _COUNT.of(_jagged(pasts), rows, categories)

    assert found.dtype == torch.float32
    expected = [_met(pasts[row], category) for row, category in pairs]
    assert torch.equal(found, torch.tensor(expected, dtype=torch.float32).log1p())


@pytest.mark.parametrize("users", [1, 7])
def test_one_call_of_many_pairs_equals_a_call_for_each(users: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pasts = [torch.randint(9, (40,), generator=generator).tolist() for _ in range(users)]
    rows = torch.randint(users, (500,), generator=generator)
    categories = torch.randint(12, (500,), generator=generator)

    together = _COUNT.of(_jagged(pasts), rows, categories)

    for at in range(0, 500, 7):
        alone = _COUNT.of(_jagged([pasts[rows[at]]]), torch.tensor([0]), categories[at : at + 1])
        # Logarithms of a vector may be rounded otherwise than that of a single number.
        assert alone.item() == pytest.approx(together[at].item(), rel=1e-6)
    assert len(together.unique()) > 3


class _Recorded(TorchDispatchMode):
    """Counts calls of operators, and the elements of the largest tensor that one returned."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.largest = 0, 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls += 1
        for one in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.numel())
        return found


def _cost(events: int, pairs: int) -> _Recorded:
    past = _jagged([[1 + at % 50 for at in range(events)]])
    with _Recorded() as recorded:
        _COUNT.of(past, torch.zeros(pairs, dtype=torch.int64), 1 + torch.arange(pairs) % 70)
    return recorded


def test_no_event_is_compared_with_each_pair() -> None:
    few, many = _cost(100, 80), _cost(3000, 4000)

    # As many operators, and nothing of the size of events times pairs, or of all categories.
    assert many.calls == few.calls
    assert many.largest <= 2 * 4000


def test_fields_that_count_are_found_among_the_inputs() -> None:
    spec = InputSpec(
        numeric=("age", "same_brand", "same_kind"),
        numeric_counts=("", "past_brand", "past_kind"),
        categorical=tuple(
            CategoricalInput(name=name, table=name, side="item")
            for name in ("item", "kind", "brand")
        ),
        sequences=(
            SequenceInput(
                name="past", fields=("past_kind", "past_brand"), tables=("kind", "brand"),
                max_length=9, side="user",
            ),
        ),
        tables=tuple(Table(name=name, num_rows=5) for name in ("item", "kind", "brand")),
        tasks=(),
    )  # fmt: skip

    assert pair_counts(spec) == (
        PairCount(number=1, group="past", event=1, category=2),
        PairCount(number=2, group="past", event=0, category=1),
    )
