"""What stages keep: known answers, bounds, exactly 1 where nothing is lost, chunks alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.funnel import comparison
from tamis.funnel.comparison import Comparison, Kept

_VALUES = st.lists(st.floats(-5, 5), min_size=1, max_size=12)


def _of_one(values: list[float], survived: list[int], golden: list[int]) -> list[dict]:
    found = Comparison(len(golden))
    found.add(np.array(values), np.array(survived), golden)
    return [kept.plain for kept in found.summary()]


def test_known_measures_of_two_stages() -> None:
    # The first stage keeps 4, 2 and -3, the second 4 and -3; two ads are golden.
    first, second = _of_one([8.0, 4.0, 2.0, -3.0], [0, 2, 1, 2], [2, 2])

    # Of 8 and 4 the 4 is kept by both.
    assert first["recall"] == second["recall"] == 0.5
    # A negative value counts as 0: 4 + 2 + 0 of 8 + 4 + 2, and 4 + 0 of 8 + 4.
    assert first["soft_recall"] == pytest.approx(6 / 14)
    assert second["soft_recall"] == pytest.approx(4 / 12)
    # The best two that are left: 4 + 2, and 4 + 0.
    assert first["value_kept"] == pytest.approx(6 / 12)
    assert second["value_kept"] == pytest.approx(4 / 12)
    # The best ad dies in the first stage, which leaves 4 of 8; the second loses nothing more.
    assert (first["regret"], second["regret"]) == (0.5, 0.0)


@given(_VALUES, st.data())
@settings(deadline=None)
def test_measures_stay_in_their_bounds_and_regrets_add_up(
    values: list[float], data: st.DataObject
) -> None:
    count = len(values)
    survived = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    golden = data.draw(st.integers(1, count))

    stages = _of_one(values, survived, [golden] * 3)

    for stage in stages:
        assert all(found is None or 0 <= found <= 1 for found in stage.values())
    best = max(values)
    if best > 0:
        left = max([0.0, *(v for v, s in zip(values, survived, strict=True) if s == 3)])
        assert sum(stage["regret"] for stage in stages) == pytest.approx(1 - left / best)
    else:
        # Nothing is worth showing, so nothing can be lost.
        assert stages == [dict.fromkeys(comparison.MEASURES)] * 3


@given(_VALUES, st.data())
@settings(deadline=None)
def test_keeping_all_loses_nothing_and_keeping_none_everything(
    values: list[float], data: st.DataObject
) -> None:
    values[0] = 1.0
    golden = data.draw(st.integers(1, len(values)))

    every, none = _of_one(values, [1] * len(values), [golden, golden])

    # Ads of one value on both sides of the cut leave no ad golden.
    assert every["recall"] in (1.0, None)
    assert (every["soft_recall"], every["value_kept"], every["regret"]) == (1, 1, 0)
    assert none["recall"] in (0.0, None)
    assert (none["soft_recall"], none["value_kept"], none["regret"]) == (None, 0, 1)


@given(st.permutations(range(8)), st.lists(st.integers(0, 2), min_size=8, max_size=8))
@settings(deadline=None)
def test_order_of_the_ads_does_not_matter(order: list[int], survived: list[int]) -> None:
    values = np.array([3.0, -1, 0.1, 7, 0.3, 2, 0.7, 5])

    plain = _of_one(values.tolist(), survived, [3, 2])
    turned = _of_one(values[order].tolist(), np.array(survived)[order].tolist(), [3, 2])

    for first, second in zip(plain, turned, strict=True):
        assert first == pytest.approx(second, nan_ok=True)


def test_random_choice_recalls_its_share_of_the_golden_ads() -> None:
    generator = np.random.default_rng(0)
    found = Comparison(1)
    for _ in range(2000):
        survived = np.zeros(100, np.int64)
        survived[generator.permutation(100)[:20]] = 1
        # The 10 golden ads are worth a hair more, so that soft recall shows nothing of luck.
        found.add(1 + 1e-9 * (np.arange(100) < 10), survived, [10])

    kept = found.summary()[0].plain

    # 20 of 100; a recall's standard deviation is sqrt(0.2 * 0.8 / 10 * 80 / 99) = 0.114.
    assert kept["recall"] == pytest.approx(0.2, abs=4 * 0.114 / 2000**0.5)
    assert kept["soft_recall"] == pytest.approx(1, abs=1e-8)


def _many() -> Comparison:
    generator = np.random.default_rng(1)
    found = Comparison(2)
    for _ in range(50):
        count = int(generator.integers(1, 30))
        values = generator.normal(1, 1, count).round(1)
        found.add(values, generator.integers(0, 3, count), [4, 2])
    return found


@pytest.mark.parametrize("size", [1, 40, 300])
def test_chunks_do_not_matter_and_no_more_than_one_waits(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    whole = _many().summary()
    monkeypatch.setattr(comparison, "_CANDIDATES_AT_A_TIME", size)
    parts = _many()

    assert sum(len(request.worth) for request in parts._waiting) < size
    for found, expected in zip(parts.summary(), whole, strict=True):
        assert found.plain == pytest.approx(expected.plain)
        assert found.by_value == pytest.approx(expected.by_value)


def test_requests_count_by_their_value() -> None:
    found = Comparison(1)
    # Values of 3 and 1 kept of 4, and nothing of 12, whose negative ad counts for nothing.
    found.add(np.array([3.0, 1.0]), np.array([1, 1]), [1])
    found.add(np.array([12.0, -7.0]), np.array([0, 1]), [1])

    kept = found.summary()[0]

    assert kept.plain["recall"] == 0.5
    assert kept.by_value["recall"] == pytest.approx(4 / 16)
    assert kept.by_value["regret"] == pytest.approx(12 / 16)


def test_no_request_has_no_measure() -> None:
    nothing = dict.fromkeys(comparison.MEASURES)

    assert Comparison(1).summary() == (Kept(plain=nothing, by_value=nothing),)
