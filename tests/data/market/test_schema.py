"""The market's own schema names the columns that the market writes."""

import pyarrow as pa

from tamis.data.market import market_schema


def test_every_column_of_the_log_has_one_meaning(log: pa.Table) -> None:
    schema = market_schema()
    named = [field.name for field in schema.fields]
    named += [task.name for task in schema.tasks]
    named += [ignored.column for ignored in schema.ignored]
    roles = {schema.roles.time, schema.roles.request}

    assert len(named) == len(set(named))
    assert set(named) | roles == set(log.column_names)
    assert {schema.roles.user, schema.roles.item} <= set(named)


def test_conversion_is_observed_where_there_is_a_click() -> None:
    observed = {task.name: task.observed_when for task in market_schema().tasks}

    assert observed == {"click": "", "conversion": "click", "hide": ""}


def test_history_shares_the_tables_of_what_it_holds() -> None:
    shares = {field.name: field.shares for field in market_schema().fields if field.shares}

    assert shares == {"history_ads": "ad_id", "history_categories": "category"}
