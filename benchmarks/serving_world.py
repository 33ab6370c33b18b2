"""A published funnel of any size over made-up ads, and the requests that ask it.

Exact retrieval by two towers keeps 1000 of all ads, an early-stage ranker 100 of these, DCN-V2 20.
Fields are those of the simulated market, a history of up to 20 clicks included. Weights are drawn,
not trained: time does not depend on them. What is measured is the bundle as ``tamis serve`` reads
it, so that the peers serve the very same weights, encoders and ads.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tamis.data.columns import Origin, as_codes
from tamis.data.dataset import EncodedRows
from tamis.data.encoders import Encoders, EncodersFit
from tamis.data.market.schema import market_schema
from tamis.funnel.ads import AdTable
from tamis.funnel.blueprint import Blueprint, Budget, PlannedStage
from tamis.funnel.bundle import write_bundle
from tamis.funnel.inventory import Inventory
from tamis.funnel.online import Counter, History, OnlineFeatures
from tamis.funnel.plans import (
    EarlyStagePlan,
    EarlyStageSettings,
    Precision,
    RankerPlan,
    RankerSettings,
)
from tamis.funnel.retrieval_plans import TwoTowerPlan
from tamis.funnel.value import ValueWeights
from tamis.models import catalog
from tamis.models.trained import TrainedModel

USERS, CATEGORIES, HISTORY = 20_000, 100, 20
ADS_PER_CAMPAIGN, ADS_PER_ADVERTISER = 4, 20
SLOTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How wide the funnel is."""

    ads: int = 200_000
    """All ads."""
    retrieved: int = 1000
    """Ads that retrieval keeps."""
    early: int = 100
    """Ads that the early stage keeps for the final one."""
    final: int = 20
    """Ads that the final stage keeps for the auction."""


def publish(folder: Path, sizes: Sizes, *, precision: Precision = "float32") -> None:
    """Write the bundle; the same sizes give the same weights, whatever the precision."""
    torch.manual_seed(0)
    schema = market_schema()
    table = _log(sizes.ads)
    fit = EncodersFit(schema)
    for _ in range(3):  # ids that are seen less often have no row of their own
        fit.add(table, origin=Origin(file="log"))
    encoders = fit.finish()
    names = ("two_tower", "early_stage", "dcn_v2")
    towers, early, final = (_drawn_model(name, encoders) for name in names)
    stages = (
        (Budget(name="retrieval", keep=sizes.retrieved), TwoTowerPlan(model=towers)),
        (
            Budget(name="early", keep=sizes.early),
            EarlyStagePlan(model=early, settings=EarlyStageSettings(precision=precision)),
        ),
        (
            Budget(name="final", keep=sizes.final),
            RankerPlan(model=final, settings=RankerSettings(precision=precision)),
        ),
    )
    blueprint = Blueprint(
        encoders=encoders,
        inventory=_inventory(table.slice(0, sizes.ads), encoders),
        weights=ValueWeights(penalties={"hide": 0.01}),
        stages=tuple(PlannedStage(budget=budget, plan=plan) for budget, plan in stages),
        online=OnlineFeatures(
            histories=(History(group="history", event="click"),),
            counters=(Counter(field="user_requests", counts="request"),),
        ),
    )
    write_bundle(folder, blueprint)


def requests(sizes: Sizes, count: int, *, seed: int) -> list[dict[str, Any]]:
    """Bodies of requests for ads: a random user, a context, and a history that the request says."""
    generator = np.random.default_rng(seed)
    bodies = []
    for number in range(count):
        length = int(generator.integers(0, HISTORY + 1))
        clicked = generator.integers(0, sizes.ads, length)
        bodies.append(
            {
                "request_id": f"{seed}-{number}",
                "user": {
                    "id": f"u{generator.integers(0, USERS)}",
                    "features": {
                        "age": f"age{generator.integers(0, 6)}",
                        "gender": f"g{generator.integers(0, 3)}",
                        "country": f"c{generator.integers(0, 20)}",
                        "user_requests": float(generator.integers(0, 100)),
                        "history_ads": [f"a{ad}" for ad in clicked],
                        "history_categories": [f"k{ad % CATEGORIES}" for ad in clicked],
                    },
                },
                "context": {
                    "device": f"d{generator.integers(0, 4)}",
                    "placement": f"p{generator.integers(0, 5)}",
                    "position": "0",
                    "hour": f"{generator.integers(0, 24)}",
                    "weekday": f"{generator.integers(0, 7)}",
                },
                "k": SLOTS,
            }
        )
    return bodies


def _log(num_ads: int) -> pa.Table:
    """A row for each ad, and one for each user; every value that requests can hold is in it."""
    generator = np.random.default_rng(1)
    count = max(num_ads, USERS)
    row = np.arange(count)
    ad = row % num_ads

    def text(prefix: str, values: Any) -> pa.Array:  # noqa: ANN401  (any integers)
        return pa.array([f"{prefix}{value}" for value in values])

    # One ad in each history is enough for the vocabulary, which ads of the log share.
    lists = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32)), text("a", ad))
    kinds = pa.ListArray.from_arrays(
        pa.array(np.arange(count + 1, dtype=np.int32)), text("k", ad % CATEGORIES)
    )
    return pa.table(
        {
            "user_id": text("u", row % USERS),
            "age": text("age", row % 6),
            "gender": text("g", row % 3),
            "country": text("c", row % 20),
            "ad_id": text("a", ad),
            "campaign_id": text("m", ad // ADS_PER_CAMPAIGN),
            "advertiser_id": text("v", ad // ADS_PER_ADVERTISER),
            "category": text("k", ad % CATEGORIES),
            "format": text("f", ad % 3),
            "device": text("d", row % 4),
            "placement": text("p", row % 5),
            "position": text("", row % 4),
            "hour": text("", row % 24),
            "weekday": text("", row % 7),
            "bid_micros": np.round(generator.lognormal(13, 1, count)),
            "price": generator.lognormal(3, 1, count),
            "ad_age_days": generator.integers(0, 90, count).astype(np.float64),
            "ad_click_rate": generator.beta(1, 30, count),
            "budget_left": generator.random(count),
            "user_requests": generator.integers(0, 100, count).astype(np.float64),
            "history_ads": lists,
            "history_categories": kinds,
        }
    )


def _drawn_model(name: str, encoders: Encoders) -> TrainedModel:
    """A model of the catalog with its usual widths; its embeddings are wide enough to matter."""
    entry = catalog.entry(name)
    settings = entry.config(init_std=0.3)
    module = entry.model(settings, encoders.spec).eval()
    return TrainedModel(name=name, config=settings, spec=encoders.spec, module=module)


def _inventory(table: pa.Table, encoders: Encoders) -> Inventory:
    rows = encoders.encode(table, first_row=0, origin=Origin(file="ads"), inputs_only=True)
    sources = [item.source for item in encoders.schema.fields if item.side == "item"]
    of_item = {item.name for item in encoders.schema.fields if item.side == "item"}
    count = table.num_rows
    return Inventory(
        codes=as_codes(table["ad_id"].combine_chunks()),
        attributes=AdTable(
            bid=table["bid_micros"].to_numpy() / 1e6,
            billing=np.full(count, "click"),
            advertiser=np.arange(count) // ADS_PER_ADVERTISER,
            quality=np.zeros(count),
        ),
        rows=EncodedRows(
            row=rows.row,
            numeric={name: rows.numeric[name] for name in rows.numeric if name in of_item},
            ids={name: rows.ids[name] for name in rows.ids if name in of_item},
        ),
        popularity=np.random.default_rng(2).random(count),
        raw=table.select(sources),
    )
