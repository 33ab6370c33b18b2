"""Tables of A/B tests: the market, the funnels' budgets, and how long they are tested."""

from dataclasses import dataclass
from typing import Literal

from tamis.data.market import MarketRules

FULL = "full"
Rival = Literal["baseline", "popularity"]
RIVALS: tuple[Rival, ...] = ("baseline", "popularity")


@dataclass(frozen=True, kw_only=True, slots=True)
class AbMarket:
    """A market that its own policy serves first, and tested funnels afterwards."""

    rows: int
    """Impressions of all days, if every place is filled."""
    train_days: int
    """Days of the market's own policy, whose log all funnels learn from."""
    test_days: int
    """Days of the test."""
    rows_per_user: int
    """Impressions per user, which decide how many users there are."""
    rows_per_ad: int
    """Impressions per ad, which decide how many ads there are."""
    activity_exponent: float
    """Of the Pareto distribution of users' activity."""
    click_rate: float
    """Clicks per impression under the market's own policy."""
    conversion_rate: float
    """Conversions per click."""
    hide_rate: float
    """Hides per impression."""

    def rules(self) -> MarketRules:
        """Rules of the market."""
        return MarketRules(
            days=self.train_days + self.test_days,
            rows_per_user=self.rows_per_user,
            rows_per_ad=self.rows_per_ad,
            activity_exponent=self.activity_exponent,
            click_rate=self.click_rate,
            conversion_rate=self.conversion_rate,
            hide_rate=self.hide_rate,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FunnelSizes:
    """What both trained funnels may spend, and what the full one learns from."""

    retrieved: int
    """Ads that the retrieval keeps."""
    early: int
    """Ads that the early stage keeps."""
    final: int
    """Ads that the final stage hands to the auction."""
    beams: tuple[int, ...]
    """Nodes that the index keeps at each level."""
    cascade_requests: int
    """Requests of the log whose other candidates the full funnel's early stage learns from."""
    hide_cost: float
    """Money that a hide costs in the total value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AbTable:
    """The full funnel against its rivals, one row for each seed of market and trainings."""

    name: str
    """Name of the table and of its files in ``results/``."""
    market: AbMarket
    """Where they meet."""
    sizes: FunnelSizes
    """How large they are."""
    judge_every: int
    """One request in so many tells all its candidates, which are judged by the truth."""
    smallest: float = 0.1
    """Smallest difference that matters to the guards of the daily looks, as a share of the figure
    that the market's own policy had before the test."""
    seeds: int = 5
    """Seeds 0 to seeds - 1: each draws a market of its own, and the weights of its models."""

    def __post_init__(self) -> None:
        assert self.seeds > 1, "a standard deviation needs two seeds"

    @property
    def dataset(self) -> str:
        """Name of what the rows are made of."""
        return f"live-market:{self.market.rows}"


def ab_tables() -> tuple[AbTable, ...]:
    """All tables of A/B tests.

    Events are less rare than in the frozen rules, and users are many and alike in how often they
    come. Users are the units of a test: where a few of them ask for most, or hardly anybody clicks,
    the interval of some days is wider than any difference of two funnels.
    """
    return (
        AbTable(
            name="ab-market",
            market=AbMarket(
                rows=840_000,
                train_days=10,
                test_days=4,
                rows_per_user=50,
                rows_per_ad=200,
                activity_exponent=2.5,
                click_rate=0.08,
                conversion_rate=0.15,
                hide_rate=0.02,
            ),
            sizes=FunnelSizes(
                retrieved=120,
                early=30,
                final=10,
                beams=(32,),
                cascade_requests=10_000,
                hide_cost=0.5,
            ),
            judge_every=25,
        ),
    )
