"""A simulated ad market whose true event probabilities are known. Its rules: ``docs/market.md``."""

from tamis.data.market.rules import MarketRules
from tamis.data.market.schema import market_schema
from tamis.data.market.simulate import MarketSummary, simulate

__all__ = ["MarketRules", "MarketSummary", "market_schema", "simulate"]
