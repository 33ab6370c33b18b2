"""``tamis publish``: finished runs and their budgets to a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, print_table, session

if TYPE_CHECKING:
    from tamis.funnel.blueprint import PlannedStage


def publish(
    recipe: Annotated[
        Path, typer.Argument(help="TOML file with stages, budgets, ads and weights of the value.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder that does not exist yet, or is empty.")],
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Publish finished runs as one funnel: a self-contained, hashed folder."""
    with session("publish", as_json=as_json, debug=debug) as current:
        from tamis import api
        from tamis.cli.drawing import draw_warnings

        api.prepare_process(threads)
        made = api.publish(recipe, out)
        stages = made.blueprint.stages
        columns = ["stage", "kind", "model", "keeps", "budget"]
        title = f"Bundle {out} of {len(made.blueprint.inventory):,} ads"
        print_table(current, title=title, columns=columns, rows=[_row(stage) for stage in stages])
        current.say(f"release: {made.release}")
        draw_warnings(current, made.warnings)
        current.finish(
            out=out,
            release=made.release,
            ads=len(made.blueprint.inventory),
            warnings=made.warnings,
            stages=[
                {
                    "name": stage.budget.name,
                    "kind": stage.plan.kind,
                    "model": stage.plan.model_name,
                    "keep": stage.budget.keep,
                    "budget_ms": stage.budget.budget_ms,
                }
                for stage in stages
            ],
        )


def _row(stage: "PlannedStage") -> list[str]:
    budget = stage.budget
    return [
        budget.name,
        stage.plan.kind,
        stage.plan.model_name or "-",
        f"{budget.keep:,}",
        "-" if budget.budget_ms is None else f"{budget.budget_ms:g} ms",
    ]
