"""The logging policy, on ads few enough to reckon by hand."""

import dataclasses

import numpy as np
import pytest

from tamis.data.market import MarketRules
from tamis.data.market.policy import (
    choose_slates,
    draw_candidates,
    policy_scores,
    slate_propensities,
)
from tamis.data.market.population import Population, populate
from tamis.errors import DataError

RULES = MarketRules()


@pytest.fixture(scope="module")
def population() -> Population:
    return populate(1000, RULES, seed=3)


def test_candidates_are_alive_and_drawn_by_popularity(population: Population) -> None:
    ads = dataclasses.replace(
        population.ads,
        born=np.array([0.0, 0.0, 5.0, 0.0], np.float32),
        dies=np.array([9.0, 9.0, 9.0, 4.0], np.float32),
        popularity=np.array([1.0, 3.0, 50.0, 70.0]),
    )

    drawn = draw_candidates(ads, 10_000, day=4.0, rules=RULES, generator=np.random.default_rng(0))

    # On day 4 ad 2 is not born and ad 3 has just died: a quarter is ad 0, the rest ad 1.
    assert drawn.shape == (10_000, RULES.candidates)
    shares = np.bincount(drawn.reshape(-1), minlength=4) / drawn.size
    # The standard error of the first is sqrt(3 / 16 / 120000) = 0.00125.
    assert shares[0] == pytest.approx(0.25, abs=0.006)
    assert shares[2:].tolist() == [0.0, 0.0]
    assert (np.diff(drawn, axis=1) >= 0).all()


def test_hour_without_a_living_ad_is_refused(population: Population) -> None:
    with pytest.raises(DataError, match=r"must be alive at every hour, got none on day 999\.00"):
        draw_candidates(
            population.ads, 1, day=999.0, rules=RULES, generator=np.random.default_rng(0)
        )


def test_score_is_log_value_plus_half_of_the_match(population: Population) -> None:
    ads = dataclasses.replace(
        population.ads,
        bid_micros=np.array([500_000, 2_000_000]),
        appeal=np.array([[1, 0], [2, -3]], np.float32),
    )
    users = dataclasses.replace(
        population.users,
        taste=np.array([[4, 1]], np.float32),
        turned=np.array([[0, 2]], np.float32),
        angle=np.array([np.pi], np.float32),
    )
    small = dataclasses.replace(population, users=users, ads=ads)

    scores = policy_scores(
        small,
        np.array([0], np.int32),
        np.array([[1, 0]], np.int32),
        np.array([0.04, 0.01]),
        time=0.5,
        rules=MarketRules(taste_dim=2),
    )

    # At half of the log the taste has turned by pi / 2, to (0, 2). Ad 1: log(2 * 0.01) and
    # 0.5 * (0 * 2 + 2 * -3) / sqrt(2); ad 0: log(0.5 * 0.04) and no match.
    expected = [[np.log(0.02) - 3 / np.sqrt(2), np.log(0.02)]]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_slate_holds_the_best_candidates_in_order() -> None:
    candidates = np.array([[2, 4, 6, 8, 9]], np.int32).repeat(200, axis=0)
    # Gumbel noise of a few units cannot overturn differences of a thousand.
    scores = np.array([[3e3, 1e3, 5e3, 2e3, 4e3]], np.float32).repeat(200, axis=0)
    rules = MarketRules(slate=3, candidates=5, exploration=0.0)

    slates = choose_slates(candidates, scores, rules=rules, generator=np.random.default_rng(0))

    assert slates.tolist() == [[6, 9, 2]] * 200


def test_share_of_requests_explores() -> None:
    candidates = np.array([[2, 4]], np.int32).repeat(40_000, axis=0)
    scores = np.array([[0.0, 1e4]], np.float32).repeat(40_000, axis=0)
    rules = MarketRules(slate=1, candidates=2, exploration=0.1)

    slates = choose_slates(candidates, scores, rules=rules, generator=np.random.default_rng(0))

    # The worse ad is shown in half of the explored tenth; the standard error is 0.0011.
    assert (slates == 2).mean() == pytest.approx(0.05, abs=0.005)


def test_repeated_candidate_stands_once_in_a_slate() -> None:
    candidates = np.array([[1, 1, 1, 5, 7]], np.int32).repeat(500, axis=0)
    scores = np.zeros(candidates.shape, np.float32)
    rules = MarketRules(slate=3, candidates=5)

    slates = choose_slates(candidates, scores, rules=rules, generator=np.random.default_rng(0))

    assert np.array_equal(np.sort(slates, axis=1), np.array([[1, 5, 7]]).repeat(500, axis=0))


def test_slate_repeats_an_ad_only_where_too_few_were_drawn() -> None:
    generator = np.random.default_rng(0)
    # Six ads, one of them in most of the twelve places: often fewer than four different ones.
    weights = [0.75, 0.05, 0.05, 0.05, 0.05, 0.05]
    candidates = np.sort(generator.choice(6, (2000, 12), p=weights), axis=1).astype(np.int32)
    scores = generator.standard_normal(candidates.shape).astype(np.float32)

    slates = choose_slates(candidates, scores, rules=RULES, generator=generator)

    different = np.array([len(set(row)) for row in candidates.tolist()])
    shown = np.array([len(set(row)) for row in slates.tolist()])
    assert 200 < (different < 4).sum() < 1800
    assert np.array_equal(shown, np.minimum(different, 4))


def test_better_score_is_shown_more_often_but_not_always() -> None:
    candidates = np.array([[0, 1]], np.int32).repeat(40_000, axis=0)
    scores = np.array([[0.0, 1.0]], np.float32).repeat(40_000, axis=0)
    rules = MarketRules(slate=1, candidates=2, exploration=0.0)

    slates = choose_slates(candidates, scores, rules=rules, generator=np.random.default_rng(0))

    # The largest of scores plus Gumbel noise is a softmax draw: 1 / (1 + exp(-1)) = 0.731.
    assert (slates == 1).mean() == pytest.approx(1 / (1 + np.exp(-1)), abs=0.01)


def test_propensities_of_two_places_among_three_by_hand() -> None:
    # Weights 1, 2, 5. Second place of the last: 1/8 * 5/7 after the first, 2/8 * 5/6 after the
    # second. Exploration mixes 20 % of one third in.
    scores = np.log(np.array([[1, 2, 5]], np.float32))
    rules = MarketRules(slate=2, candidates=3, exploration=0.2)

    chances = slate_propensities(np.array([[3, 4, 7]], np.int32), scores, rules=rules)

    first = [1 / 8, 2 / 8, 5 / 8]
    second = [
        2 / 8 * 1 / 6 + 5 / 8 * 1 / 3,
        1 / 8 * 2 / 7 + 5 / 8 * 2 / 3,
        1 / 8 * 5 / 7 + 2 / 8 * 5 / 6,
    ]
    expected = 0.8 * np.array([[first, second]]) + 0.2 / 3
    np.testing.assert_allclose(chances, expected, rtol=1e-6)


def test_propensities_of_a_repeated_ad_stand_at_its_first_candidate() -> None:
    # Ads 4 and 7, drawn twice and once: the three places hold 4, 7 or 7, 4, and then 4 again.
    scores = np.log(np.array([[3, 3, 1]], np.float32))
    rules = MarketRules(slate=3, candidates=3, exploration=0.0)

    chances = slate_propensities(np.array([[4, 4, 7]], np.int32), scores, rules=rules)

    expected = [[[0.75, 0, 0.25], [0.25, 0, 0.75], [1, 0, 0]]]
    np.testing.assert_allclose(chances, expected, rtol=1e-6, atol=1e-90)


def test_propensities_are_the_shares_of_the_slates_that_are_chosen() -> None:
    generator = np.random.default_rng(0)
    draws = 100_000
    candidates = np.array([[0, 1, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8]], np.int32)
    scores = generator.standard_normal(candidates.shape).astype(np.float32)
    # Copies of an ad have its score.
    scores[:, 2] = scores[:, 1]
    scores[:, 6:8] = scores[:, 5:6]

    chances = slate_propensities(candidates, scores, rules=RULES)
    slates = choose_slates(
        candidates.repeat(draws, axis=0),
        scores.repeat(draws, axis=0),
        rules=RULES,
        generator=generator,
    )

    np.testing.assert_allclose(chances.sum(axis=2), 1.0, rtol=1e-12)
    for place in range(RULES.slate):
        shares = np.bincount(slates[:, place], minlength=9) / draws
        expected = np.bincount(candidates[0], weights=chances[0, place], minlength=9)
        # The largest standard error of a share is sqrt(0.25 / 100000) = 0.0016; five of these.
        np.testing.assert_allclose(shares, expected, atol=0.008)
