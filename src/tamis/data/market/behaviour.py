"""The true probabilities: what a user does with an ad, given everything."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tamis.data.market.population import Floats, Ints, Population
from tamis.data.market.rules import MarketRules


@dataclass(frozen=True, kw_only=True, slots=True)
class Impressions:
    """n impressions of one moment, as the true probabilities see them."""

    user: Ints
    ad: Ints
    device: Ints
    placement: Ints
    position: Ints
    """(n,) from 1."""
    daypart: int
    """Part of the day, the same for all."""
    time: float
    """In [0, 1] of the log."""
    history: Ints
    """(n, H) ads that the user clicked, newest first; -1 where there are fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Intercepts:
    """What is added to the logits so that events are as frequent as the rules say."""

    click: float
    conversion: float
    hide: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrueProbabilities:
    """(n,) chances of the events."""

    click: NDArray[np.float64]
    conversion: NDArray[np.float64]
    """Given a click."""
    hide: NDArray[np.float64]


def true_probabilities(
    population: Population, impressions: Impressions, intercepts: Intercepts, rules: MarketRules
) -> TrueProbabilities:
    """Chances of every event on every impression."""
    matched = match(population, impressions, rules)
    clicks = click_logit(population, impressions, matched, rules)
    conversions = conversion_logit(population, impressions, rules)
    hides = hide_logit(population, impressions, matched, rules)
    return TrueProbabilities(
        click=sigmoid(clicks + intercepts.click),
        conversion=sigmoid(conversions + intercepts.conversion),
        hide=sigmoid(hides + intercepts.hide),
    )


def match(population: Population, impressions: Impressions, rules: MarketRules) -> Floats:
    """Inner product (n,) of taste and appeal; variance 1 over independent draws."""
    taste = population.users.taste_at(impressions.user, impressions.time)
    appeal = population.ads.appeal[impressions.ad]
    product: Floats = np.einsum("nk,nk->n", taste, appeal) / np.float32(rules.taste_dim**0.5)
    return product


def click_logit(
    population: Population, impressions: Impressions, matched: Floats, rules: MarketRules
) -> Floats:
    """Logit (n,) of a click, up to the intercept.

    Args:
        population: Users, ads and the tables of effects.
        impressions: What was shown to whom, where and when.
        matched: What :func:`match` says of the same impressions.
        rules: The market's rules.
    """
    users, ads, tables = population.users, population.ads, population.interactions
    user, ad = impressions.user, impressions.ad
    category, form = ads.category[ad], ads.format[ad]
    logit = users.readiness[user] + ads.quality[ad] + np.float32(rules.match_sd) * matched
    logit = logit + tables.country_category[users.country[user], category]
    logit += tables.device_format[impressions.device, form]
    logit += tables.placement_format[impressions.placement, form]
    logit += tables.age_category_daypart[users.age[user], category, impressions.daypart]
    logit -= np.float32(rules.price_sd) * users.price_sensitivity[user] * ads.log_price[ad]
    logit -= np.float32(rules.position_loss) * np.log2(impressions.position).astype(np.float32)
    return logit + _history_effect(population, impressions, rules)


def conversion_logit(
    population: Population, impressions: Impressions, rules: MarketRules
) -> Floats:
    """Logit (n,) of a conversion after a click, up to the intercept."""
    users, ads = population.users, population.ads
    needed = np.einsum("nk,nk->n", users.need[impressions.user], ads.offer[impressions.ad])
    logit = (
        ads.conversion_quality[impressions.ad]
        - np.float32(rules.conversion_price) * ads.log_price[impressions.ad]
    )
    effect = np.float32(rules.conversion_match_sd / rules.taste_dim**0.5) * needed
    result: Floats = logit + effect
    return result


def hide_logit(
    population: Population, impressions: Impressions, matched: Floats, rules: MarketRules
) -> Floats:
    """Logit (n,) of a hide, up to the intercept."""
    result: Floats = (
        population.ads.annoyance[impressions.ad] - np.float32(rules.hide_match) * matched
    )
    return result


def intercept_for(logits: Floats, rate: float) -> float:
    """The number that, added to the logits, makes their mean probability ``rate``."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if sigmoid(logits + middle).mean() < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def sigmoid(logits: Floats | NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities in float64."""
    values: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    return values


def _history_effect(population: Population, impressions: Impressions, rules: MarketRules) -> Floats:
    history, ad = impressions.history, impressions.ad
    effect = np.zeros(len(ad), np.float32)
    known = np.flatnonzero(history[:, 0] >= 0)
    if not len(known):
        return effect
    category = population.ads.category
    past, shown = history[known], ad[known]
    recent = past[:, :5]
    last = category[past[:, 0]]
    value = population.interactions.complement[last, category[shown]].copy()
    same = (category[recent] == category[shown][:, None]) & (recent >= 0)
    value += np.float32(rules.interest) * np.log2(1 + same.sum(1)).astype(np.float32)
    value -= np.float32(rules.saturation) * (past == shown[:, None]).any(1)
    effect[known] = value
    return effect
