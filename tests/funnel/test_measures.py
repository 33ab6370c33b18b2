"""Measures of what is kept: known answers, bounds, and exactly 1 where nothing is lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.funnel.measures import golden_recall, soft_recall, top_regret, value_kept

_VALUES = st.lists(st.floats(-5, 5), min_size=1, max_size=12)


@given(_VALUES, st.data())
@settings(deadline=None)
def test_measures_stay_in_their_bounds(values: list[float], data: st.DataObject) -> None:
    column = np.array(values)
    size = data.draw(st.integers(1, len(values)))
    golden = np.zeros(len(values), np.bool_)
    golden[np.argsort(-column, kind="stable")[:size]] = True
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(values),
                                       max_size=len(values))))  # fmt: skip

    for measure in (golden_recall, soft_recall, value_kept, top_regret):
        found = measure(column, golden, kept)
        assert np.isnan(found) or 0 <= found <= 1
    everything = np.ones(len(values), np.bool_)
    assert golden_recall(column, golden, everything) == 1
    if (column > 0).any():
        assert value_kept(column, golden, golden) == value_kept(column, golden, everything) == 1
        assert soft_recall(column, golden, golden) == soft_recall(column, golden, everything) == 1
        assert top_regret(column, golden, everything) == 0
        assert value_kept(column, golden, ~everything) == 0
        assert top_regret(column, golden, ~everything) == 1


@given(st.permutations(range(8)), st.lists(st.booleans(), min_size=8, max_size=8))
@settings(deadline=None)
def test_order_of_the_ads_does_not_matter(order: list[int], kept: list[bool]) -> None:
    values = np.array([3.0, -1, 0.1, 7, 0.3, 2, 0.7, 5])
    golden, chosen = values >= 3, np.array(kept)

    for measure in (golden_recall, soft_recall, value_kept, top_regret):
        plain = measure(values, golden, chosen)
        turned = measure(values[order], golden[order], chosen[order])
        assert turned == plain or (np.isnan(turned) and np.isnan(plain))


def test_known_measures() -> None:
    values = np.array([8.0, 4.0, 2.0, -3.0])
    golden = np.array([True, True, False, False])
    kept = np.array([False, True, False, True])

    assert golden_recall(values, golden, kept) == 0.5
    # 4, and the ad of negative value as 0, of 8 + 4.
    assert value_kept(values, golden, kept) == pytest.approx(4 / 12)
    assert top_regret(values, golden, kept) == 0.5
    # The same 4 of the best two.
    assert soft_recall(values, golden, kept) == pytest.approx(4 / 12)
    # 4 + 2 of the best three: every ad kept counts, not the best two alone.
    kept = np.array([False, True, True, True])
    assert soft_recall(values, golden, kept) == pytest.approx(6 / 14)
    assert value_kept(values, golden, kept) == pytest.approx(6 / 12)


def test_request_whose_ads_are_all_worthless_cannot_tell() -> None:
    values, golden = np.array([-1.0, 0.0]), np.array([False, True])

    assert np.isnan(value_kept(values, golden, golden))
    assert np.isnan(soft_recall(values, golden, golden))
    assert np.isnan(top_regret(values, golden, golden))


def test_random_choice_of_equal_ads_recalls_its_share() -> None:
    generator = np.random.default_rng(0)
    values, golden = np.ones(100), np.arange(100) < 10

    found = [
        golden_recall(values, golden, np.isin(np.arange(100), generator.permutation(100)[:20]))
        for _ in range(2000)
    ]

    # 20 of 100; a recall's standard deviation is sqrt(0.2 * 0.8 / 10 * 80 / 99) = 0.114.
    assert np.mean(found) == pytest.approx(0.2, abs=4 * 0.114 / 2000**0.5)
