"""Policies to compare with: the market's own, chance, the truth, and exploration beside any."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tamis.data.market import policy as logging_policy
from tamis.data.market.behaviour import TrueProbabilities
from tamis.data.market.live import LiveMarket
from tamis.data.market.population import Ints
from tamis.data.market.serving import LiveRequests, Policy, Slates
from tamis.errors import ConfigError

_PAIRS_AT_A_TIME = 1 << 20

TrueValue = Callable[[TrueProbabilities, Ints], NDArray[np.float64]]
"""Money (m,) that m impressions are worth, from their true probabilities and ads (m,)."""


class LoggingPolicy:
    """The policy that writes an ordinary log: popular candidates, by value, match and noise.

    It knows part of the truth, a user's taste and an ad's appeal, as a production system has learnt
    it. Propensities are those given the drawn candidates. Where fewer different candidates than
    places were drawn, places stay empty that the ordinary log fills with a repeated ad.
    """

    def __init__(self, market: LiveMarket, *, seed: int) -> None:
        """Take the market that it will serve, and the seed of its own draws."""
        self._market, self._seed = market, seed

    def __call__(self, requests: LiveRequests) -> Slates:
        """Slates with propensities."""
        generator = np.random.default_rng([self._seed, requests.hour])
        rules = self._market.rules
        candidates, scores = self._market.logging_candidates(requests.request_id, generator)
        slates = logging_policy.choose_slates(candidates, scores, rules=rules, generator=generator)
        chances = logging_policy.slate_propensities(candidates, scores, rules=rules)
        column = (candidates[:, None, :] == slates[:, :, None]).argmax(axis=2)
        propensities = np.take_along_axis(chances, column[:, :, None], axis=2)[:, :, 0]
        # Repeated candidates were put last, so what is emptied lies at the end.
        for place in range(1, slates.shape[1]):
            slates[(slates[:, :place] == slates[:, place, None]).any(axis=1), place] = -1
        return Slates(ads=slates, propensities=propensities)


class RandomPolicy:
    """Any living ad at any place with the same chance."""

    def __init__(self, *, seed: int) -> None:
        """Take the seed of the draws."""
        self._seed = seed

    def __call__(self, requests: LiveRequests) -> Slates:
        """Slates with propensities."""
        generator = np.random.default_rng([self._seed, requests.hour])
        num_ads = len(requests.ad)
        picked = np.full((len(requests), requests.slots), num_ads)
        for place in range(min(requests.slots, num_ads)):
            draw = generator.integers(0, num_ads - place, len(requests))
            # The draw counts the ads that are left: step over the taken ones, lowest first.
            for taken in np.sort(picked[:, :place], axis=1).T:
                draw += draw >= taken
            picked[:, place] = draw
        ads = np.append(requests.ad, np.int32(-1))[picked]
        return Slates(ads=ads, propensities=np.full(ads.shape, 1 / num_ads))


class TruthPolicy:
    """Shows the ads that are truly worth most at the first position, the best first.

    Its regret is 0 in every request. As a bound on what policies can earn it is nearly, not quite,
    the best: it minds neither how places change the order nor what a click does to later requests.
    """

    def __init__(self, market: LiveMarket, value: TrueValue) -> None:
        """Take the market that it will serve, and what an impression is worth."""
        self._market, self._value = market, value

    def __call__(self, requests: LiveRequests) -> Slates:
        """Slates of the most valuable ads; one that is worth less than nothing is not shown."""
        num_ads = len(requests.ad)
        places = min(requests.slots, num_ads)
        ads = np.full((len(requests), requests.slots), -1, np.int32)
        step = max(1, _PAIRS_AT_A_TIME // num_ads)
        for first in range(0, len(requests), step):
            rows = np.arange(first, min(first + step, len(requests)))
            pairs = np.tile(requests.ad, len(rows))
            request_id = np.repeat(requests.request_id[rows], num_ads)
            chances = self._market.chances(request_id, pairs)
            worth = self._value(chances, pairs).reshape(len(rows), num_ads)
            best = np.argsort(-worth, axis=1, kind="stable")[:, :places]
            is_worth = np.take_along_axis(worth, best, axis=1) >= 0
            ads[rows, :places] = np.where(is_worth, requests.ad[best], -1)
        return Slates(ads=ads)


class Exploring:
    """Another policy, with a share of the requests answered at random."""

    def __init__(self, policy: Policy, *, share: float, seed: int) -> None:
        """Take the policy, which answers one request always alike, and the share that explores.

        Raises:
            ConfigError: ``share`` is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ConfigError(f"Exploring.share: must be in (0, 1], got {share!r}.")
        self._policy, self._share, self._seed = policy, share, seed
        self._random = RandomPolicy(seed=seed)

    def __call__(self, requests: LiveRequests) -> Slates:
        """Slates with propensities; candidates of explored requests are left out."""
        generator = np.random.default_rng([self._seed, requests.hour, 1])
        explored = generator.random(len(requests)) < self._share
        chosen, drawn = self._policy(requests), self._random(requests)
        assert drawn.propensities is not None
        ads = np.where(explored[:, None], drawn.ads, chosen.ads)
        chance = self._share * drawn.propensities + (1 - self._share) * (ads == chosen.ads)
        prices = chosen.prices
        if prices is not None:
            # Nobody knows what an ad that was drawn would have had to bid.
            prices = np.where(explored[:, None], np.nan, prices)
        return Slates(
            ads=ads,
            prices=prices,
            propensities=chance,
            candidates=tuple(part.take(~explored[part.request]) for part in chosen.candidates),
        )
