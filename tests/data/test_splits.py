"""Splits: what is said where times do not make three of them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tamis.data.splits import SplitConfig, split_by_time, time_bounds
from tamis.errors import DataError

START = 1_700_000_000_000_000  # 2023-11-14 22:13:20, in microseconds
RISING = START + np.arange(1, 1001)


def test_a_tenth_each_is_validated_and_tested_on_and_one_time_stays_together() -> None:
    times = np.array([1, 2, 3, 4, 5, 6, 7, 8, 8, 9])

    bounds = time_bounds(times, SplitConfig(by="time"))

    # Eight of ten rows would be for training, the eighth at the time of the ninth.
    assert bounds == (8, 9)
    assert split_by_time(times, bounds).tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("times", "test", "got"),
    [
        (np.r_[np.full(9000, START), RISING], 0.1, "9,000 of 10,000 rows at 2023-11-14T22:13:20."),
        (np.r_[RISING, np.full(9000, START)], 0.1, "9,000 of 10,000 rows at 2023-11-14T22:13:20."),
        (np.r_[RISING, np.full(500, START + 2000)], 0.1, "500 of 1,500 rows at 2023-11-14T22:13:2"),
        (np.full(50, START), 0.0, "50 of 50 rows at 2023-11-14T22:13:20."),
        (RISING[:3], 0.1, "3 rows, too few for these shares. Split by ratio."),
        (RISING[:1], 0.1, "1 rows, too few for these shares. Split by ratio."),
    ],
    ids=["early", "early ones last", "late", "no test", "three rows", "one row"],
)
def test_times_of_which_too_many_are_one_are_refused_with_their_number(
    times: NDArray[np.int64], test: float, got: str
) -> None:
    with pytest.raises(DataError, match=rf"rows of one time stay together, got {got}"):
        time_bounds(times, SplitConfig(by="time", test=test))
