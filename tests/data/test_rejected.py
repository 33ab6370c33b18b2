"""Which rejected candidates are drawn, and how likely."""

import numpy as np
import pytest

from tamis.data.rejected import sample_rejected
from tamis.errors import DataError


def _requests(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of requests 0, 1, ... in random order, with their ranks."""
    request = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.concatenate([np.arange(size) for size in sizes])
    order = np.random.default_rng(seed).permutation(len(rank))
    return request[order], rank[order]


def test_half_is_just_below_the_cut_and_half_from_all_further_down() -> None:
    request, rank = _requests([100, 60])
    sample = sample_rejected(request, rank, num_kept=10, per_request=7, seed=1)

    assert sample.rows.tolist() == sorted(set(sample.rows.tolist()))
    for number, size in enumerate((100, 60)):
        own = request[sample.rows] == number
        ranks, rates = rank[sample.rows][own], sample.sampling_rate[own]
        assert sorted(ranks)[:4] == [10, 11, 12, 13]
        assert (ranks >= 10).all()
        assert rates[ranks < 14].tolist() == [1.0] * 4
        # Three of those at 14 and below.
        assert rates[ranks >= 14] == pytest.approx([3 / (size - 14)] * 3)


@pytest.mark.parametrize(
    ("per_request", "numbers"), [(1, [0, 0, 1, 1, 1, 1]), (2, [0, 0, 1, 2, 2, 2]),
                                 (3, [0, 0, 1, 2, 3, 3]), (4, [0, 0, 1, 2, 4, 4])],
)  # fmt: skip
def test_rates_stand_for_every_rejected_candidate(per_request: int, numbers: list[int]) -> None:
    sizes = [5, 10, 11, 12, 14, 200]
    request, rank = _requests(sizes)
    sample = sample_rejected(request, rank, num_kept=10, per_request=per_request, seed=0)

    stands_for = np.bincount(request[sample.rows], 1 / sample.sampling_rate, minlength=len(sizes))
    assert stands_for == pytest.approx([max(0, size - 10) for size in sizes])
    drawn = np.bincount(request[sample.rows], minlength=len(sizes))
    assert drawn.tolist() == numbers


def test_single_draw_can_be_any_rejected_candidate() -> None:
    request, rank = _requests([20])
    drawn = {
        int(rank[sample_rejected(request, rank, num_kept=15, per_request=1, seed=seed).rows[0]])
        for seed in range(100)
    }

    # Each of the five is missed by 100 draws with a chance of 0.8^100, 2e-10.
    assert drawn == {15, 16, 17, 18, 19}


def test_weighted_sums_are_right_on_average() -> None:
    request, rank = _requests([40])
    worth = np.random.default_rng(5).random(40)
    rejected = rank >= 10
    totals = []
    for seed in range(2000):
        sample = sample_rejected(request, rank, num_kept=10, per_request=6, seed=seed)
        totals.append((worth[sample.rows] / sample.sampling_rate).sum())

    error = np.std(totals) / np.sqrt(len(totals))
    assert abs(np.mean(totals) - worth[rejected].sum()) < 4 * error
    assert np.std(totals) > 0.5  # else nothing was drawn at random


def test_same_seed_same_draw() -> None:
    request, rank = _requests([50, 50])
    first, again, other = (
        sample_rejected(request, rank, num_kept=5, per_request=6, seed=seed).rows.tolist()
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("rank", "options", "message"),
    [
        ([0, 1, 1], {}, r"must differ and count from 0, got 1 in request 7"),
        ([0, -1, 1], {}, r"must differ and count from 0, got -1 in request 7"),
        ([0, 1, 2], {"num_kept": 0}, r"must be at least 1, got 0 and 2"),
        ([0, 1, 2], {"per_request": 0}, r"must be at least 1, got 1 and 0"),
        ([0, 1], {}, r"columns of one length, got shapes \(3,\) and \(2,\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rank, options, message) -> None:
    settings = {"num_kept": 1, "per_request": 2, "seed": 0} | options
    with pytest.raises(DataError, match=message):
        sample_rejected(np.array([7, 7, 7]), np.array(rank), **settings)
