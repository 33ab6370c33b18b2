"""Stages, clocks and requests whose every move a test decides."""

from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tamis.data.batch import blank_batch
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.ingest import ingest
from tamis.data.market import simulate
from tamis.data.market.schema import market_schema
from tamis.data.schema import InputSpec, Task
from tamis.data.vocabulary import Vocabulary
from tamis.evaluation.calibrators import GroupedCalibrator, IsotonicCalibrator, PlattCalibrator
from tamis.funnel.ads import AdTable
from tamis.funnel.blueprint import Blueprint, Budget, PlannedStage
from tamis.funnel.calibration import Calibration
from tamis.funnel.candidates import Candidates
from tamis.funnel.inventory import Inventory
from tamis.funnel.log import logged_ads
from tamis.funnel.plans import (
    EarlyStagePlan,
    EarlyStageSettings,
    PopularityPlan,
    RankerPlan,
    RankerSettings,
)
from tamis.funnel.ranker import AdFeatures
from tamis.funnel.request import Request
from tamis.funnel.retrieval_plans import IndexPlan, IndexSettings
from tamis.funnel.stage import Scored
from tamis.funnel.value import ValueWeights
from tamis.models import catalog
from tamis.models.hsnn import HSNN
from tamis.models.monn import MoNNConfig
from tamis.models.trained import TrainedModel

Function = Callable[[NDArray[np.int64]], NDArray[np.float64]]


class ManualClock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def now_ms(self) -> float:
        return self.now

    def advance(self, ms: float) -> None:
        self.now += ms

    def wait(self, future: "futures.Future[Any]", *, until_ms: float) -> bool:
        # The work itself moves the clock: how long it took is known when it has ended.
        future.exception(timeout=60)
        return self.now <= until_ms


@dataclass
class FakeStage:
    """Scores by a function of the ad row, and remembers what it was asked."""

    score: Function
    predicts: Mapping[str, Function] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None
    asked: list[list[int]] = field(default_factory=list)

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        self.asked.append(candidates.ads.tolist())
        self.before()
        ads = candidates.ads
        predictions = {name: function(ads) for name, function in self.predicts.items()}
        scored = Candidates(ads=ads, scores=self.score(ads) * 1.0, predictions=predictions)
        return Scored(candidates=scored, scored_pairs=len(ads), flops=10.0 * len(ads))


class ClickValue:
    """``bid * p_click``."""

    def score(
        self,
        predictions: Mapping[str, NDArray[np.float64]],
        bid: NDArray[np.float64],
        billing: NDArray[Any],
    ) -> NDArray[np.float64]:
        return bid * predictions["click"]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make_stage() -> type[FakeStage]:
    return FakeStage


@pytest.fixture
def click_value() -> ClickValue:
    return ClickValue()


@pytest.fixture
def make_ads() -> Callable[[int], AdTable]:
    """Ads of bid 1, an advertiser each, without quality."""

    def make(count: int, **changes: NDArray[Any]) -> AdTable:
        columns: dict[str, NDArray[Any]] = {
            "bid": np.ones(count),
            "billing": np.zeros(count, np.int8),
            "advertiser": np.arange(count),
            "quality": np.zeros(count),
        }
        return AdTable(**(columns | changes))

    return make


@pytest.fixture
def make_request() -> Callable[..., Request]:
    def make(request_id: int = 0, **changes: Any) -> Request:
        settings: dict[str, Any] = {"user": 0, "time_micros": 0, "slots": 2}
        return Request(request_id=request_id, **(settings | changes))

    return make


@pytest.fixture(scope="session")
def market_data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small simulated market, split by time."""
    folder = tmp_path_factory.mktemp("market")
    simulate(6000, folder / "market", seed=2)
    return ingest(folder / "market", folder / "data", schema=market_schema())


def _untrained(spec: InputSpec, name: str, **options: Any) -> TrainedModel:
    entry = catalog.entry(name)
    settings = entry.config(**options)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = entry.model(settings, spec).eval()
    return TrainedModel(name=name, config=settings, spec=spec, module=module)


def _inventory(data: Dataset) -> Inventory:
    ads = logged_ads([data.split("train")], data.schema, data.spec)
    generator, count = np.random.default_rng(0), len(ads.codes)
    attributes = AdTable(
        bid=generator.lognormal(size=count),
        billing=np.array(["click", "conversion"])[generator.integers(0, 2, count)],
        advertiser=ads.rows.ids["advertiser_id"].astype(np.int64),
        quality=generator.normal(0, 0.01, count),
    )
    popularity = generator.integers(0, 50, count).astype(np.float64)
    return Inventory(codes=ads.codes, attributes=attributes, rows=ads.rows, popularity=popularity)


def _early_encoders(whole: Encoders) -> Encoders:
    """Without histories and with fewer fields, in another order; half of the ads are unknown."""
    dropped = {"campaign_id", "hour", "history_ads", "history_categories", "price", "user_requests"}
    fields = tuple(item for item in reversed(whole.schema.fields) if item.name not in dropped)
    known = {item.name for item in fields}
    vocabularies = {name: v for name, v in whole.vocabularies.items() if name in known}
    ads = vocabularies["ad_id"].values
    assert ads is not None
    half = ads.take(list(range(len(ads) - 1, 0, -2)))
    vocabularies["ad_id"] = Vocabulary(values=half, num_rows=len(half) + 1)
    return Encoders(
        schema=replace(
            whole.schema,
            fields=fields,
            tasks=(
                *whole.schema.tasks,
                Task(name="final_click", kind="probability", distils="click"),
            ),
        ),
        vocabularies=vocabularies,
        numeric={name: encoder for name, encoder in whole.numeric.items() if name in known},
    )


def _searched_model(encoders: Encoders, inventory: Inventory) -> TrainedModel:
    """An HSNN none of whose weights is at its start, with codebooks of the inventory's vectors."""
    small = MoNNConfig(user_tokens=2, user_dim=4, width=4, module_tokens=2, head_units=(8,))
    options = {"embedding_dim": 4, "item_dim": 6, "cross_dim": 4, "attention_units": 4}
    model = _untrained(
        encoders.spec, "hsnn", levels=(small, small, small), codebooks=(5, 3), **options
    )
    hsnn = model.module
    assert isinstance(hsnn, HSNN)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in hsnn.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    features = AdFeatures.of_rows(inventory.rows, encoders.schema, encoders.spec)
    ads = torch.arange(len(inventory))
    nobody = blank_batch(encoders.spec, 1, torch.device("cpu"))
    vectors = hsnn.encode_items(features.pairs(nobody, torch.zeros_like(ads), ads)).detach()
    hsnn.index.fit(vectors, seed=0)
    return model


def _with_index(blueprint: Blueprint) -> Blueprint:
    """The blueprint with a learnt index as its first stage in place of popularity."""
    plan = IndexPlan.publish(
        _searched_model(blueprint.encoders, blueprint.inventory),
        blueprint.inventory,
        blueprint.encoders,
        settings=IndexSettings(beams=(3, 5)),
    )
    first = PlannedStage(budget=Budget(name="index", keep=60), plan=plan)
    return replace(blueprint, stages=(first, *blueprint.stages[1:]))


@pytest.fixture(scope="session")
def searched(blueprint: Blueprint) -> Blueprint:
    """The blueprint with a learnt index as its first stage in place of popularity."""
    return _with_index(blueprint)


@pytest.fixture(scope="session")
def counting(blueprint: Blueprint) -> Blueprint:
    """An index alone, whose model reads how often a user met an ad's category."""
    schema = blueprint.encoders.schema
    counts = {"side": "context", "transform": "none", "counts": "history_categories"}
    fields = tuple(
        replace(item, **counts) if item.name == "user_requests" else item for item in schema.fields
    )
    encoders = replace(blueprint.encoders, schema=replace(schema, fields=fields))
    found = _with_index(replace(blueprint, encoders=encoders))
    return replace(found, stages=found.stages[:1])


@pytest.fixture(scope="session")
def of_ads_alone(blueprint: Blueprint) -> RankerPlan:
    """A final stage that reads nothing of the request."""
    whole = blueprint.encoders
    encoders = whole.without([item.name for item in whole.schema.fields if item.side != "item"])
    model = _untrained(encoders.spec, "deepfm", hidden_units=(8,), init_std=0.5)
    return RankerPlan(model=model, encoders=encoders)


@pytest.fixture(scope="session")
def blueprint(market_data: Dataset) -> Blueprint:
    """Popular ads, an early stage and a final one, neither of them trained."""
    spec = market_data.spec
    encoders = Encoders.load(market_data.encoders_path, market_data.schema)
    narrow = _early_encoders(encoders)
    sizes = {"tower_units": (8,), "tower_dim": 6, "bottom_units": (9,), "head_units": ()}
    early = _untrained(narrow.spec, "early_stage", init_std=0.5, **sizes)
    final = _untrained(spec, "din", hidden_units=(8,), init_std=0.5)
    platt = PlattCalibrator(slope=0.9, intercept=1 / 3)
    steps = IsotonicCalibrator(predicted=(0.1, 0.7), calibrated=(0.05, 2 / 3))
    of_click = GroupedCalibrator(by_group={"click": platt}, other=steps)
    stages = (
        PlannedStage(budget=Budget(name="popular", keep=60), plan=PopularityPlan()),
        PlannedStage(
            budget=Budget(name="early", keep=12),
            plan=EarlyStagePlan(
                model=early,
                encoders=narrow,
                settings=EarlyStageSettings(max_users=50, flops_per_pair=300.0),
                calibration=Calibration(by_task={"click": of_click}),
            ),
        ),
        PlannedStage(
            budget=Budget(name="final", keep=6, budget_ms=60_000.0),
            plan=RankerPlan(model=final, settings=RankerSettings(flops_per_pair=1e4)),
        ),
    )
    return Blueprint(
        encoders=encoders,
        inventory=_inventory(market_data),
        weights=ValueWeights(penalties={"hide": 0.1}),
        stages=stages,
        reserve=0.01,
    )
