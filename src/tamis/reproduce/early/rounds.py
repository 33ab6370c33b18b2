"""Rounds of a cascade that is retrained on its own log: does it lose the ads it never shows?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tamis import api, config
from tamis.evaluation import hard_recall, rank_candidates, request_offsets, soft_recall
from tamis.funnel.ads import AdTable
from tamis.funnel.rounds import KnownLog, run_rounds
from tamis.funnel.value import ValueFunction
from tamis.reproduce.early.market import (
    STAGES,
    TASKS,
    CascadePolicy,
    Told,
    early_market_schema,
    market_ads,
    serve_first_days,
    told_every,
)
from tamis.reproduce.early.pairs import PairPredictor
from tamis.reproduce.early.stages import open_stages
from tamis.reproduce.early.study import Part, write_pools
from tamis.reproduce.early.trained import train_tasks
from tamis.reproduce.early.variants import CascadeSizes, MarketCascade, OneModel, Pools
from tamis.training import runlog


def make_rounds(
    cascade: MarketCascade,
    *,
    pools: Pools,
    rounds: int,
    days: int,
    seed: int,
    stages: Path,
    recipe: Path,
    run: Path,
) -> dict[str, Any]:
    """Serve a market round by round; each early stage learns from the log of the round before.

    Round 0 is served by the click-only incumbent, and so the same for all pools and seeds. The
    final stage stays as it is.

    Args:
        cascade: The market, and the sizes of the cascade: its train and test requests are those of
            a round.
        pools: Rows that are learned from.
        rounds: Rounds.
        days: Days of a round.
        seed: Of the trainings.
        stages: Folder of both stages, trained on the first days.
        recipe: Of the early stage.
        run: Folder for datasets and trainings, which are kept.

    Returns:
        By round recall of the early stage on all candidates, what the stages truly lost, and value.
    """
    market, _ = serve_first_days(cascade)
    earlier = open_stages(stages)
    ads, value = market_ads(market, earlier)
    sizes = cascade.sizes
    learn_every, judge_every = (
        told_every(market, cascade, days=days, wanted=wanted)
        for wanted in (sizes.train_requests, sizes.test_requests)
    )

    def policy_of(early: PairPredictor, known: tuple[str, ...]) -> CascadePolicy:
        return CascadePolicy(
            market,
            early,
            earlier,
            ads,
            value,
            sizes,
            known=known,
            learn_every=learn_every,
            judge_every=judge_every,
        )

    policies = [policy_of(earlier.early, TASKS[:1])]

    def retrain(known: KnownLog) -> CascadePolicy:
        learned = policies[-1].learned(known.log)
        folder = run / f"round-{len(policies)}"
        train_early(learned, pools, sizes, recipe=recipe, seed=seed, folder=folder)
        policies.append(policy_of(PairPredictor(folder / "model"), TASKS))
        return policies[-1]

    done = run_rounds(market, policies[0], retrain, rounds=rounds, days=days, ads=ads, value=value)
    return {
        "rounds": [
            {**item.to_json(), **recalls(policy.told_to_judge, ads, value, sizes)}
            for item, policy in zip(done, policies, strict=True)
        ],
        "stages": list(STAGES),
        **runlog.provenance(),
    }


def train_early(
    learned: Sequence[Part],
    pools: Pools,
    sizes: CascadeSizes,
    *,
    recipe: Path,
    seed: int,
    folder: Path,
) -> None:
    """Train the full early stage, distilled, on the rows of some pools.

    Args:
        learned: Rows of a round's log.
        pools: Which of them.
        sizes: Of the cascade.
        recipe: Of the early stage.
        seed: Of the training.
        folder: Gets the dataset and the run ``model``; what is finished is not made again.
    """
    if not api.is_dataset(folder / "dataset"):
        schema = early_market_schema()
        write_pools(folder, learned, pools, schema=schema, sizes=sizes)
    train_tasks(
        folder / "dataset",
        OneModel(tasks=len(TASKS), pools=pools),
        TASKS,
        recipe=config.read_toml(recipe),
        seed=seed,
        run=folder / "model",
    )


def recalls(
    told: Sequence[Told], ads: AdTable, value: ValueFunction, sizes: CascadeSizes
) -> dict[str, float]:
    """Recall of an early stage that served, on all candidates of the judged requests.

    Args:
        told: Candidates with the final stage's predictions and the early stage's values.
        ads: By ``ad_id``.
        value: Of the final stage's predictions.
        sizes: Of the cascade.
    """
    final = {
        task: np.concatenate([part.rows.final[task] for part in told]).astype(np.float64)
        for task in TASKS
    }
    ad = np.concatenate([part.ad for part in told])
    ranked = rank_candidates(
        request_offsets(np.concatenate([part.request for part in told])),
        ads.total_value(value, final, ad),
        np.concatenate([part.incumbent for part in told]),
    )
    soft = soft_recall(ranked, sizes.keep, shift=True)
    hard = hard_recall(ranked, sizes.keep, golden=sizes.slots)
    return {"soft_recall": float(np.nanmean(soft)), "hard_recall": float(np.nanmean(hard))}
