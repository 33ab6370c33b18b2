"""The population stability index: known answers, what chance makes of it, and what is refused."""

import math

import numpy as np
import pytest

from tamis.errors import DataError
from tamis.evaluation import stability_index


def test_index_is_both_relative_entropies() -> None:
    # With half a row added the shares are (1/2, 1/4, 1/4) and (1/4, 1/4, 1/2):
    # (1/4 - 1/2) log(1/2) + 0 + (1/2 - 1/4) log 2 = log(2) / 2.
    found = stability_index([49.5, 24.5, 24.5], [12.0, 12.0, 24.5])

    assert found.value == pytest.approx(math.log(2) / 2)
    # Two degrees of freedom.
    assert found.expected == pytest.approx(2 / 98.5 + 2 / 48.5)
    assert (found.reference_rows, found.rows) == (98, 48)


def test_index_of_the_same_shares_is_nothing_and_has_no_direction() -> None:
    assert stability_index([10, 20, 30], [10, 20, 30]).value == 0.0
    one, other = [100, 7, 3], [20, 60, 30]
    assert stability_index(one, other).value == pytest.approx(stability_index(other, one).value)


def test_empty_bin_is_far_but_not_infinitely() -> None:
    few, many = (stability_index([n, n], [2 * n, 0]).value for n in (10, 1000))

    assert 1.0 < few < many < math.inf


def test_expectation_is_what_chance_makes_of_it() -> None:
    generator = np.random.default_rng(0)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    drawn = [
        stability_index(generator.multinomial(2000, shares), generator.multinomial(500, shares))
        for _ in range(2000)
    ]

    # Of three degrees of freedom the standard deviation is sqrt(6) / 3 of the mean: over 2,000
    # draws the mean is within 6 % in all but one of a thousand seeds.
    assert np.mean([item.value for item in drawn]) == pytest.approx(drawn[0].expected, rel=0.06)


@pytest.mark.parametrize(
    ("reference", "current", "message"),
    [
        ([1, 2], [1, 2, 3], r"both must have the same bins, two at least, got 2 and 3"),
        ([1], [1], r"both must have the same bins, two at least, got 1 and 1"),
        ([0, 0], [1, 2], r"reference must be counts of at least one row, got \[0.0, 0.0\]"),
        ([1, 2], [1, -2], r"current must be counts of at least one row, got \[1.0, -2.0\]"),
        ([1, 2], [1, math.nan], r"current must be counts of at least one row"),
        ([[1, 2]], [1, 2], r"reference must be counts of at least one row"),
    ],
)
def test_what_is_no_histogram_is_refused(
    reference: list[float], current: list[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        stability_index(reference, current)
