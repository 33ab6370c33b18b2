"""A published funnel as the policy of a live market: its models around the ads of each hour."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.columns import Origin, as_codes, as_floats, source_column
from tamis.data.encoders import Encoders, required_columns
from tamis.data.market import (
    LiveMarket,
    LiveRequests,
    LoggingPolicy,
    MarketSummary,
    Policy,
    Slates,
    simulate_served,
)
from tamis.data.market.tables import LOG_COLUMNS
from tamis.data.vocabulary import FieldCounts
from tamis.errors import DataError, SchemaError
from tamis.funnel.blueprint import Blueprint
from tamis.funnel.bundle import read_bundle
from tamis.funnel.inventory import Inventory
from tamis.funnel.live import FunnelPolicy, ServedFunnel, ad_rows, ad_table
from tamis.funnel.log import ads_of

_CHANGING = frozenset(("ad_age_days", "ad_click_rate", "budget_left"))
"""Columns of an ad that are another every hour."""


def bundle_policy(
    blueprint: Blueprint, market: LiveMarket, *, judge_every: int = 100
) -> FunnelPolicy:
    """Let a funnel serve the market whose log it was trained on.

    Every hour the models stay, and the ads are those that live then, with the bids of the market
    and features as they are: an index is built anew of them, so that ads which were born after the
    publishing are found by their content, and dead ones never. Popularity stays as it was
    published; ads that it does not know have none. Budgets of milliseconds are lifted: what users
    see must not depend on the machine that simulates them.

    Args:
        blueprint: Of ``read_bundle``.
        market: What it will serve.
        judge_every: One request in so many tells all its candidates. At least 1.

    Raises:
        ConfigError: ``judge_every`` is below 1.
        DataError: The bundle's ads are not those of the market, or it has other bids for them than
            1 and the market's.
        SchemaError: The bundle reads fields that the market does not show.
    """
    encoders = blueprint.encoders
    _check_fields(encoders)
    _check_ads(blueprint, market)
    patient = blueprint.without_time_limits()

    def serve(requests: LiveRequests) -> ServedFunnel:
        codes = _codes_of(requests.ad_features)
        inventory = Inventory(
            codes=codes,
            attributes=ad_table(requests.ad_features),
            rows=ad_rows(requests, encoders),
            popularity=_popularity_of(codes, blueprint.inventory),
        )
        funnel = patient.of_ads(inventory).build()
        return ServedFunnel(funnel=funnel, ad=requests.ad.astype(np.int64))

    return FunnelPolicy(serve, encoders=encoders, judge_every=judge_every)


def serve_market(
    bundle: Path,
    out: Path,
    *,
    rows: int,
    seed: int = 0,
    first_day: int = 0,
    days: int | None = None,
    judge_every: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> MarketSummary:
    """Let a published funnel serve simulated users, and write an ordinary market's log.

    Args:
        bundle: Trained on the market of the same rows and seed.
        out: Folder that does not exist yet, or is empty. Beside the log it holds prices and, for
            the requests that are judged, all candidates with the scores of every stage.
        rows: Impressions of the whole market, all its days, if every place is filled.
        seed: Seed of the market.
        first_day: Day, from 0, on which the funnel begins; until then the market's own policy
            serves, and nothing is written.
        days: Days to serve; None for all that are left.
        judge_every: One request in so many tells all its candidates.
        progress: Told how many hours of how many are over.

    Raises:
        ArtifactError: The folder is no bundle, or it is damaged.
        ConfigError: ``judge_every`` is below 1.
        DataError: ``out`` is not empty, the bundle's ads are of another market, or the market has
            not so many days.
        SchemaError: The bundle reads fields that the market does not show.
    """
    blueprint = read_bundle(bundle).blueprint
    market = LiveMarket(rows, seed=seed)
    last_day = end_of_days(market, first_day, days)
    policy, warm_up = (
        telling(one, progress, hours=24 * last_day)
        for one in (
            bundle_policy(blueprint, market, judge_every=judge_every),
            LoggingPolicy(market, seed=seed),
        )
    )
    if first_day:
        for _ in market.serve(warm_up, days=first_day):
            pass
    return simulate_served(market, policy, out, days=last_day - first_day)


def telling(policy: Policy, progress: Callable[[int, int], None] | None, *, hours: int) -> Policy:
    """The same policy, which tells how many hours of how many are over when it is asked."""
    if progress is None:
        return policy

    def told(requests: LiveRequests) -> Slates:
        progress(requests.hour, hours)
        return policy(requests)

    return told


def end_of_days(market: LiveMarket, first_day: int, days: int | None) -> int:
    """The day before which a funnel stops that serves some days of a market, or all that are left.

    Raises:
        DataError: The market has not so many days.
    """
    last_day = market.rules.days if days is None else first_day + days
    if not 0 <= first_day < last_day <= market.rules.days:
        raise DataError(
            f"days: must be some of the market's {market.rules.days}, got first_day={first_day} "
            f"and days={days}. Begin earlier, or serve fewer."
        )
    return last_day


def _check_fields(encoders: Encoders) -> None:
    strange = sorted(set(required_columns(encoders.schema, inputs_only=True)) - set(LOG_COLUMNS))
    if strange:
        raise SchemaError(
            f"bundle: its fields must be columns of a simulated market, got {strange[0]!r}. Serve "
            f"a bundle that was trained on a market's log."
        )


def _check_ads(blueprint: Blueprint, market: LiveMarket) -> None:
    """Compare what never changes of an ad; markets of other seeds or sizes have other ads."""
    ads, inventory, encoders = market.ads(), blueprint.inventory, blueprint.encoders
    rows = ads_of(inventory.codes, _codes_of(ads))
    _refuse("ad_id", rows < 0, market)
    origin = Origin(file="ads of the market")
    for field in encoders.schema.fields:
        if field.side != "item" or field.is_jagged or field.source not in ads.column_names:
            continue
        if field.source in _CHANGING:
            continue
        column = source_column(ads, field.source, origin=origin)
        if field.kind == "numeric":
            if field.is_category:
                continue
            encoder = encoders.numeric[field.name]
            known = encoder.encode(as_floats(column, origin=origin), FieldCounts())
            ours = inventory.rows.numeric[field.name]
        else:
            known = encoders.vocabularies[field.shares or field.name].encode(column, FieldCounts())
            ours = inventory.rows.ids[field.name]
        _refuse(field.source, known[rows] != ours, market)
    _check_bids(inventory.attributes.bid, ad_table(ads).bid[rows])


def _check_bids(published: NDArray[np.float64], ours: NDArray[np.float64]) -> None:
    """Refuse money of another unit: penalties and the reserve stay as they were published."""
    if (published == 1).all():  # no table of bids was given
        return
    differs = ~np.isclose(published, ours, rtol=1e-6, atol=0.0)
    if differs.any():
        row = int(np.argmax(differs))
        raise DataError(
            f"bundle: its bids must be those of the market, in currency units, got "
            f"{published[row].item()!r} instead of {ours[row].item()!r} (another one for "
            f"{np.count_nonzero(differs):,} of {len(differs):,} ads). Publish it with the market's "
            f"ads.parquet as ads.table, bid_micros as ads.bid and 1e-6 as ads.bid_unit."
        )


def _refuse(column: str, differs: NDArray[np.bool_], market: LiveMarket) -> None:
    if differs.any():
        raise DataError(
            f"bundle: its ads must be those of the market of {market.running.rows:,} rows and seed "
            f"{market.seed}, got another {column} for {np.count_nonzero(differs):,} of "
            f"{len(differs):,} ads. Simulate with the rows and the seed of the log that it was "
            f"trained on."
        )


def _codes_of(ads: pa.Table) -> NDArray[np.int64]:
    """Codes of ads as the role ``item`` of a market's log has them."""
    return as_codes(source_column(ads, "ad_id", origin=Origin(file="ads of the market")))


def _popularity_of(codes: NDArray[np.int64], published: Inventory) -> NDArray[np.float64]:
    """Popularity (n,) of some ads; 0 for those that are not published."""
    rows = ads_of(codes, published.codes)
    return np.where(rows >= 0, published.popularity[rows], 0.0)
