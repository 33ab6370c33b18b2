"""Joins against a loop over pairs, bit for bit, and what they read."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.data.batch import Jagged
from tamis.errors import DataError
from tamis.retrieval.inverted_index import InvertedIndex

_KEYS = 7


def _jagged(rows: list[list[int]]) -> Jagged:
    lengths = torch.tensor([0, *(len(row) for row in rows)])
    flat = [key for row in rows for key in row]
    return Jagged(
        values=torch.tensor(flat, dtype=torch.int32).view(-1, 1), offsets=lengths.cumsum(0)
    )


def _naive(
    item: list[int], keys: list[int], weights: np.ndarray, reduce: str
) -> tuple[np.ndarray, list[int]]:
    """Features of one pair in float32, key by key in the user's order; and the shared keys."""
    shared = [(key, w) for key, w in zip(keys, weights, strict=True) for k in item if k == key]
    if not shared:
        return np.zeros(weights.shape[1], np.float32), []
    if reduce == "max":
        return np.max([w for _, w in shared], axis=0), [key for key, _ in shared]
    total = np.zeros(weights.shape[1], np.float32)
    for _, w in shared:
        total = total + w
    return total, [key for key, _ in shared]


_ITEMS = st.lists(st.lists(st.integers(0, _KEYS - 1), max_size=5), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    _ITEMS,
    st.lists(st.integers(0, _KEYS - 1), max_size=9),
    st.sampled_from(["sum", "max"]),
    st.integers(0, 999),
)
def test_join_equals_a_loop_over_pairs_bit_for_bit(
    items: list[list[int]], keys: list[int], reduce: Literal["sum", "max"], seed: int
) -> None:
    # Numbers of very different size, so that another order of summation shows.
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(keys), 2, generator=generator)
    weights = weights * 10.0 ** torch.randint(-4, 5, weights.shape, generator=generator)
    index = InvertedIndex.build(_jagged(items), num_keys=_KEYS)
    joined = index.join(torch.tensor(keys, dtype=torch.int64), weights, reduce=reduce)
    everything = joined.at(torch.arange(len(items)))

    touched = []
    for place, item in enumerate(items):
        expected, shared = _naive(item, keys, weights.numpy(), reduce)
        np.testing.assert_array_equal(everything[place].numpy(), expected)
        if shared:
            row = len(touched)
            touched.append(place)
            start, stop = joined.keys.offsets[row : row + 2].tolist()
            assert joined.keys.values[start:stop, 0].tolist() == shared
    assert joined.items.tolist() == touched
    assert joined.num_postings == sum(item.count(key) for item in items for key in keys)


def test_counts_of_a_history_known_answer() -> None:
    # Items: 0 has keys 1 and 2, 1 has key 2, 2 has none, 3 has keys 0 and 1.
    index = InvertedIndex.build(_jagged([[1, 2], [2], [], [0, 1]]), num_keys=4)
    # Five visits of key 1 with mean rating 3, two of key 2 with mean rating 4.
    joined = index.join(torch.tensor([1, 2]), torch.tensor([[5.0, 3.0], [2.0, 4.0]]))

    assert joined.items.tolist() == [0, 1, 3]
    assert joined.features.tolist() == [[7.0, 7.0], [2.0, 4.0], [5.0, 3.0]]
    assert joined.at(torch.tensor([3, 2, 0])).tolist() == [[5.0, 3.0], [0.0, 0.0], [7.0, 7.0]]
    assert joined.keys.values.flatten().tolist() == [1, 2, 2, 1]
    assert joined.keys.offsets.tolist() == [0, 2, 3, 4]


def test_join_reads_the_postings_of_the_users_keys_and_no_others() -> None:
    # 100,000 items have key 0; three have key 1.
    rows = [[0]] * 100_000 + [[1]] * 3
    index = InvertedIndex.build(_jagged(rows), num_keys=2)
    rare = index.join(torch.tensor([1]), torch.ones(1, 1))

    assert rare.num_postings == 3
    assert rare.items.tolist() == [100_000, 100_001, 100_002]
    assert index.join(torch.tensor([0, 1]), torch.ones(2, 1)).num_postings == 100_003
    # All that a join makes is of the size of what it read.
    assert {len(rare.features), len(rare.keys.values), len(rare.keys.offsets) - 1} == {3}


def test_user_without_keys_shares_nothing() -> None:
    index = InvertedIndex.build(_jagged([[0], [1]]), num_keys=2)
    joined = index.join(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3))

    assert joined.at(torch.tensor([0, 1])).tolist() == [[0.0] * 3] * 2
    assert joined.num_postings == 0


@pytest.mark.parametrize("key", [-1, 2])
def test_unknown_keys_are_refused(key: int) -> None:
    with pytest.raises(DataError, match=rf"keys of attributes must be in \[0, 2\), got {key}"):
        InvertedIndex.build(_jagged([[0], [key]]), num_keys=2)
    index = InvertedIndex.build(_jagged([[0], [1]]), num_keys=2)
    with pytest.raises(DataError, match=rf"keys of user must be in \[0, 2\), got {key}"):
        index.join(torch.tensor([key]), torch.ones(1, 1))
