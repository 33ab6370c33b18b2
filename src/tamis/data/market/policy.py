"""The logging policy: which ads a request is answered with."""

import numpy as np
from numpy.typing import NDArray

from tamis.data.market.population import Ads, Floats, Ints, Population
from tamis.data.market.rules import MarketRules
from tamis.errors import DataError


def draw_candidates(
    ads: Ads, requests: int, *, day: float, rules: MarketRules, generator: np.random.Generator
) -> Ints:
    """Candidates (requests, C) among the living ads, in proportion to popularity.

    They are drawn with replacement, and sorted within a request.

    Args:
        ads: The ads.
        requests: How many requests there are.
        day: Days since the start of the log, with fraction.
        rules: The market's rules.
        generator: Source of the draw.

    Raises:
        DataError: No ad is alive.
    """
    alive = np.flatnonzero((ads.born <= day) & (day < ads.dies))
    if not len(alive):
        raise DataError(
            f"market: at least one ad must be alive at every hour, got none on day {day:.2f}. "
            f"Raise min_ads or mean_lifetime_days in the rules."
        )
    weights = np.cumsum(ads.popularity[alive])
    drawn = generator.random((requests, rules.candidates)) * weights[-1]
    candidates: Ints = np.sort(alive[np.searchsorted(weights, drawn)], axis=1).astype(np.int32)
    return candidates


def policy_scores(
    population: Population,
    user: Ints,
    candidates: Ints,
    click_rate: NDArray[np.float64],
    *,
    time: float,
    rules: MarketRules,
) -> Floats:
    """What the policy values, without its noise: log (bid x click rate) + half of the match.

    The match stands for what a production model has learnt of a user's taste.

    Args:
        population: Users and ads.
        user: (n,) users.
        candidates: (n, C) ads.
        click_rate: (A,) every ad's smoothed click rate so far.
        time: In [0, 1] of the log.
        rules: The market's rules.

    Returns:
        (n, C) scores; only their order within a request means something.
    """
    ads = population.ads
    value = np.log(ads.bid_micros / 1e6 * click_rate).astype(np.float32)
    taste = population.users.taste_at(user, time)
    known = np.einsum("nk,nck->nc", taste, ads.appeal[candidates])
    scores: Floats = value[candidates] + np.float32(0.5 / rules.taste_dim**0.5) * known
    return scores


def choose_slates(
    candidates: Ints, scores: Floats, *, rules: MarketRules, generator: np.random.Generator
) -> Ints:
    """Ads (n, slate), best first: the highest scores plus Gumbel noise.

    A share of the requests is answered at random. An ad stands once in a slate, unless fewer
    different candidates than places were drawn.
    """
    noise = generator.gumbel(size=candidates.shape).astype(np.float32)
    noisy = scores + noise
    explored = generator.random(len(candidates)) < rules.exploration
    noisy[explored] = noise[explored]
    # Candidates are sorted, so a repeated one stands beside its first: it goes to the end.
    noisy[:, 1:][candidates[:, 1:] == candidates[:, :-1]] -= 1e3
    order = np.argsort(-noisy, axis=1, kind="stable")[:, : rules.slate]
    return np.take_along_axis(candidates, order, axis=1)
