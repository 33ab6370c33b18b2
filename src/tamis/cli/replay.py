"""``tamis replay``: a published funnel against the requests of a log."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tamis.cli.console import Debug, Json, Threads, print_table, session


def replay(
    bundle: Annotated[Path, typer.Argument(help="Bundle that tamis publish wrote.")],
    data: Annotated[Path, typer.Argument(help="Dataset folder with requests.")],
    *,
    split: Annotated[str, typer.Option(help="Split to replay.")] = "test",
    reference: Annotated[
        Literal["all", "first", "none"],
        typer.Option(
            help="Candidates that the last stage scores for comparison: all of them, those that "
            "the first stage kept, or none."
        ),
    ] = "all",
    every: Annotated[int, typer.Option(min=1, help="Compare one request in so many.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many requests.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for replay.json and report.html; replays/BUNDLE-N if absent."),
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer a log's requests with a published funnel: what each stage keeps, and what it costs."""
    with session("replay", as_json=as_json, debug=debug) as current:
        from tamis import api
        from tamis.reports.replay_report import (
            head_table,
            kept_table,
            level_table,
            stage_table,
        )

        api.prepare_process(threads)
        with current.progress() as bars:
            bar = bars.add_task("requests", total=None, note="")
            folder, record = api.replay(
                bundle,
                data,
                split=split,
                scope=None if reference == "none" else reference,
                every=every,
                limit=limit,
                out=out,
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
        for title, table in (
            (f"Funnel {bundle} on {data}, {split} split", stage_table),
            ("Search of the index, mean of a request", level_table),
            ("What is kept", kept_table),
            ("Predictions", head_table),
        ):
            columns, rows = table(record)
            if rows:
                print_table(current, title=title, columns=columns, rows=rows)
        if unknown := record["unknown_impressions"]:
            current.say(
                f"{unknown:,} impressions show ads that the bundle does not have; no stage was "
                f"compared on them"
            )
        latency = record["latency_ms"]
        current.say(
            f"{record['requests']:,} requests, {latency['p50']:.3g} ms each at the median, "
            f"{latency['p99']:.3g} at p99"
        )
        current.say(f"report: {folder / 'report.html'}")
        current.finish(bundle=bundle, data=data, out=folder, **record)
