"""``tamis quickstart``: the whole path on the simulated market, in one command."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.cli.console import Debug, Json, Session, Threads, print_table, session
from tamis.errors import TamisError

if TYPE_CHECKING:
    from tamis.api import Run
    from tamis.data.dataset import Dataset

# The retrieval: 32 groups of ads, of which a request walks 8. Its groups are learnt by k-means in
# turns with the networks, which one pass over the log suffices for.
_INDEX: Mapping[str, Any] = {
    "model": {
        "name": "hsnn",
        "embedding_dim": 8,
        "codebooks": [32],
        "item_dim": 16,
        "cross_dim": 8,
        "attention_units": 8,
        "index_learning": "em",
        "cluster_steps": 50,
        "levels": [
            {"user_tokens": 4, "dot_units": 32, "head_units": [64]},
            {
                "user_tokens": 4,
                "module_tokens": 2,
                "modules": ["dot", "linear"],
                "dot_units": 16,
                "head_units": [32],
            },
        ],
    },
    "optimizer": {"dense_lr": 0.003},
    "training": {"max_epochs": 1},
}
_EARLY: Mapping[str, Any] = {
    "model": {
        "name": "early_stage",
        "embedding_dim": 8,
        "tower_units": [64],
        "tower_dim": 32,
        "bottom_units": [64],
        "head_units": [],
    },
    "training": {"max_epochs": 1},
}
_KEEP = {"index": 120, "early": 30, "final": 10}
_DOES = {
    "index": "finds ads that may fit",
    "early": "sorts them fast",
    "final": "predicts with care",
    "auction": "fills the places",
}
_REPLAYED, _COMPARED_EVERY = 1000, 5


def quickstart(
    *,
    out: Annotated[Path, typer.Option(help="Folder for log, datasets, runs and bundle.")] = Path(
        "runs/quickstart"
    ),
    rows: Annotated[int, typer.Option(min=10_000, help="Impressions to simulate.")] = 400_000,
    model: Annotated[str, typer.Option(help="Name of the final stage's model.")] = "dhen",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the market and of the training.")] = 0,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Simulate an ad market, train a funnel of three stages on it, publish it and replay it.

    Every model is compared with the known optimum, and the funnel with its last stage asked about
    every ad. Finished steps are not done again; remove the folder to start anew.
    """
    with session("quickstart", as_json=as_json, debug=debug) as current:
        from tamis import api
        from tamis.cli.drawing import draw_metrics

        api.prepare_process(threads)
        log = out / f"market-{rows}-{seed}"
        dataset = _dataset(current, log, out / f"dataset-{rows}-{seed}", rows, seed)
        work = out / f"funnel-{model}-{rows}-{seed}"
        final_recipe = {"model": {"name": model}, "training": {"max_epochs": 1}}
        runs = {
            "final": _train(current, work, dataset, "final", final_recipe, seed),
            "index": _train(current, work, dataset, "index", _index_recipe(rows), seed),
        }
        teacher = _publish(current, work, log, "teacher", runs, ("index", "final"))
        cascade = _cascade(current, work, teacher, dataset, requests=rows // 100)
        runs["early"] = _train(current, work, cascade, "early", _EARLY, seed)
        bundle = _publish(current, work, log, "bundle", runs, ("index", "early", "final"))
        record, page = _replay(current, work, bundle, dataset)
        finished = runs["final"].record
        draw_metrics(current, finished, title=f"{model} on the simulated market")
        _draw_funnel(current, record)
        current.say(f"the models one by one: {', '.join(str(run.path) for run in runs.values())}")
        place = shlex.quote(str(bundle))
        current.say(f"serve simulated users: tamis simulate --funnel {place} --rows {rows} "
                    f"--seed {seed} --first-day 13 --out DIR")  # fmt: skip
        current.say(f"report: {page}")
        current.say(f"serve it: tamis serve {place}")
        current.finish(
            run=runs["final"].path,
            runs={name: run.path for name, run in runs.items()},
            bundle=bundle,
            release=record["release"],
            report=page,
            stages=record["stages"],
            **finished,
        )


def _index_recipe(rows: int) -> dict[str, Any]:
    """Twice as many steps as other models take: the groups move while the networks learn."""
    from tamis import api

    size = max(64, api.default_batch_size(rows) // 2)
    return {**_INDEX, "training": {**_INDEX["training"], "batch_size": size}}


def _dataset(current: Session, log: Path, folder: Path, rows: int, seed: int) -> "Dataset":
    from tamis import api
    from tamis.cli.drawing import draw_warnings, ingest_with_bars

    if not (log / "market.json").exists():
        with current.progress() as bars:
            bar = bars.add_task("simulating", total=rows, note="impressions")
            api.simulate(
                rows, log, seed=seed, progress=lambda done: bars.update(bar, completed=done)
            )
    if api.is_dataset(folder):
        return api.open_dataset(folder, verify=True)
    dataset, lacking = ingest_with_bars(current, log, folder)
    draw_warnings(current, lacking)
    return dataset


def _train(
    current: Session,
    work: Path,
    dataset: "Dataset",
    stage: str,
    recipe: Mapping[str, Any],
    seed: int,
) -> "Run":
    from tamis import api
    from tamis.cli.drawing import TrainingDisplay

    current.say(f"the {stage} stage learns", style="bold")
    path = api.write_recipe(recipe, work / "recipes" / f"{stage}.toml")
    with current.progress() as bars:
        run = api.train(
            dataset,
            recipe=path,
            settings=[f"training.seed={seed}", "training.evaluations_per_epoch=2"],
            run=work / stage,
            observer=TrainingDisplay(current, bars),
        )
    if run.status != "finished":
        raise TamisError(f"{work}: stopped with a checkpoint; give the command again to go on.")
    return run


def _publish(
    current: Session,
    work: Path,
    log: Path,
    name: str,
    runs: "Mapping[str, Run]",
    stages: tuple[str, ...],
) -> Path:
    from tamis import api
    from tamis.cli.drawing import draw_warnings

    bundle = work / name
    if not api.is_bundle(bundle):
        kinds: dict[str, dict[str, Any]] = {
            "index": {"kind": "index", "beams": [8]},
            "early": {"kind": "early"},
            "final": {"kind": "ranker"},
        }
        recipe = {
            "dataset": str(api.dataset_of(runs["final"])),
            "ads": {
                "table": str(log / "ads.parquet"),
                "bid_unit": 1e-6,
                "bid": "bid_micros",
                "advertiser": "advertiser_id",
                "log": str(log),
            },
            # What a server counts itself, so that a click of a minute ago changes the ranking.
            "online": {
                "histories": [{"group": "history", "event": "click"}],
                "counters": [{"field": "user_requests", "counts": "request"}],
            },
            "value": {"penalties": {"hide": 0.05}},
            "stages": [
                {"name": stage, "keep": _KEEP[stage], "run": str(runs[stage].path), **kinds[stage]}
                for stage in stages
            ],
        }
        path = api.write_recipe(recipe, work / "recipes" / f"{name}.toml")
        made = api.publish(path, bundle)
        current.say(f"published: {bundle}")
        draw_warnings(current, made.warnings)
    return bundle


def _cascade(
    current: Session, work: Path, bundle: Path, dataset: "Dataset", *, requests: int
) -> "Dataset":
    """Rows for an early stage that reads no histories: it knows less than the final one."""
    from tamis import api
    from tamis.publishing.cascade import CascadeSampling

    if api.is_dataset(work / "cascade"):
        return api.open_dataset(work / "cascade", verify=True)
    with current.progress() as bars:
        bar = bars.add_task("asking the final stage", total=None, note="requests")
        return api.write_cascade(
            bundle,
            dataset,
            work / "cascade",
            sampling=CascadeSampling(requests=requests),
            without=[item.name for item in dataset.schema.fields if item.is_jagged],
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )


def _replay(
    current: Session, work: Path, bundle: Path, dataset: "Dataset"
) -> tuple[Mapping[str, Any], Path]:
    from tamis import api

    with current.progress() as bars:
        bar = bars.add_task("replaying held-out requests", total=None, note="")
        folder, record = api.replay(
            bundle,
            dataset,
            every=_COMPARED_EVERY,
            limit=_REPLAYED,
            out=work / "replay",
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    return record, folder / "report.html"


def _draw_funnel(current: Session, record: Mapping[str, Any]) -> None:
    rows = []
    for stage in record["stages"]:
        kept = stage["measures"]["value_kept"]
        rows.append(
            [
                f"{stage['name']}: {_DOES[stage['name']]}",
                f"{stage['candidates_in']:,.0f}",
                f"{stage['candidates_out']:,.0f}",
                f"{stage['latency_ms']['p50']:.2g}",
                "-" if kept is None else f"{kept:.1%}",
            ]
        )
    print_table(
        current,
        title=f"The funnel on {record['requests']:,} requests that no model has seen",
        columns=["stage", "ads in", "ads out", "ms", "value kept"],
        rows=rows,
    )
    current.say(
        "value kept: the most that the ads which are left can earn, over the most that all could, "
        "for as many ads as the last stage keeps; for the auction, as many as there are places"
    )
