"""Who lives in the market: users, advertisers, campaigns, ads, and the tables of interactions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tamis.data.market import rules as names
from tamis.data.market.rules import MarketRules

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Users:
    """U users."""

    age: Ints
    gender: Ints
    country: Ints
    device: Ints
    """(U,) codes into the names of ``rules``; the device a user mostly uses."""
    activity: NDArray[np.float64]
    """(U,) share of the requests."""
    readiness: Floats
    """(U,) logit."""
    taste: Floats
    """(U, K) at the start."""
    turned: Floats
    """(U, K) second random vector, towards which taste turns."""
    angle: Floats
    """(U,) radians over the whole log."""
    need: Floats
    """(U, K) for conversions."""
    price_sensitivity: Floats
    """(U,) standard normal."""

    def taste_at(self, user: Ints, time: float) -> Floats:
        """Taste (n, K) of some users at a time in [0, 1] of the log."""
        angle = (self.angle[user] * time)[:, None]
        taste: Floats = np.cos(angle) * self.taste[user] + np.sin(angle) * self.turned[user]
        return taste


@dataclass(frozen=True, kw_only=True, slots=True)
class Ads:
    """A ads."""

    advertiser: Ints
    campaign: Ints
    category: Ints
    format: Ints
    """(A,) codes."""
    bid_micros: NDArray[np.int64]
    """(A,) bid per click in millionths of a currency unit; one bid per campaign."""
    price: Floats
    """(A,) price of the advertised thing, in currency units."""
    log_price: Floats
    """(A,) standardised logarithm of it."""
    popularity: NDArray[np.float64]
    """(A,) weight in the candidate draw."""
    born: Floats
    dies: Floats
    """(A,) times in days since the start of the log; born may be negative."""
    quality: Floats
    """(A,) logit."""
    appeal: Floats
    """(A, K) what taste meets."""
    conversion_quality: Floats
    """(A,) logit."""
    offer: Floats
    """(A, K) what need meets."""
    annoyance: Floats
    """(A,) logit of hides."""
    daily_budget: Floats
    """(A,) impressions per day that each ad of the campaign plans; they bound nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interactions:
    """Tables of effects between fields, logits."""

    country_category: Floats
    device_format: Floats
    placement_format: Floats
    age_category_daypart: Floats
    complement: Floats
    """(categories, categories): last clicked, shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """Everything that does not change while the log runs."""

    users: Users
    ads: Ads
    interactions: Interactions


def populate(rows: int, rules: MarketRules, seed: int) -> Population:
    """Draw the population of a log of ``rows`` impressions."""
    generator = np.random.default_rng([seed, 1])
    num_users = max(rules.min_users, rows // rules.rows_per_user)
    num_ads = max(rules.min_ads, rows // rules.rows_per_ad)
    return Population(
        users=_draw_users(num_users, rules, generator),
        ads=_draw_ads(num_ads, rules, generator),
        interactions=_draw_interactions(rules, generator),
    )


def _draw_users(count: int, rules: MarketRules, generator: np.random.Generator) -> Users:
    age = _codes(generator, count, len(names.AGES), skew=0.3)
    gender = _codes(generator, count, len(names.GENDERS), skew=0.5)
    country = _codes(generator, count, len(names.COUNTRIES), skew=0.8)
    activity = generator.pareto(rules.activity_exponent, count) + 0.05
    # One user may not be a noticeable share of the log.
    activity = np.minimum(activity, 50 * np.median(activity))
    parts = [
        _normal(generator, len(labels), rules.taste_dim)[codes]
        for labels, codes in (
            (names.AGES, age),
            (names.GENDERS, gender),
            (names.COUNTRIES, country),
        )
    ]
    shared = sum(parts) / np.sqrt(np.float32(len(parts)))
    own = _normal(generator, count, rules.taste_dim)
    taste = rules.segment_taste * shared + (1 - rules.segment_taste**2) ** 0.5 * own
    return Users(
        age=age,
        gender=gender,
        country=country,
        device=_codes(generator, count, len(names.DEVICES), skew=0.6),
        activity=activity / activity.sum(),
        readiness=rules.user_sd * _normal(generator, count),
        taste=taste.astype(np.float32),
        turned=_normal(generator, count, rules.taste_dim),
        angle=rules.drift * _normal(generator, count),
        need=_normal(generator, count, rules.taste_dim),
        price_sensitivity=_normal(generator, count),
    )


def _draw_ads(count: int, rules: MarketRules, generator: np.random.Generator) -> Ads:
    campaign = np.arange(count, dtype=np.int32) // rules.ads_per_campaign
    num_campaigns = int(campaign[-1]) + 1
    advertiser_of = np.arange(num_campaigns, dtype=np.int32) // rules.campaigns_per_advertiser
    num_advertisers = int(advertiser_of[-1]) + 1
    # An advertiser sells in one category, and mostly at one level of price.
    category_of = _codes(generator, num_advertisers, names.CATEGORIES, skew=0.5)
    advertiser = advertiser_of[campaign]
    category = category_of[advertiser]
    log_price = (
        0.8 * _normal(generator, num_advertisers)[advertiser] + 0.6 * _normal(generator, count)
    ).astype(np.float32)
    bids = 0.4 * np.exp(0.5 * generator.standard_normal(num_campaigns)) * 1e6
    lifetime = generator.exponential(rules.mean_lifetime_days, count)
    born = generator.uniform(0, rules.days, count)
    # Those that exist at the start were born long enough ago to be in the middle of their lives.
    early = generator.random(count) < rules.alive_at_start
    born = np.where(early, -0.5 * generator.exponential(rules.mean_lifetime_days, count), born)
    shared = _normal(generator, names.CATEGORIES, rules.taste_dim)[category]
    own = _normal(generator, count, rules.taste_dim)
    appeal = rules.category_taste * shared + (1 - rules.category_taste**2) ** 0.5 * own
    return Ads(
        advertiser=advertiser,
        campaign=campaign,
        category=category,
        format=_codes(generator, count, len(names.FORMATS), skew=0.4),
        bid_micros=np.rint(bids).astype(np.int64)[campaign],
        price=np.round(np.exp(3.0 + log_price), 2).astype(np.float32),
        log_price=log_price,
        popularity=generator.pareto(rules.popularity_exponent, count) + 0.1,
        born=born.astype(np.float32),
        dies=(np.maximum(born, 0) + lifetime + 0.5).astype(np.float32),
        quality=rules.ad_sd * _normal(generator, count),
        appeal=appeal.astype(np.float32),
        conversion_quality=rules.conversion_ad_sd * _normal(generator, count),
        offer=_normal(generator, count, rules.taste_dim),
        annoyance=rules.hide_ad_sd * _normal(generator, count),
        daily_budget=(rules.rows_per_ad * np.exp(_normal(generator, num_campaigns)))[campaign],
    )


def _draw_interactions(rules: MarketRules, generator: np.random.Generator) -> Interactions:
    second = np.float32(rules.second_order_sd)
    ages, dayparts = len(names.AGES), names.DAYPARTS
    return Interactions(
        country_category=second * _normal(generator, len(names.COUNTRIES), names.CATEGORIES),
        device_format=second * _normal(generator, len(names.DEVICES), len(names.FORMATS)),
        placement_format=second * _normal(generator, len(names.PLACEMENTS), len(names.FORMATS)),
        age_category_daypart=np.float32(rules.third_order_sd)
        * _normal(generator, ages, names.CATEGORIES, dayparts),
        complement=np.float32(rules.complement_sd)
        * _normal(generator, names.CATEGORIES, names.CATEGORIES),
    )


def _normal(generator: np.random.Generator, *shape: int) -> Floats:
    return generator.standard_normal(shape, dtype=np.float32)


def _codes(generator: np.random.Generator, count: int, num: int, *, skew: float) -> Ints:
    """Codes 0 to num - 1, the frequency of code k proportional to (k + 1) ** -skew."""
    weights = np.arange(1, num + 1, dtype=np.float64) ** -skew
    return generator.choice(num, count, p=weights / weights.sum()).astype(np.int32)
