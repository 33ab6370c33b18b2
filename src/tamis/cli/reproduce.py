"""``tamis reproduce``: a table of results, every model and seed."""

import sys
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from tamis.cli.console import EXIT_FAILED, Debug, Json, print_table, session


def reproduce(
    table: Annotated[str, typer.Argument(help="Name of a table or group; others list them all.")],
    *,
    data: Annotated[
        Path | None, typer.Option(envvar="TAMIS_DATA", help="Folder of the public sets.")
    ] = None,
    recipes: Annotated[Path, typer.Option(help="Folder of the recipes.")] = Path("recipes"),
    work: Annotated[Path, typer.Option(help="Folder for datasets and runs.")] = Path(
        "runs/reproduce"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
    workers: Annotated[int, typer.Option(min=1, help="Trainings at a time, one thread each.")] = 2,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train every model of a table with every seed, and write the table.

    Finished trainings are not done again, and stopped ones go on. Claims are printed with whether
    they hold, what was estimated and its interval. Where one that is a check does not hold, the
    table is written all the same and the exit status is 1.
    """
    with session("reproduce", as_json=as_json, debug=debug) as current:
        from tamis.reproduce.make import check_recipes, make_table
        from tamis.reproduce.tables import GROUPS

        made: dict[str, dict[str, object]] = {}
        failed: list[str] = []
        names = GROUPS.get(table, (table,))
        for name in names:
            check_recipes(name, recipes)
        for name in names:
            with current.progress() as bars:
                bar = bars.add_task(name, total=None, note="trainings")
                result = make_table(
                    name,
                    data=data,
                    recipes=recipes,
                    work=work,
                    out=out,
                    workers=workers,
                    progress=partial(_show, bars, bar),
                )
            print_table(
                current, title=f"Table {name}", columns=result.columns, rows=result.display_rows
            )
            if result.levels is not None and result.levels[1]:
                heads, lines = result.levels
                print_table(current, title=f"Levels of {name}", columns=heads, rows=lines)
            for claim in result.claims:
                current.say(_told(claim))
            current.say(f"written: {result.path}")
            made[name] = {
                "out": result.path,
                "claims": result.claims,
                "failed_checks": result.failed_checks,
            }
            failed += [f"{name}: {check}" for check in result.failed_checks]
        # A table by itself keeps the form that it always had.
        current.finish(ok=not failed, **made.get(table, {"tables": made}))
        if failed:
            listed = "".join(f"\n  {check}" for check in failed)
            sys.stderr.write(
                f"tamis reproduce: every check must hold, got {len(failed)} that failed. The "
                f"tables are written; look into these before their numbers are used:{listed}\n"
            )
            raise typer.Exit(EXIT_FAILED)


def _told(claim: Mapping[str, Any]) -> str:
    """A claim within 100 columns, like the table above it; figures come first and stay whole."""
    from tamis.reproduce.results import figures_of

    figures = " ".join(filter(None, figures_of(claim)))
    verdict = "holds" if claim["holds"] else "DOES NOT HOLD"
    return textwrap.fill(
        f"{verdict}, {figures}: {claim['claim']}",
        width=100,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _show(bars: Progress, bar: TaskID, done: int, total: int) -> None:
    bars.update(bar, completed=done, total=total)
