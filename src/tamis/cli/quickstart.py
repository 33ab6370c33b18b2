"""``tamis quickstart``: the whole path on the simulated market, in one command."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, session
from tamis.errors import TamisError

_CURVE = "training.evaluations_per_epoch=4"


def quickstart(
    *,
    out: Annotated[Path, typer.Option(help="Folder for log, dataset and run.")] = Path(
        "runs/quickstart"
    ),
    rows: Annotated[int, typer.Option(min=10_000, help="Impressions to simulate.")] = 800_000,
    model: Annotated[str, typer.Option(help="Name of the model.")] = "dhen",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the market and of the training.")] = 0,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Simulate an ad market, train on it, and report against the known optimum.

    Finished steps are not done again; remove the folder to start anew.
    """
    with session("quickstart", as_json=as_json, debug=debug) as current:
        from tamis import api
        from tamis.cli.drawing import TrainingDisplay, draw_metrics, ingest_progress

        api.prepare_process(threads)
        log = out / f"market-{rows}-{seed}"
        if not (log / "market.json").exists():
            with current.progress() as bars:
                bar = bars.add_task("simulating", total=rows, note="impressions")
                api.simulate(
                    rows, log, seed=seed, progress=lambda done: bars.update(bar, completed=done)
                )
        folder = out / f"dataset-{rows}-{seed}"
        if api.is_dataset(folder):
            dataset = api.open_dataset(folder, verify=True)
        else:
            with ingest_progress(current) as progress:
                dataset = api.ingest(log, folder, progress=progress)
        with current.progress() as bars:
            finished = api.train(
                dataset,
                model=model,
                settings=[f"training.seed={seed}", "training.max_epochs=1", _CURVE],
                run=out / f"{model}-{rows}-{seed}",
                observer=TrainingDisplay(current, bars),
            )
        if finished.status != "finished":
            raise TamisError(f"{out}: stopped with a checkpoint; give the command again to go on.")
        draw_metrics(current, finished.record, title=f"{model} on the simulated market")
        page = finished.path / "report.html"
        current.say(f"report: {page}")
        current.finish(run=finished.path, **finished.record)
