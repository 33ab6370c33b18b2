"""``tamis ab-test``: two published funnels serve the users of one simulated market."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, print_table, session


def ab_test(
    control: Annotated[Path, typer.Argument(help="Bundle that serves half of the users.")],
    treatment: Annotated[Path, typer.Argument(help="Bundle that serves the other half.")],
    *,
    rows: Annotated[
        int, typer.Option(min=1, help="Impressions of the market that both were trained on.")
    ],
    first_day: Annotated[
        int,
        typer.Option(
            min=1,
            help="Day, from 0, on which the test begins, after those they learnt from and were "
            "validated on.",
        ),
    ],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the market.")] = 0,
    days: Annotated[
        int | None, typer.Option(min=1, help="Days of the test; all that are left if absent.")
    ] = None,
    judge_every: Annotated[
        int,
        typer.Option(min=1, help="One request in so many is asked what each stage truly lost."),
    ] = 100,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for ab-test.json and report.html; ab-tests/NAME-N if absent."),
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two funnels on simulated users: clicks, conversions, hides, total value.

    Before the first day the market's own policy serves.
    """
    with session("ab-test", as_json=as_json, debug=debug) as current:
        from tamis import api
        from tamis.reports.ab_report import (
            difference_table,
            fallback_table,
            loss_table,
            unjudged,
            verdict,
        )

        api.prepare_process(threads)
        with current.progress() as bars:
            bar = bars.add_task("hours", total=None, note="")
            folder, record = api.ab_test(
                control,
                treatment,
                rows,
                first_day=first_day,
                seed=seed,
                days=days,
                judge_every=judge_every,
                out=out,
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
        ratio = record["sample_ratio"]
        for title, table in (
            (
                f"{treatment} on {ratio['treated_users']:,} users against {control} on "
                f"{ratio['control_users']:,}",
                difference_table,
            ),
            ("What the best ad that is left loses at each stage, by the truth", loss_table),
            ("Answers that a stage did not order itself", fallback_table),
        ):
            columns, cells = table(record)
            if cells:
                print_table(current, title=title, columns=columns, rows=cells)
        if missing := unjudged(record):
            current.say(missing)
        current.say(verdict(record))
        current.say(f"report: {folder / 'report.html'}")
        current.finish(control=control, treatment=treatment, out=folder, **record)
