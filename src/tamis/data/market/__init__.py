"""A simulated ad market whose true event probabilities are known. Its rules: ``docs/market.md``."""

from tamis.data.market.folder import MarketSummary
from tamis.data.market.judged import JudgedCandidates
from tamis.data.market.live import LiveMarket, ServedHour, known_at
from tamis.data.market.policies import Exploring, LoggingPolicy, RandomPolicy, TruthPolicy
from tamis.data.market.rules import MarketRules
from tamis.data.market.schema import market_schema
from tamis.data.market.serving import (
    CandidateScores,
    LiveRequests,
    Policy,
    Slates,
    merge_slates,
)
from tamis.data.market.simulate import simulate, simulate_served

__all__ = [
    "CandidateScores",
    "Exploring",
    "JudgedCandidates",
    "LiveMarket",
    "LiveRequests",
    "LoggingPolicy",
    "MarketRules",
    "MarketSummary",
    "Policy",
    "RandomPolicy",
    "ServedHour",
    "Slates",
    "TruthPolicy",
    "known_at",
    "market_schema",
    "merge_slates",
    "simulate",
    "simulate_served",
]
