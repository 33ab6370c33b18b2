"""The best candidates: a plain sort's, whatever their order, ties without favour."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.data.hashing import hash_integers
from tamis.errors import DataError
from tamis.funnel.candidates import Candidates, order_of_best

# Few different scores, so that most of them are tied.
_SCORES = st.lists(st.integers(-2, 2), min_size=1, max_size=30)


def _sorted_slowly(ads: list[int], scores: list[int], seed: int) -> list[int]:
    """All ads by falling score; ties by rising hash."""
    ties = {ad: int(hash_integers(np.array([ad]), seed=seed)[0]) for ad in ads}
    pairs = sorted(zip(scores, ads, strict=True), key=lambda pair: (-pair[0], ties[pair[1]]))
    return [ad for _, ad in pairs]


@given(_SCORES, st.integers(0, 31), st.integers(0, 9))
@settings(deadline=None)
def test_best_are_the_first_of_a_sort(scores: list[int], keep: int, seed: int) -> None:
    ads = [3 * place + 1 for place in range(len(scores))]

    found = order_of_best(np.array(ads), np.array(scores, np.float64), keep, seed=seed)

    assert [ads[at] for at in found] == _sorted_slowly(ads, scores, seed)[:keep]


@given(_SCORES, st.integers(1, 31), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_candidates_does_not_matter(scores: list[int], keep: int, random: object) -> None:
    ads = np.arange(len(scores))
    values = np.array(scores, np.float64)
    candidates = Candidates(ads=ads, scores=values, predictions={"click": values / 10})
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]

    plain = candidates.best(keep, seed=4)
    shuffled = candidates.take(np.array(order)).best(keep, seed=4)

    assert plain.ads.tolist() == shuffled.ads.tolist()
    assert plain.predictions["click"].tolist() == shuffled.predictions["click"].tolist()


def test_ties_favour_no_ad_over_many_requests() -> None:
    ads, scores = np.arange(10), np.zeros(10)

    wins = np.bincount(
        [ads[order_of_best(ads, scores, 1, seed=seed)[0]] for seed in range(2000)], minlength=10
    )

    # 200 expected of each; the standard deviation of a count is sqrt(2000 * 0.1 * 0.9) = 13.4.
    assert np.abs(wins - 200).max() < 5 * 13.4


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match=r"candidates: click must be one for each of 2 ads"):
        Candidates(ads=np.arange(2), scores=np.zeros(2), predictions={"click": np.zeros(3)})


def test_runs_are_the_candidates_in_their_order() -> None:
    whole = Candidates(
        ads=np.array([5, 3, 9, 1]),
        scores=np.array([0.5, 0.25, 4.0, 1.0]),
        predictions={"click": np.array([0.1, 0.2, 0.3, 0.4])},
    )

    first, nobody, rest = whole.split([1, 0, 3])

    assert (first.ads.tolist(), len(nobody), rest.ads.tolist()) == ([5], 0, [3, 9, 1])
    assert rest.scores.tolist() == [0.25, 4.0, 1.0]
    assert rest.predictions["click"].tolist() == [0.2, 0.3, 0.4]
