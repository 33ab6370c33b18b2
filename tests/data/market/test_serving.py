"""Answers that the market cannot show are refused, with what is wrong; parts of answers merge."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tamis.data.market import CandidateScores, LiveRequests, Slates, merge_slates
from tamis.errors import DataError


def _ints(*rows: Any) -> np.ndarray:
    return np.array(rows, np.int32)


@pytest.fixture
def requests() -> LiveRequests:
    """Three requests, two places, ads 2, 5 and 9."""
    return LiveRequests(
        hour=7,
        slots=2,
        request_id=np.array([20, 21, 22]),
        user=_ints(4, 1, 4),
        time_micros=np.array([1, 2, 3]),
        features=pa.table({"user_id": [4, 1, 4]}),
        ad=_ints(2, 5, 9),
        ad_features=pa.table({"ad_id": [2, 5, 9]}),
    )


def _candidates(**changes: Any) -> CandidateScores:
    columns: dict[str, Any] = {
        "stages": ("early", "final"),
        "request": np.array([0, 0, 2]),
        "ad": _ints(2, 5, 9),
        "survived": np.array([2, 0, 1], np.int8),
        "scores": np.array([[1, 2], [0, np.nan], [3, 4]], np.float32),
        "predictions": {"click": np.array([0.5, np.nan, 0.25], np.float32)},
    }
    return CandidateScores(**(columns | changes))


_GOOD = _ints([2, -1], [9, -1], [-1, -1])


def test_answers_with_empty_places_at_the_end_pass(requests: LiveRequests) -> None:
    prices = np.array([[0.0, 1.5], [np.nan, -1.0], [np.nan, np.inf]])
    slates = Slates(
        ads=_GOOD, prices=prices, propensities=np.ones((3, 2)), candidates=(_candidates(),)
    )

    # Prices of empty places (-1, infinite) are not read; NaN says that none is set.
    slates.check(requests)
    assert requests.take(np.array([2, 0])).request_id.tolist() == [22, 20]
    assert requests.take(np.array([1])).features["user_id"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ads": _ints([2, 5])}, r"Slates\.ads: must be of shape \(3, 2\).*got \(1, 2\)"),
        ({"ads": _GOOD * 1.0}, "must be signed whole numbers, got float64"),
        ({"ads": _ints([2, 5], [3, -1], [4, 9])}, r"hour 7: ads must be alive, got ad 3 \(2 such"),
        ({"ads": _ints([2, 5], [9, -2], [-1, -1])}, "ads must be alive, got ad -2"),
        ({"ads": _ints([2, 5], [9, 9], [-1, -1])}, r"request 21: an ad must stand once.*\[9, 9\]"),
        ({"ads": _ints([2, 5], [9, -1], [-1, 2])}, r"request 22: empty places must be the last"),
        ({"prices": np.full((3, 2), -0.5)}, r"prices of hour 7: must be finite and not negative"),
        ({"prices": np.full((3, 2), np.inf)}, r"not negative, got inf \(2 such places\)"),
        ({"prices": np.ones((3, 3))}, r"Slates\.prices: must be of shape"),
        ({"propensities": np.zeros((3, 2))}, r"propensities of hour 7: must be in \(0, 1\], got 0"),
        ({"propensities": np.full((3, 2), 1.5)}, r"in \(0, 1\], got 1\.5"),
        ({"candidates": (_candidates(request=np.array([0, 0, 3])),)}, "a place from 0 to 2, got 0"),
        ({"candidates": (_candidates(ad=_ints(2, 4, 9)),)}, "candidates of hour 7.*got ad 4"),
        ({"candidates": (_candidates(ad=_ints(2, 5, -1)),)}, "candidates of hour 7.*got ad -1"),
        ({"candidates": (_candidates(ad=_ints(2, 2, 9)),)}, "stand once in a request, got 1 rep"),
        ({"candidates": (_candidates(), _candidates())}, "must stand in one part, got 20"),
        # Ad 5 of request 20 is shown and did not survive; survived and is not; is no candidate.
        ({"ads": _ints([2, 5], [9, -1], [-1, -1])}, r"request 20: .* must be .* shown, got \[2\]"),
        ({"ads": _ints([-1, -1], [9, -1], [-1, -1])}, r"request 20: .* must be .* got \[2\] for"),
        ({"ads": _ints([2, 9], [9, -1], [-1, -1])}, r"request 20: .* got \[2\] for \[2, 9\]"),
        ({"ads": _ints([2, -1], [9, -1], [9, -1])}, r"request 22: .* got \[\] for \[9, -1\]"),
    ],
)
def test_answer_that_cannot_be_shown_is_refused(
    requests: LiveRequests, changes: dict[str, Any], message: str
) -> None:
    slates = dataclasses.replace(Slates(ads=_GOOD, candidates=(_candidates(),)), **changes)

    with pytest.raises(DataError, match=message):
        slates.check(requests)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ad": _ints(1, 2)}, r"\.ad: must have a row for each of 3 candidates, got shape \(2,\)"),
        ({"predictions": {"hide": np.zeros(2, np.float32)}}, r"\.hide: must have a row for each"),
        ({"stages": ("one",)}, r"a column for each of the stages \('one',\)"),
        ({"stages": (), "scores": np.zeros((3, 0), np.float32)}, "at least one, got shape"),
        ({"survived": np.array([0, 3, 1], np.int8)}, "must lie in 0 to 2.*got 0 to 3"),
        ({"survived": np.array([0, -1, 1], np.int8)}, "must lie in 0 to 2.*got -1 to 1"),
    ],
)
def test_candidates_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _candidates(**changes)


def test_answers_of_two_policies_are_merged_request_by_request(requests: LiveRequests) -> None:
    first = Slates(ads=_ints([2, 5], [9, -1]), prices=np.array([[1.0, 2.0], [3.0, np.nan]]))
    part = _candidates(request=np.array([0, 0, 0]), survived=np.array([2, 2, 1], np.int8))
    second = Slates(ads=_ints([5, 2]), propensities=np.array([[0.25, 0.5]]), candidates=(part,))

    merged = merge_slates([(np.array([2, 0]), first), (np.array([1]), second)], requests)

    merged.check(requests)
    assert merged.ads.tolist() == [[9, -1], [5, 2], [2, 5]]
    assert merged.prices is not None
    assert merged.propensities is not None
    nan = np.nan
    np.testing.assert_array_equal(merged.prices, [[3, nan], [nan, nan], [1, 2]])
    np.testing.assert_array_equal(merged.propensities, [[nan, nan], [0.25, 0.5], [nan, nan]])
    assert [scores.request.tolist() for scores in merged.candidates] == [[1, 1, 1]]
