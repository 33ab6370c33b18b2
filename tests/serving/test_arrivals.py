"""A count of those who came of late."""

import math

import pytest

from tamis.serving.arrivals import Arrivals


def test_who_came_is_forgotten_by_and_by() -> None:
    arrivals = Arrivals()
    assert arrivals.counted(5.0, 2.0) == 0.0

    arrivals.add(10.0, 2.0)
    arrivals.add(13.0, 2.0)

    expected = math.exp(-2.0) + math.exp(-0.5)
    assert arrivals.counted(14.0, 2.0) == pytest.approx(expected)
    # To look changes nothing.
    assert arrivals.counted(14.0, 2.0) == pytest.approx(expected)


def test_who_comes_evenly_counts_as_often_as_they_come_in_the_time_of_memory() -> None:
    arrivals = Arrivals()
    for number in range(5000):
        arrivals.add(number / 300, 0.05)

    assert arrivals.counted(4999.5 / 300, 0.05) == pytest.approx(300 * 0.05, rel=1e-3)


def test_threads_that_are_late_take_nothing_back() -> None:
    arrivals = Arrivals()
    arrivals.add(3.0, 1.0)
    arrivals.add(2.9, 1.0)

    assert arrivals.counted(3.0, 1.0) == 2.0
