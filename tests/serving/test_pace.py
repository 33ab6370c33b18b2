"""Times of batches that were not seen yet, and batches that keep the budgets of their stages."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.serving.pace import Pace


@dataclass(frozen=True, slots=True)
class Took:
    name: str
    elapsed_ms: float
    fallback: str = ""


def test_line_through_two_sizes_says_what_the_others_take() -> None:
    pace = Pace({}, 8)
    assert pace.ms(8) == 0.0
    pace.observe(1, 9.0, ())
    # One size alone: in proportion.
    assert pace.ms(4) == pytest.approx(36.0)

    pace.observe(8, 30.0, ())

    # 6 ms once and 3 ms for each: 6 + 3 * 1 = 9, 6 + 3 * 8 = 30.
    assert [pace.ms(size) for size in (1, 4, 8)] == pytest.approx([9.0, 18.0, 30.0])


def test_newest_batches_count_most() -> None:
    pace = Pace({}, 8)
    for _ in range(50):
        pace.observe(1, 9.0, ())
        pace.observe(8, 30.0, ())
    for _ in range(50):
        pace.observe(1, 18.0, ())
        pace.observe(8, 60.0, ())

    assert pace.ms(8) == pytest.approx(60.0, rel=0.02)


@given(
    st.lists(
        st.tuples(st.integers(1, 16), st.floats(0.01, 1e4)),
        min_size=1,
        max_size=30,
    )
)
def test_larger_batches_never_seem_faster_nor_any_free(batches: list[tuple[int, float]]) -> None:
    pace = Pace({}, 16)
    for size, took_ms in batches:
        pace.observe(size, took_ms, ())

    times = [pace.ms(size) for size in range(1, 17)]

    assert all(before <= after for before, after in itertools.pairwise(times))
    assert times[0] >= 0
    assert min(took for _, took in batches) / 16 <= times[-1] + 1e-9


@pytest.mark.parametrize(
    ("ms_each", "room"),
    [
        (1.0, 8),  # eight take 8 ms of 40
        (4.0, 5),  # five take 20, half of 40
        (19.0, 1),
        (100.0, 1),  # even one is late: no batch would be in time
    ],
)
def test_room_keeps_half_of_the_tightest_budget(ms_each: float, room: int) -> None:
    pace = Pace({"early": 1000.0, "final": 40.0}, 8)
    for size in (1, 8):
        stages = (Took("retrieval", 1e6), Took("early", ms_each), Took("final", ms_each * size))
        pace.observe(size, 1.0, stages)

    assert pace.room == room


def test_stage_that_gave_up_says_nothing_of_its_time() -> None:
    pace = Pace({"final": 40.0}, 8)
    pace.observe(1, 1.0, (Took("final", 1.0),))
    for _ in range(20):
        pace.observe(8, 41.0, (Took("final", 40.0, fallback="took longer than 40 ms"),))

    assert pace.room == 8
    assert pace.ms(8) == pytest.approx(41.0, rel=0.1)
