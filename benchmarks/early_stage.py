"""What an early stage takes for a request: one model of all tasks, one for each, and LightGBM.

Recipes are those of the table ``early-stage-market``, inputs those of the simulated market, and a
request has as many candidates. Networks have their ads' vectors at hand, as a served early stage
has, and run user's and context's towers and all pairs; their weights are drawn, as time does not
depend on them. Trees are grown on the market's true probabilities and bids and read every pair's
inputs, which are at hand too. All answer a request in turns, on one thread, and time is the
processor's, which neighbours take no part of. Ratios are named contender/full: how many times as
long it takes.
"""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import peers
import pyarrow.parquet as pq
import torch

from tamis import api, config
from tamis.data.cascade_log import cascade_schema
from tamis.data.dataset import Dataset
from tamis.data.schema import InputSpec
from tamis.funnel.value import BILLING
from tamis.reproduce.early.boosted import BoostedConfig, TreeFit, tree_inputs, with_bids
from tamis.reproduce.early.market import TASKS, early_market_schema
from tamis.reproduce.early.row import read_recipe
from tamis.reproduce.early.trained import cost_of, equal_cost_recipe, request_call
from tamis.reproduce.early.variants import FULL

RECIPES = harness.REPOSITORY / "recipes" / "early-stage-market"
CANDIDATES = 348
ROWS = {False: 200_000, True: 5_000}
ROUNDS = {False: 200, True: 10}
COLUMNS = {
    "contender": str,
    "p50_ms": lambda value: f"{value:.2f}",
    "p95_ms": lambda value: f"{value:.2f}",
    "mflop": lambda value: f"{value:.1f}",
    "trees": lambda value: f"{value:,}",
}
Call = Callable[[], object]


def networks(spec: InputSpec) -> dict[str, tuple[Call, dict[str, Any]]]:
    """Calls of the early stages, and what their rows say besides time."""
    of_all, of_each = (read_recipe(RECIPES, name) for name in ("early_stage", "one_model_each"))
    at_equal_cost = equal_cost_recipe(of_each, of_all, spec, TASKS, candidates=CANDIDATES)
    plans = {
        FULL: [(of_all, TASKS)],
        "one model each, equal cost": [(at_equal_cost, [task]) for task in TASKS],
        "one model each, equal size": [(of_each, [task]) for task in TASKS],
    }
    made = {}
    for name, parts in plans.items():
        costs, models = zip(
            *(cost_of(recipe, spec, tasks, candidates=CANDIDATES) for recipe, tasks in parts),
            strict=True,
        )
        call = request_call(models, candidates=CANDIDATES)
        made[name] = (call, {"mflop": sum(cost.flops for cost in costs) / 1e6})
    return made


def trees(dataset: Dataset, market: Path) -> dict[str, tuple[Call, dict[str, Any]]]:
    """Calls of LightGBM's models, and what their rows say besides time."""
    inputs, categories = tree_inputs(dataset, "train")
    truth, log = pq.read_table(market / "truth"), pq.read_table(market / "logs")
    billing = np.array(BILLING)[log["ad_id"].to_numpy() % len(BILLING)]
    bid = log["bid_micros"].to_numpy() / 1e6
    weights = np.ones(len(inputs), np.float32)
    parts, whole = (
        config.from_table(BoostedConfig, read_recipe(RECIPES, name), where=name)
        for name in ("lightgbm_parts", "lightgbm")
    )
    of_parts = TreeFit(inputs, categories, weights, parts, 0)
    for task in TASKS:
        of_parts.trained("cross_entropy", truth[task].to_numpy(), inputs[:1])
    with_bid = with_bids(inputs, bid, billing)
    of_value = TreeFit(with_bid, [*categories, inputs.shape[1] + 1], weights, whole, 0)
    of_value.trained("regression", truth["click"].to_numpy() * bid, with_bid[:1])
    made: dict[str, tuple[Call, dict[str, Any]]] = {}
    for name, fit, columns in (
        ("lightgbm, parts", of_parts, inputs),
        ("lightgbm, value", of_value, with_bid),
    ):
        request = columns[:CANDIDATES]

        def call(fit: TreeFit = fit, request: Any = request) -> None:  # noqa: ANN401
            for booster in fit.boosters:
                fit.predict(booster, request)

        made[name] = (call, {"trees": sum(booster.num_trees() for booster in fit.boosters)})
    return made


def seconds_of(call: Call) -> float:
    """The processor's seconds of a call, after one that brings everything near."""
    call()
    started = time.process_time()
    call()
    return time.process_time() - started


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    options = harness.parser(__doc__ or "").parse_args(arguments)
    api.prepare_process(1)
    torch.manual_seed(0)
    scratch = peers.cache_folder() / "scratch" / "early_stage"
    shutil.rmtree(scratch, ignore_errors=True)
    market = scratch / "market"
    api.simulate(ROWS[options.quick], market)
    schema = early_market_schema()
    dataset = api.ingest({"train": market / "logs"}, scratch / "dataset", schema=schema)
    spec = replace(dataset.spec, tasks=cascade_schema(schema, final=TASKS).tasks)
    contenders = {**networks(spec), **trees(dataset, market)}
    costs = harness.interleave(
        {
            name: lambda call=call: seconds_of(call)  # type: ignore[misc]
            for name, (call, _) in contenders.items()
        },
        rounds=ROUNDS[options.quick],
    )
    rows = [
        {
            "contender": name,
            "p50_ms": 1e3 * float(np.median(costs[name])),
            "p95_ms": 1e3 * float(np.quantile(costs[name], 0.95)),
            "candidates": CANDIDATES,
            "threads": 1,
            **about,
        }
        for name, (_, about) in contenders.items()
    ]
    ratios = {
        f"{name}/{FULL}": harness.ratio_of(list(zip(costs[name], costs[FULL], strict=True)))
        for name in contenders
        if name != FULL
    }
    harness.report(
        options,
        "early_stage",
        f"an early stage on {CANDIDATES} candidates",
        COLUMNS,
        rows=rows,
        ratios=ratios,
        bars={},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
