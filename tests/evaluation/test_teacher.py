"""A teacher that saw the labels is found, and one that did not is not accused."""

import math

import numpy as np
import pytest

from tamis.errors import DataError
from tamis.evaluation.loss import normalised_entropy
from tamis.evaluation.teacher import check_teacher

_PER_REQUEST = 5


def _impressions(
    requests: int, seed: int, *, mistakes_mood: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and requests; impressions of a request share their mood."""
    rng = np.random.default_rng(seed)
    mood = np.repeat(rng.normal(0, 1, requests), _PER_REQUEST)
    truth = 1 / (1 + np.exp(2 - mood - rng.normal(0, 0.5, mood.size)))
    labels = (rng.random(mood.size) < truth).astype(float)
    if mistakes_mood:
        truth = 1 / (1 + np.exp(2 + mood))
    return labels, truth, np.repeat(np.arange(requests), _PER_REQUEST)


def test_teacher_that_never_saw_the_labels_is_clean() -> None:
    verdicts = [
        check_teacher(_impressions(2000, seed), _impressions(2000, seed + 100)).is_clean
        for seed in range(20)
    ]
    assert all(verdicts)


def test_teacher_that_saw_the_labels_is_not_clean() -> None:
    labels, truth, requests = _impressions(2000, 0)
    # A tenth of the way to the labels, as a model fitted to these very rows goes.
    seen = 0.9 * truth + 0.1 * labels
    check = check_teacher((labels, seen, requests), _impressions(2000, 1))

    assert not check.is_clean
    assert check.log_ne < check.held_out_ne
    assert check.lower > 0.005


def test_figures_are_the_two_nes() -> None:
    log, held_out = _impressions(500, 2), _impressions(400, 3)
    check = check_teacher(log, held_out)

    assert check.log_ne == pytest.approx(normalised_entropy(*log[:2]).value)
    assert check.held_out_ne == pytest.approx(normalised_entropy(*held_out[:2]).value)
    assert check.difference == pytest.approx(check.held_out_ne - check.log_ne)
    assert check.lower < check.difference < check.upper


def test_interval_is_as_wide_as_draws_of_whole_requests_spread() -> None:
    differences, widths = [], []
    for seed in range(300):
        # Who takes the mood for its contrary errs alike in all rows of a request.
        check = check_teacher(
            _impressions(300, seed, mistakes_mood=True),
            _impressions(300, 1000 + seed, mistakes_mood=True),
            confidence=0.6827,
        )
        differences.append(check.difference)
        widths.append((check.upper - check.lower) / 2)
    # One standard deviation; 300 draws know it to 4 % at one sigma, and rows are 37 % less.
    assert np.mean(widths) == pytest.approx(np.std(differences), rel=0.12)


@pytest.mark.parametrize("requests", [2, 4, 10])
def test_few_requests_accuse_nobody(requests: int) -> None:
    accused = 0
    for seed in range(400):
        log, held_out = (_impressions(requests, place + seed) for place in (5000, 9000))
        if len({*log[0]}) == len({*held_out[0]}) == 2:
            accused += not check_teacher(log, held_out, tolerance=0.0, confidence=0.95).is_clean
    # The interval is two-sided: a half of 5 %, and as much again for skewed sums of few requests.
    assert accused / 400 < 0.05


def test_one_request_has_no_spread() -> None:
    labels, truth, _ = _impressions(10, 0)
    with pytest.raises(DataError, match="each set must hold at least two requests, got 1"):
        check_teacher((labels, truth, np.zeros(50)), _impressions(10, 1))


def test_settings_and_labels_out_of_range_are_refused() -> None:
    rows = _impressions(10, 0)
    with pytest.raises(DataError, match=r"got confidence=1.0, tolerance=0.1"):
        check_teacher(rows, rows, confidence=1.0, tolerance=0.1)
    with pytest.raises(DataError, match="teacher check: labels must hold both classes"):
        check_teacher(rows, ([0.0, math.nan], [0.5, 0.5], [1, 2]))
