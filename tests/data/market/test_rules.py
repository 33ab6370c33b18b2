"""The rules refuse what has no meaning, and the frozen ones stay as they are."""

import dataclasses
import hashlib
import json
import math

import pytest

from tamis.data.market import MarketRules
from tamis.data.market import rules as names
from tamis.errors import ConfigError

# SHA-256 of the constants of version 1, which decision 0002 froze.
FROZEN = "6f0ca87a7441e5a61b34ce088c2a5d26088200ef58a0bb749b5fe934739a3933"


def test_rules_are_those_that_were_frozen() -> None:
    constants = {
        "rules": dataclasses.asdict(MarketRules()),
        "names": {
            name: getattr(names, name)
            for name in (
                *("CATEGORIES", "COUNTRIES", "AGES", "GENDERS", "DEVICES", "FORMATS"),
                *("PLACEMENTS", "DAYPARTS"),
            )
        },
    }

    digest = hashlib.sha256(json.dumps(constants, sort_keys=True).encode()).hexdigest()

    # Red here means another market: decide so in a record and raise MARKET_VERSION.
    assert digest == FROZEN


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("days", 0, "days: must be a whole number of at least 1, got 0"),
        ("slate", 2.0, "slate: must be a whole number of at least 1, got 2.0"),
        ("exploration", 1.1, r"exploration: must be in \[0, 1\], got 1.1"),
        ("click_rate", 0.0, r"click_rate: must be in \(0, 1\), got 0.0"),
        ("activity_exponent", 0.0, "activity_exponent: must be positive and finite, got 0.0"),
        ("match_sd", -0.1, "match_sd: must be finite and not negative, got -0.1"),
        ("drift", math.inf, "drift: must be finite and not negative, got inf"),
        ("interest", math.nan, "interest: must be finite, got nan"),
        ("candidates", 3, "candidates: must be at least slate=4, got 3"),
    ],
)
def test_constant_out_of_its_range_is_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=f"MarketRules.{message}"):
        MarketRules(**{name: value})


def test_effects_may_be_turned_round_or_off() -> None:
    rules = MarketRules(interest=-0.3, match_sd=0.0, exploration=1.0)

    assert (rules.interest, rules.match_sd, rules.exploration) == (-0.3, 0.0, 1.0)
