"""What a server makes from events: only fields that a schema has for it."""

from dataclasses import replace

import pytest

from tamis.data.market.schema import market_schema
from tamis.errors import ConfigError
from tamis.funnel.online import Counter, History, OnlineFeatures


def test_fields_of_the_market_can_be_made_from_events() -> None:
    OnlineFeatures(
        histories=(History(group="history"),),
        counters=(Counter(field="user_requests", counts="request"),),
    ).check(market_schema())


@pytest.mark.parametrize(
    ("online", "message"),
    [
        (
            OnlineFeatures(histories=(History(group="past"),)),
            r"group 'past': must be a sequence group .* got none of that name. Groups: history",
        ),
        (
            OnlineFeatures(histories=(History(group="history"), History(group="history"))),
            r"online: 'history' must be named once, got it twice",
        ),
        (
            OnlineFeatures(counters=(Counter(field="visits", counts="click"),)),
            r"field 'visits' must be a numeric field that is not the ad's, got none",
        ),
        (
            OnlineFeatures(counters=(Counter(field="price", counts="click"),)),
            r"field 'price' must be .*, got kind 'numeric' of the item",
        ),
        (
            OnlineFeatures(counters=(Counter(field="device", counts="click"),)),
            r"field 'device' must be .*, got kind 'categorical' of the context",
        ),
    ],
)
def test_field_that_is_not_there_is_refused(online: OnlineFeatures, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        online.check(market_schema())


@pytest.mark.parametrize("changes", [{"shares": "device"}, {"shares": ""}, {"side": "item"}])
def test_history_must_take_what_it_holds_from_the_ad(changes: dict[str, str]) -> None:
    schema = market_schema()
    fields = tuple(
        replace(item, **changes) if item.name == "history_categories" else item
        for item in schema.fields
    )

    with pytest.raises(ConfigError, match=r"field 'history_categories' must be a sequence of the"):
        OnlineFeatures(histories=(History(group="history"),)).check(replace(schema, fields=fields))
