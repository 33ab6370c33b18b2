"""``tamis reproduce``: a table of results, every model and seed."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, print_table, session


def reproduce(
    table: Annotated[str, typer.Argument(help="Name of the table.")],
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

    Finished trainings are not done again, and stopped ones go on.
    """
    with session("reproduce", as_json=as_json, debug=debug) as current:
        from tamis.reproduce.make import make_table

        with current.progress() as bars:
            bar = bars.add_task(table, total=None, note="trainings")
            result = make_table(
                table,
                data=data,
                recipes=recipes,
                work=work,
                out=out,
                workers=workers,
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
        print_table(
            current, title=f"Table {table}", columns=result.columns, rows=result.display_rows
        )
        for claim in result.claims:
            current.say(f"{'holds' if claim['holds'] else 'DOES NOT HOLD'}: {claim['claim']}")
        current.say(f"written: {result.path}")
        current.finish(out=result.path, claims=result.claims)
