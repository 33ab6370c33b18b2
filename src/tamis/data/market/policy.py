"""The logging policy: which ads a request is answered with."""

import numpy as np
from numpy.typing import NDArray

from tamis.data.market.population import Ads, Floats, Ints, Population
from tamis.data.market.rules import MarketRules
from tamis.errors import DataError

# Stands for exp(-1000), by which a repeated candidate is put last and which float64 cannot hold.
_REPEATED = 1e-100


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
    alive = living_ads(ads, day)
    weights = np.cumsum(ads.popularity[alive])
    drawn = generator.random((requests, rules.candidates)) * weights[-1]
    candidates: Ints = np.sort(alive[np.searchsorted(weights, drawn)], axis=1).astype(np.int32)
    return candidates


def living_ads(ads: Ads, day: float) -> Ints:
    """Ads that are alive at a time in days since the start of the log, rising.

    Raises:
        DataError: There is none.
    """
    alive = np.flatnonzero((ads.born <= day) & (day < ads.dies))
    if not len(alive):
        raise DataError(
            f"market: at least one ad must be alive at every hour, got none on day {day:.2f}. "
            f"Raise min_ads or mean_lifetime_days in the rules."
        )
    return alive.astype(np.int32)


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


def slate_propensities(
    candidates: Ints, scores: Floats, *, rules: MarketRules
) -> NDArray[np.float64]:
    """Chance of every candidate to be shown at every position by :func:`choose_slates`.

    The order of scores plus Gumbel noise is a Plackett-Luce draw: the next place goes to one of
    the remaining candidates in proportion to exp(score). The chances of a place are summed over
    the sets that may stand before it, so their number grows as candidates to the power of places.

    Args:
        candidates: (n, C) ads, sorted within a request.
        scores: (n, C) their scores.
        rules: The market's rules; a share of the requests explores.

    Returns:
        (n, slate, C) chances; they add up to 1 over the candidates of a place. Those of an ad that
        was drawn several times stand at its first candidate.
    """
    repeated = np.zeros(candidates.shape, bool)
    repeated[:, 1:] = candidates[:, 1:] == candidates[:, :-1]
    demoted = np.where(repeated, _REPEATED, 1.0)
    weights = np.exp((scores - scores.max(axis=1, keepdims=True)).astype(np.float64))
    chances = (1.0 - rules.exploration) * _chances_by_place(weights * demoted, rules.slate)
    chances += rules.exploration * _chances_by_place(demoted, rules.slate)
    for column in range(candidates.shape[1] - 1, 0, -1):
        copies = np.where(repeated[:, None, column], chances[:, :, column], 0.0)
        chances[:, :, column - 1] += copies
        chances[:, :, column] -= copies
    # Rounding of the sums may push a sure thing a hair above 1.
    return np.minimum(chances, 1.0)


def _chances_by_place(weights: NDArray[np.float64], places: int) -> NDArray[np.float64]:
    """Plackett-Luce chances (n, places, C) of each candidate at each place."""
    chances = np.zeros((len(weights), places, weights.shape[1]))
    # Sets of candidates that may stand before a place, with their chance in each request.
    before: dict[frozenset[int], NDArray[np.float64]] = {frozenset(): np.ones(len(weights))}
    for place in range(places):
        longer: dict[frozenset[int], NDArray[np.float64]] = {}
        for taken, chance in before.items():
            rest = [column for column in range(weights.shape[1]) if column not in taken]
            share = weights[:, rest]
            share *= (chance / share.sum(axis=1))[:, None]
            chances[:, place, rest] += share
            for index, column in enumerate(rest if place + 1 < places else ()):
                grown = taken | {column}
                longer[grown] = longer.get(grown, 0.0) + share[:, index]
        before = longer
    return chances
