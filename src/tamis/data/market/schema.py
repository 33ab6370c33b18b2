"""What the columns of the simulated log mean."""

from typing import Literal

from tamis.data.schema import Field, Ignored, Roles, Schema, Side, Task


def market_schema() -> Schema:
    """The schema of a simulated log."""
    return Schema(
        fields=(
            _id("user_id", "user"),
            *(_category(name, "user") for name in ("age", "gender", "country")),
            _id("ad_id", "item"),
            _id("campaign_id", "item"),
            _id("advertiser_id", "item"),
            *(_category(name, "item") for name in ("category", "format")),
            *(
                _category(name, "context")
                for name in ("device", "placement", "position", "hour", "weekday")
            ),
            _number("bid_micros", "item", "log"),
            _number("price", "item", "log"),
            _number("ad_age_days", "item", "log"),
            _number("ad_click_rate", "item", "log"),
            _number("budget_left", "item", "standardise"),
            _number("user_requests", "user", "log"),
            Field(
                name="history_ads",
                kind="sequence",
                side="user",
                shares="ad_id",
                group="history",
                max_length=20,
            ),
            Field(
                name="history_categories",
                kind="sequence",
                side="user",
                shares="category",
                group="history",
                max_length=20,
            ),
        ),
        tasks=(
            Task(name="click"),
            Task(name="conversion", observed_when="click"),
            Task(name="hide"),
        ),
        roles=Roles(time="event_time", user="user_id", item="ad_id", request="request_id"),
        ignored=(
            Ignored(column="impression_id", reason="numbers the rows"),
            Ignored(column="conversion_time", reason="known only after the conversion"),
        ),
    )


def _id(name: str, side: Side) -> Field:
    # Rare ids share row 0, so that it is trained before a new id meets it.
    return Field(name=name, kind="categorical", side=side, min_count=3)


def _category(name: str, side: Side) -> Field:
    return Field(name=name, kind="categorical", side=side)


def _number(name: str, side: Side, transform: Literal["log", "standardise"]) -> Field:
    return Field(name=name, kind="numeric", side=side, transform=transform)
