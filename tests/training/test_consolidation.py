"""Costs of a request against sums on paper, and one model against several."""

from dataclasses import replace

import pytest
import torch

from tamis.data.schema import CategoricalInput, InputSpec, Table, Task
from tamis.errors import ConfigError
from tamis.models.early_stage import EarlyStage, EarlyStageConfig
from tamis.training.consolidation import (
    Load,
    compare_costs,
    equal_cost_config,
    request_cost,
)

pytestmark = pytest.mark.slow

_TASKS = (
    Task(name="click"),
    Task(name="conversion", observed_when="click"),
    Task(name="hide"),
    Task(name="final_click", kind="probability", distils="click"),
    Task(name="final_conversion", kind="probability", distils="conversion"),
    Task(name="final_hide", kind="probability", distils="hide"),
)
_SPEC = InputSpec(
    numeric=("age", "price"),
    categorical=(
        CategoricalInput(name="user", table="user", side="user"),
        CategoricalInput(name="ad", table="ad", side="item"),
        CategoricalInput(name="brand", table="brand", side="item"),
        CategoricalInput(name="hour", table="hour", side="context"),
    ),
    sequences=(),
    tables=(
        Table(name="user", num_rows=1000),
        Table(name="ad", num_rows=500),
        Table(name="brand", num_rows=20),
        Table(name="hour", num_rows=24),
    ),
    tasks=_TASKS,
    numeric_sides=("user", "item"),
)
# A task that needs another's event stays learned from the rows that have its label.
_SINGLES = tuple(
    replace(_SPEC, tasks=(replace(_TASKS[place], observed_when=""), _TASKS[place + 3]))
    for place in range(3)
)
_CONFIG = EarlyStageConfig(
    embedding_dim=4, tower_units=(10,), tower_dim=6, bottom_units=(12, 8), head_units=(5,)
)
_LOAD = Load(candidates=100, miss_rate=0.05)


def _model(spec: InputSpec = _SPEC, config: EarlyStageConfig = _CONFIG) -> EarlyStage:
    return EarlyStage(config, spec)


def test_flops_of_a_request_on_paper() -> None:
    cost = request_cost(_model(), _LOAD)

    # User: 4 + 1 numbers; context: 4; ad: 2 * 4 + 1. Each to 10, then to 6.
    user, context, ad = 5 * 10 + 10 * 6, 4 * 10 + 10 * 6, 9 * 10 + 10 * 6
    # The query's 12 numbers meet the first layer once, the ad's 6 a hundred times.
    pairs = 12 * 12 + 100 * (6 * 12 + 12 * 8 + 3 * (8 * 5 + 5))
    assert cost.flops == 2 * (user + context + 0.05 * 100 * ad + pairs)


def test_heads_that_do_not_serve_cost_nothing() -> None:
    model = _model()
    label, both = (request_cost(model, _LOAD, head=head) for head in ("label", "mean"))

    assert both.flops - label.flops == 2 * 100 * 3 * (8 * 5 + 5)
    assert both.dense_parameters - label.dense_parameters == 3 * (8 * 5 + 5 + 5 + 1)


def test_memory_and_fetches_on_paper() -> None:
    cost = request_cost(_model(), _LOAD)

    assert cost.table_bytes == 4 * 4 * (1000 + 500 + 20 + 24)
    # User and age, the hour; of five ads that are not cached: ad, brand and price.
    assert cost.features_fetched == 2 + 1 + 5 * 3
    assert cost.vectors_fetched == 100
    tower = 10 + 6
    # A user's embedding and tower, the hour's, five ads' of two embeddings each.
    towers = (4 + tower) + (4 + tower) + 5 * (8 + tower)
    pairs = 12 + 100 * (12 + 8 + 3 * (5 + 1))
    assert cost.activation_bytes == 4 * (towers + pairs)
    parameters = (5 + 4 + 9 + 3) * 10 + 3 * (10 * 6 + 6)
    parameters += 18 * 12 + 12 + 12 * 8 + 8 + 3 * (8 * 5 + 5 + 5 + 1)
    assert cost.dense_parameters == parameters


@pytest.mark.parametrize("bottom", ["mmoe", "ple", "dot"])
def test_pairs_are_what_a_cached_ad_costs(bottom: str) -> None:
    model = _model(config=replace(_CONFIG, bottom=bottom, expert_units=((8,),)))
    one, two = (
        request_cost(model, Load(candidates=count, miss_rate=0.0)).flops for count in (100, 200)
    )
    if bottom == "dot":
        assert two - one == 2 * 100 * 3 * 6
    else:
        assert two - one > 2 * 100 * 18 * 8


def test_one_model_saves_towers_tables_and_fetches() -> None:
    singles = [_model(spec) for spec in _SINGLES]
    costs = compare_costs(_model(), singles, _LOAD)

    ratios = costs.ratios
    # Three models fetch, look up and hold everything three times; heads are not shared anyway.
    for name in ("table_bytes", "features_fetched", "vectors_fetched"):
        assert ratios[name] == pytest.approx(3)
    heads = 2 * 100 * 3 * (8 * 5 + 5)
    assert costs.apart.flops - heads == pytest.approx(3 * (costs.together.flops - heads))
    assert 1 < ratios["flops"] < 3


def test_models_of_other_tasks_do_not_compare() -> None:
    with pytest.raises(ConfigError, match="must serve click, conversion, hide, got click"):
        compare_costs(_model(), [_model(_SINGLES[0])], _LOAD)


@pytest.mark.parametrize("bottom", ["shared", "ple", "dot"])
def test_equal_cost_is_just_within_the_budget(bottom: str) -> None:
    config = EarlyStageConfig(bottom=bottom, tower_units=(64,), tower_dim=32)
    budget = request_cost(_model(config=config), _LOAD).flops / 3
    costs = []
    for spec in _SINGLES:
        smaller = equal_cost_config(config, spec, _LOAD, flops=budget)
        costs.append(request_cost(_model(spec, smaller), _LOAD).flops)

    assert all(0.9 * budget < cost <= budget for cost in costs)


def test_budget_that_allows_the_whole_model_leaves_it_whole() -> None:
    spec = _SINGLES[0]
    budget = request_cost(_model(spec), _LOAD).flops

    assert equal_cost_config(_CONFIG, spec, _LOAD, flops=budget) == _CONFIG
    with pytest.raises(ConfigError, match=r"must allow widths of 1, which cost [\d,]+, got 10"):
        equal_cost_config(_CONFIG, spec, _LOAD, flops=10)


def test_pricing_draws_nothing_from_the_callers_generator() -> None:
    spec = _SINGLES[0]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    equal_cost_config(_CONFIG, spec, _LOAD, flops=50_000)

    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("options", [{"candidates": 0}, {"miss_rate": 1.5}])
def test_load_out_of_range_is_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="load: candidates of at least 1 and a miss_rate in"):
        Load(**options)
