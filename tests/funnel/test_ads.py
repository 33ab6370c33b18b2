"""Attributes of ads, and the total value taken apart for the auction."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tamis.errors import DataError
from tamis.funnel.ads import AdTable

_CLICK, _CONVERSION = 0, 1


class _Penalised:
    """``bid * p_click * p_conversion - 2 * p_hide``, ads billed by click without the conversion."""

    def score(
        self,
        predictions: Mapping[str, NDArray[np.float64]],
        bid: NDArray[np.float64],
        billing: NDArray[Any],
    ) -> NDArray[np.float64]:
        factor = np.where(billing == _CLICK, 1.0, predictions["conversion"])
        value: NDArray[np.float64] = bid * predictions["click"] * factor - 2 * predictions["hide"]
        return value


def _table(**changes: NDArray[Any]) -> AdTable:
    columns: dict[str, NDArray[Any]] = {
        "bid": np.array([1.0, 3.0, 40.0]),
        "billing": np.array([_CLICK, _CLICK, _CONVERSION]),
        "advertiser": np.array([5, 6, 7]),
        "quality": np.array([0.0, 0.5, 0.25]),
    }
    return AdTable(**(columns | changes))


_PREDICTIONS = {
    "click": np.array([0.5, 0.25]),
    "conversion": np.array([0.125, 0.5]),
    "hide": np.array([0.25, 0.0]),
}


def test_total_value_adds_the_ads_own_quality() -> None:
    found = _table().total_value(_Penalised(), _PREDICTIONS, np.array([2, 1]))

    # Ad 2 is billed by conversion: 40 * 0.5 * 0.125 - 2 * 0.25 + 0.25.
    # Ad 1 is billed by click: 3 * 0.25 + 0.5; its p_conversion does not count.
    assert found.tolist() == [2.25, 1.25]


def test_linear_value_is_the_total_value_taken_apart() -> None:
    rate, offset = _table().linear_value(_Penalised(), _PREDICTIONS, np.array([2, 1]))

    assert rate.tolist() == [0.0625, 0.25]  # p_click * p_conversion; p_click
    assert offset.tolist() == [-0.25, 0.5]  # 0.25 - 2 * 0.25; 0.5


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("bid", [1.0, -3.0, 0.0], r"AdTable.bid: must be finite and not negative, got -3.0 for"),
        ("bid", [1.0, 0.0, np.nan], r"got nan for ad 2"),
        ("quality", [np.inf, 0.0, 0.0], r"AdTable.quality: must be finite, got inf for ad 0"),
        ("advertiser", [1, 2], r"AdTable.advertiser: must be of shape \(3,\).* got \(2,\)"),
    ],
)
def test_attributes_without_meaning_are_refused(
    column: str, values: list[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _table(**{column: np.array(values)})
