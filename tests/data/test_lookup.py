"""Positions of strings in a list: exact, whatever is asked."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.data import lookup
from tamis.data.lookup import StringLookup
from tamis.errors import ArtifactError


@given(
    values=st.lists(st.text(), unique=True, max_size=30),
    others=st.lists(st.text(), max_size=30),
)
def test_positions_are_those_of_a_dictionary(values: list[str], others: list[str]) -> None:
    position = {value: index for index, value in enumerate(values)}

    found = StringLookup(pa.array(values, pa.string())).positions(
        pa.array(values + others, pa.string())
    )

    assert found.tolist() == [position.get(value, -1) for value in values + others]


def test_strings_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every string of one length gets one hash with seed 0, as a bad collision would.
    def colliding(values: pa.Array, *, seed: int = 0) -> np.ndarray:
        texts = values.to_pylist()
        if seed == 0:
            return np.array([len(text) for text in texts], np.uint64)
        return np.array([ord(text[0]) for text in texts], np.uint64)

    monkeypatch.setattr(lookup, "hash_strings", colliding)

    # With seed 1 "ax" meets the hash of "a", yet it is not in the list.
    assert StringLookup(pa.array(["a", "b"])).positions(pa.array(["b", "ax", "a"])).tolist() == [
        1,
        -1,
        0,
    ]


def test_list_with_a_string_twice_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"each category once, got 2 different ones among 3"):
        StringLookup(pa.array(["a", "b", "a"]))
