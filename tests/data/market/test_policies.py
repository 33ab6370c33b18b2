"""The policies to compare with: their slates, and the chances that they state."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tamis.data.market import (
    Exploring,
    LiveMarket,
    LiveRequests,
    LoggingPolicy,
    MarketRules,
    RandomPolicy,
    Slates,
    TruthPolicy,
)
from tamis.data.market.behaviour import TrueProbabilities
from tamis.errors import ConfigError

RULES = MarketRules(days=2, click_rate=0.2)


def _requests(ads: int, count: int, slots: int = 3) -> LiveRequests:
    return LiveRequests(
        hour=0,
        slots=slots,
        request_id=np.arange(count),
        user=np.zeros(count, np.int32),
        time_micros=np.arange(count),
        features=pa.table({"user_id": np.zeros(count, np.int32)}),
        ad=(2 * np.arange(ads) + 1).astype(np.int32),
        ad_features=pa.table({"ad_id": 2 * np.arange(ads) + 1}),
    )


def test_random_slates_hold_every_ad_equally_often_at_every_place() -> None:
    requests = _requests(5, 50_000)

    slates = RandomPolicy(seed=3)(requests)

    slates.check(requests)
    for place in range(3):
        shares = np.bincount(slates.ads[:, place], minlength=10)[1::2] / 50_000
        # The standard error is sqrt(0.2 * 0.8 / 50000) = 0.0018.
        assert shares == pytest.approx(np.full(5, 0.2), abs=0.009)
    # All 60 slates of 3 from 5 in order, equally often: 833 each, deviation 29.
    codes = slates.ads @ np.array([100, 10, 1])
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 60
    assert abs(counts - 50_000 / 60).max() < 5 * 29
    assert slates.propensities is not None
    assert (slates.propensities == 0.2).all()


def test_random_slates_of_few_ads_leave_the_last_places_empty() -> None:
    requests = _requests(2, 100)

    slates = RandomPolicy(seed=3)(requests)

    slates.check(requests)
    assert (slates.ads[:, 2] == -1).all()
    assert (np.sort(slates.ads[:, :2], axis=1) == [1, 3]).all()


def test_logging_policy_states_the_chances_of_its_slates() -> None:
    # With one place and two candidates a propensity is a softmax by hand.
    rules = replace(RULES, slate=1, candidates=2, exploration=0.2, popularity_exponent=8.0)
    market = LiveMarket(20_000, seed=1, rules=rules)
    policy = LoggingPolicy(market, seed=5)
    drawn = []

    def watch(requests: LiveRequests) -> Slates:
        generator = np.random.default_rng([5, requests.hour])
        candidates, scores = market.logging_candidates(requests.request_id, generator)
        drawn.append((candidates, scores, policy(requests)))
        return drawn[-1][2]

    list(market.serve(watch, days=1))

    candidates, scores = (np.concatenate(parts) for parts in list(zip(*drawn, strict=True))[:2])
    ads = np.concatenate([slates.ads[:, 0] for _, _, slates in drawn])
    stated = np.concatenate([slates.propensities[:, 0] for _, _, slates in drawn])
    apart = candidates[:, 0] != candidates[:, 1]
    first = 0.8 / (1 + np.exp(scores[:, 1] - scores[:, 0])) + 0.1
    is_first = ads == candidates[:, 0]
    expected = np.where(apart, np.where(is_first, first, 1 - first), 1.0)
    np.testing.assert_allclose(stated, expected, rtol=1e-5)
    # And the first is shown as often as its chances say: 4 deviations.
    total, variance = first[apart].sum(), (first * (1 - first))[apart].sum()
    assert apart.sum() > 8000
    assert abs(is_first[apart].sum() - total) < 4 * np.sqrt(variance)


def test_logging_policy_leaves_places_empty_where_ads_would_repeat() -> None:
    rules = replace(RULES, candidates=5, popularity_exponent=0.4)
    market = LiveMarket(20_000, seed=1, rules=rules)

    hours = list(market.serve(LoggingPolicy(market, seed=5), days=2))

    shown = sum(hour.log.num_rows for hour in hours)
    asked = 4 * sum(hour.requests for hour in hours)
    # A few ads have most of the popularity, so that many draws of five hold fewer than four.
    assert 0.3 * asked < shown < 0.9 * asked
    stated = pa.concat_tables([hour.slates for hour in hours])["propensity"].to_numpy()
    assert (stated > 0).all()


def test_truth_policy_shows_the_most_valuable_ads_of_a_loop() -> None:
    market = LiveMarket(4000, seed=1, rules=RULES)
    bids = market.ads()["bid_micros"].to_numpy() / 1e6

    def value(chances: TrueProbabilities, ads: np.ndarray) -> np.ndarray:
        # Some ads are worth less than nothing.
        return bids[ads] * chances.click - 2.0 * chances.hide - 0.9 * (ads % 100 > 0)

    policy = TruthPolicy(market, value)
    empty = 0

    def watch(requests: LiveRequests) -> Slates:
        nonlocal empty
        slates = policy(requests)
        for row in range(0, len(requests), 7):
            pairs = np.full(len(requests.ad), requests.request_id[row])
            worth = value(market.chances(pairs, requests.ad), requests.ad)
            best = sorted(zip(-worth, requests.ad, strict=True))[:4]
            wanted = [ad if worst <= 0 else -1 for worst, ad in best]
            assert slates.ads[row].tolist() == wanted
            empty += wanted.count(-1)
        return slates

    list(market.serve(watch, days=1))
    assert empty > 0


def test_exploration_mixes_chance_in_and_says_so() -> None:
    requests = _requests(5, 40_000)
    fixed = np.tile(np.array([[1, 3, 5]], np.int32), (40_000, 1))
    priced = Slates(ads=fixed, prices=np.ones(fixed.shape))

    slates = Exploring(lambda _: priced, share=0.3, seed=2)(requests)

    slates.check(requests)
    # 0.7 + 0.3 / 5 for the policy's own ad at its place, 0.3 / 5 for any other.
    own = slates.ads == fixed
    assert own.mean(axis=0) == pytest.approx(np.full(3, 0.76), abs=0.011)
    assert slates.propensities is not None
    np.testing.assert_allclose(slates.propensities, np.where(own, 0.76, 0.06))
    assert slates.prices is not None
    unpriced = np.isnan(slates.prices).all(axis=1)
    # Explored slates have no price; most of them differ from the policy's.
    assert unpriced.mean() == pytest.approx(0.3, abs=0.011)
    assert (~own).any(axis=1)[~unpriced].sum() == 0


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"share: must be in \(0, 1\]"):
        Exploring(RandomPolicy(seed=0), share=share, seed=0)
