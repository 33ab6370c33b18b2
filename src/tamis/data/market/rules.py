"""Every constant of the simulated market. Frozen: see ``docs/decisions/0002``."""

import math
from dataclasses import dataclass, fields

from tamis.errors import ConfigError

CATEGORIES = 40
COUNTRIES = ("US", "IN", "BR", "ID", "MX", "PH", "GB", "FR", "DE", "JP", "KR", "TR", "NG", "EG")
AGES = ("13-17", "18-24", "25-34", "35-44", "45-54", "55+")
GENDERS = ("f", "m", "u")
DEVICES = ("android", "ios", "desktop", "tablet")
FORMATS = ("image", "video", "carousel", "story")
PLACEMENTS = ("feed", "search", "sidebar")
DAYPARTS = 6
"""Parts of four hours."""

_COUNTS = frozenset(
    (
        *("days", "slate", "candidates", "rows_per_user", "rows_per_ad", "min_users", "min_ads"),
        *("ads_per_campaign", "campaigns_per_advertiser", "history", "taste_dim"),
    )
)
_SHARES = frozenset(("alive_at_start", "segment_taste", "category_taste", "exploration"))
_RATES = frozenset(("click_rate", "conversion_rate", "hide_rate"))
_POSITIVE = frozenset(
    ("activity_exponent", "popularity_exponent", "mean_lifetime_days", "conversion_delay_hours")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketRules:
    """The market. Standard deviations are of logits unless a unit is named."""

    days: int = 14
    """Length of the log in days."""
    slate: int = 4
    """Impressions of one request, at positions 1, 2, ..."""
    candidates: int = 12
    """Ads that the logging policy chooses each slate from."""
    rows_per_user: int = 200
    """Impressions per user; the number of users follows from the rows."""
    rows_per_ad: int = 500
    """Impressions per ad; the number of ads follows from the rows."""
    min_users: int = 1_000
    """Fewest users."""
    min_ads: int = 400
    """Fewest ads."""
    ads_per_campaign: int = 4
    """Ads of one campaign."""
    campaigns_per_advertiser: int = 5
    """Campaigns of one advertiser."""
    history: int = 20
    """Clicked ads that a user's history keeps."""
    taste_dim: int = 8
    """Dimensions of taste."""
    activity_exponent: float = 1.3
    """Users' activity is Pareto with this exponent."""
    popularity_exponent: float = 1.1
    """Ads' weights in the candidate draw are Pareto with this exponent."""
    alive_at_start: float = 0.5
    """Share of ads that exist from the first hour; the others are born evenly over the log."""
    mean_lifetime_days: float = 6.0
    """Mean of the exponential part of an ad's lifetime; half a day comes before it."""
    drift: float = 0.8
    """Standard deviation of the angle, in radians, by which a user's taste turns over the log."""
    segment_taste: float = 0.6
    """Share of a user's taste that age, gender and country explain (correlation)."""
    category_taste: float = 0.7
    """Share of an ad's appeal that its category explains (correlation)."""
    exploration: float = 0.1
    """Share of requests whose slate is drawn at random from the candidates."""
    click_rate: float = 0.03
    """Clicks per impression."""
    conversion_rate: float = 0.05
    """Conversions per click."""
    hide_rate: float = 0.005
    """Hides per impression."""
    user_sd: float = 0.3
    """A user's readiness to click."""
    ad_sd: float = 0.5
    """An ad's quality."""
    match_sd: float = 0.8
    """Inner product of taste and appeal."""
    second_order_sd: float = 0.3
    """Each of country x category, device x format, placement x format."""
    third_order_sd: float = 0.45
    """Age x category x daypart."""
    complement_sd: float = 0.5
    """Category of the last click x category of the ad."""
    interest: float = 0.3
    """Per doubling of one plus the clicks on the ad's category among the last five."""
    saturation: float = 1.0
    """Loss where the ad itself is in the history."""
    position_loss: float = 0.4
    """Loss per doubling of the position."""
    price_sd: float = 0.25
    """User's price sensitivity times the standardised log price."""
    conversion_ad_sd: float = 0.6
    """An ad's conversion quality."""
    conversion_match_sd: float = 0.6
    """Inner product of need and offer."""
    conversion_price: float = 0.3
    """Loss per standard deviation of the log price."""
    conversion_delay_hours: float = 6.0
    """Median delay between click and conversion; log-normal with standard deviation 1."""
    hide_ad_sd: float = 0.8
    """An ad's annoyance."""
    hide_match: float = 0.5
    """Loss of hides per unit of taste match."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            must, holds = _range(field.name, value)
            if not holds:
                raise ConfigError(f"MarketRules.{field.name}: must be {must}, got {value!r}.")
        if self.candidates < self.slate:
            raise ConfigError(
                f"MarketRules.candidates: must be at least slate={self.slate}, got "
                f"{self.candidates}. A slate is chosen from the candidates."
            )


def _range(name: str, value: float) -> tuple[str, bool]:
    """What a constant must be, in words, and whether it is."""
    if name in _COUNTS:
        return "a whole number of at least 1", isinstance(value, int) and value >= 1
    if name in _SHARES:
        return "in [0, 1]", 0 <= value <= 1
    if name in _RATES:
        return "in (0, 1)", 0 < value < 1
    if name in _POSITIVE:
        return "positive and finite", 0 < value < math.inf
    if name.endswith("_sd") or name == "drift":
        return "finite and not negative", 0 <= value < math.inf
    return "finite", math.isfinite(value)
