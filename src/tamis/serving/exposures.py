"""Experiments in the store: their tables, and what came of the users that were exposed.

experiments    one row an experiment, with its plan
exposures      one row an answered request of an experiment, written with the request itself
exposed_ads    the ads of its answer, and what events of them are worth
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from tamis.evaluation.experiment import UserTotals
from tamis.serving.records import Experiment, ServedRequest

TABLES = sa.MetaData()
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""Type of rows that number themselves: SQLite does so in a column of exactly this type alone."""
experiments = sa.Table(
    "experiments",
    TABLES,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("experiment", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("control", sa.Text, nullable=False),
    sa.Column("treatment", sa.Text, nullable=False),
    sa.Column("treated_share", sa.Double, nullable=False),
    sa.Column("attribution_micros", sa.BigInteger, nullable=False),
    sa.Column("smallest", sa.Text, nullable=False),
    sa.Column("began_micros", sa.BigInteger, nullable=False),
    sa.Column("ended_micros", sa.BigInteger),
)
_exposures = sa.Table(
    "exposures",
    TABLES,
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("experiment", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("is_treated", sa.Boolean, nullable=False),
    sa.Column("time_micros", sa.BigInteger, nullable=False),
    sa.Index("exposures_of_user", "experiment", "user_id"),
)
_exposed_ads = sa.Table(
    "exposed_ads",
    TABLES,
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("ad_id", sa.Text, primary_key=True),
    sa.Column("impression_worth", sa.Double, nullable=False),
    sa.Column("click_worth", sa.Double, nullable=False),
    sa.Column("conversion_worth", sa.Double, nullable=False),
    sa.Column("hide_worth", sa.Double, nullable=False),
)


def expose(connection: sa.Connection, requests: Sequence[ServedRequest]) -> None:
    """Write the exposures of requests that were not in the store before."""
    exposed = [(item, item.exposure) for item in requests if item.exposure is not None]
    rows = [
        {
            "request_id": request.request_id,
            "experiment": exposure.arm.experiment,
            "user_id": request.user,
            "is_treated": exposure.arm.is_treated,
            "time_micros": request.time_micros,
        }
        for request, exposure in exposed
    ]
    ads = [
        {
            "request_id": request.request_id,
            "ad_id": shown.ad,
            "impression_worth": worth.impression,
            "click_worth": worth.click,
            "conversion_worth": worth.conversion,
            "hide_worth": worth.hide,
        }
        for request, exposure in exposed
        for shown, worth in zip(request.shown, exposure.worths, strict=True)
    ]
    if rows:
        connection.execute(sa.insert(_exposures), rows)
    if ads:
        connection.execute(sa.insert(_exposed_ads), ads)


def row_of(item: Experiment) -> dict[str, Any]:
    """An experiment as the table has it."""
    return {
        "experiment": item.experiment,
        "kind": item.kind,
        "control": item.control,
        "treatment": item.treatment,
        "treated_share": item.treated_share,
        "attribution_micros": item.attribution_micros,
        "smallest": json.dumps(dict(item.smallest), allow_nan=False),
        "began_micros": item.began_micros,
        "ended_micros": item.ended_micros,
    }


def experiment_of(row: Any) -> Experiment:  # noqa: ANN401  (a row of any table)
    """An experiment from its row."""
    return Experiment(
        experiment=row.experiment,
        kind=row.kind,
        control=row.control,
        treatment=row.treatment,
        treated_share=row.treated_share,
        attribution_micros=row.attribution_micros,
        smallest=json.loads(row.smallest),
        began_micros=row.began_micros,
        ended_micros=row.ended_micros,
    )


def totals_of(
    connection: sa.Connection, events: sa.Table, item: Experiment, *, now_micros: int
) -> UserTotals:
    """Sums of every user that was exposed, zeros for those whose answers nobody saw.

    An ad was seen if there is any event of it that names its request. A conversion counts with a
    click alone, and within the time of attribution after its request; a click is settled once that
    time is over.
    """
    ad, exposure = _exposed_ads.c, _exposures.c
    ends = exposure.time_micros + item.attribution_micros

    def happened(kind: str) -> Any:  # noqa: ANN401
        return sa.func.max(sa.case((events.c.kind == kind, 1), else_=0)).label(kind)

    is_in_time = (events.c.kind == "conversion") & (events.c.time_micros < ends)
    seen = (
        sa.select(
            ad.request_id,
            ad.impression_worth,
            ad.click_worth,
            ad.conversion_worth,
            ad.hide_worth,
            happened("click"),
            happened("hide"),
            sa.func.max(sa.case((is_in_time, 1), else_=0)).label("conversion"),
            sa.case((ends <= now_micros, 1), else_=0).label("is_settled"),
        )
        .select_from(_exposures)
        .join(_exposed_ads, ad.request_id == exposure.request_id)
        .join(
            events,
            (events.c.request_id == ad.request_id) & (events.c.ad_id == ad.ad_id),
        )
        .where(exposure.experiment == item.experiment)
        # The others hang on these, which not every database knows.
        .group_by(
            ad.request_id, ad.ad_id, ad.impression_worth, ad.click_worth, ad.conversion_worth,
            ad.hide_worth, exposure.time_micros,
        )
        .subquery()
    )  # fmt: skip
    one = seen.c
    converted = one.click * one.conversion
    worth = (
        one.impression_worth
        + one.click * one.click_worth
        + converted * one.conversion_worth
        + one.hide * one.hide_worth
    )
    sums = (
        sa.func.count(one.request_id),
        sa.func.sum(one.click),
        sa.func.sum(one.click * one.is_settled),
        sa.func.sum(converted * one.is_settled),
        sa.func.sum(one.hide),
        sa.func.sum(worth),
    )
    by_user = (
        sa.select(exposure.is_treated, *(sa.func.coalesce(column, 0) for column in sums))
        .select_from(_exposures)
        .outerjoin(seen, one.request_id == exposure.request_id)
        .where(exposure.experiment == item.experiment)
        .group_by(exposure.user_id, exposure.is_treated)
    )
    rows = [tuple(map(float, row)) for row in connection.execute(by_user)]
    columns = np.array(rows, np.float64).reshape(len(rows), 1 + len(sums)).T
    treated, impressions, clicks, settled, conversions, hides, value = columns
    return UserTotals(
        is_treated=treated == 1.0,
        impressions=impressions,
        clicks=clicks,
        settled_clicks=settled,
        conversions=conversions,
        hides=hides,
        value=value,
    )
