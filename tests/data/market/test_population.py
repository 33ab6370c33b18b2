"""The population: how users and ads are drawn, how taste drifts."""

import numpy as np
import pytest

from tamis.data.market import MarketRules
from tamis.data.market import rules as names
from tamis.data.market.population import Population, populate

RULES = MarketRules()


@pytest.fixture(scope="module")
def population() -> Population:
    return populate(2_000_000, RULES, seed=0)


def test_sizes_follow_the_rows_down_to_the_fewest() -> None:
    # One user per 200 rows and one ad per 500, at least 1000 and 400.
    for rows, num_users, num_ads in ((2_000_000, 10_000, 4000), (1000, 1000, 400)):
        drawn = populate(rows, RULES, seed=0)
        assert len(drawn.users.age) == num_users
        assert len(drawn.ads.category) == num_ads


def test_same_seed_draws_the_same_population() -> None:
    first, again, other = (populate(1000, RULES, seed) for seed in (1, 1, 2))

    assert np.array_equal(first.users.taste, again.users.taste)
    assert np.array_equal(first.ads.bid_micros, again.ads.bid_micros)
    assert not np.array_equal(first.users.taste, other.users.taste)
    assert not np.array_equal(first.ads.bid_micros, other.ads.bid_micros)


def test_ads_of_a_campaign_share_bid_advertiser_and_category(population: Population) -> None:
    ads = population.ads
    assert np.array_equal(np.bincount(ads.campaign), np.full(1000, 4))
    for column in (ads.bid_micros, ads.advertiser, ads.category, ads.daily_budget):
        by_campaign = column.reshape(-1, 4)
        assert (by_campaign == by_campaign[:, :1]).all()
    # Five campaigns of four ads to an advertiser.
    assert np.array_equal(np.bincount(ads.advertiser), np.full(200, 20))


def test_half_of_the_ads_are_there_at_the_start_and_all_leave_later(
    population: Population,
) -> None:
    ads = population.ads
    # 4000 ads: the standard error of a share is 0.008.
    assert (ads.born <= 0).mean() == pytest.approx(0.5, abs=0.03)
    assert (ads.dies >= np.maximum(ads.born, 0) + 0.5).all()
    # An exponential life of mean 6 days, and half a day at least.
    lives = ads.dies - np.maximum(ads.born, 0)
    assert lives.mean() == pytest.approx(6.5, abs=0.4)


def test_taste_is_shared_with_the_segment_as_the_rules_say(population: Population) -> None:
    users = population.users
    segment = (users.age * 3 + users.gender) * len(names.COUNTRIES) + users.country
    counts = np.bincount(segment)
    means = np.stack([np.bincount(segment, users.taste[:, k]) for k in range(8)], axis=1)
    large = counts >= 20
    means = means[large] / counts[large, None]
    # Of taste's variance 0.6 squared lies between segments; means of >= 20 users blur it little.
    between = np.average((means**2).mean(1), weights=counts[large])
    assert between == pytest.approx(0.36, abs=0.12)
    assert (users.taste**2).mean() == pytest.approx(1.0, abs=0.15)


def test_taste_turns_over_the_log(population: Population) -> None:
    users = population.users
    everyone = np.arange(len(users.age), dtype=np.int32)

    start, middle, end = (users.taste_at(everyone, time) for time in (0.0, 0.5, 1.0))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float(((a * b).sum(1) / norms).mean())

    assert np.array_equal(start, users.taste)
    # The mean cosine of an angle of standard deviation s is exp(-s ** 2 / 2): 0.92 and 0.73. The
    # direction turned to is orthogonal only on average, hence the tolerance.
    assert cosine(start, middle) == pytest.approx(np.exp(-0.08), abs=0.04)
    assert cosine(start, end) == pytest.approx(np.exp(-0.32), abs=0.06)


def test_activity_and_popularity_are_heavy_tailed(population: Population) -> None:
    for weights, least in ((population.users.activity, 0.08), (population.ads.popularity, 0.15)):
        top = np.sort(weights)[::-1][: len(weights) // 100].sum() / weights.sum()
        # Equal weights would give the top hundredth 0.01, an exponential law 0.056.
        assert top > least
    # No user may be a noticeable share: activity is cut at 50 medians.
    assert population.users.activity.max() <= 50.001 * np.median(population.users.activity)
