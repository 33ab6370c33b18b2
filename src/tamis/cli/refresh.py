"""``tamis refresh``: what a server stored becomes the next bundle that it serves."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamis.cli.console import Debug, Json, Session, Threads, number, print_table, session
from tamis.cli.extras import needs_extra

if TYPE_CHECKING:
    from tamis.refreshing.ledger import Round


def refresh(
    bundle: Annotated[
        Path, typer.Argument(help="Bundle that the loop began with; new ones appear beside it.")
    ],
    *,
    store: Annotated[str, typer.Option(help="The server's store, as tamis serve has it.")],
    server: Annotated[
        str,
        typer.Option(
            help="Address of the server, which then serves the new bundle; its token is read from "
            "TAMIS_TOKEN. Left out: the bundle is only published."
        ),
    ] = "",
    work: Annotated[
        Path | None, typer.Option(help="Folder of the loop's own files; BUNDLE-refresh if absent.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest relative increase of a stage's loss on new requests.")
    ] = 0.01,
    least_requests: Annotated[
        int, typer.Option(help="Fewest new requests with events; with fewer nothing is done.")
    ] = 1000,
    settle_minutes: Annotated[
        float,
        typer.Option(
            help="How long a request waits for its events before it is used; later events do not "
            "count. 0: no wait, and all count."
        ),
    ] = 60.0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override such as training.max_epochs=3.")
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the ranking stages further on a server's stored events; deploy them if no worse.

    Stopped at any moment, it goes on when it is called again; a cron line may call it.
    """
    with session("refresh", as_json=as_json, debug=debug) as current:
        with needs_extra("serve"):
            from tamis.refreshing.refresh import RefreshSettings
            from tamis.refreshing.refresh import refresh as _refresh
            from tamis.refreshing.server import Server
            from tamis.serving.store import Store
        from tamis.api.folders import named
        from tamis.cli.drawing import TrainingDisplay
        from tamis.process import prepare_process

        chosen = RefreshSettings(
            tolerance=tolerance,
            least_requests=least_requests,
            settle_minutes=settle_minutes,
            settings=tuple(settings or ()),
        )
        told = Server(server, token=os.environ.get("TAMIS_TOKEN", "")) if server else None
        prepare_process(threads)
        begun = named(bundle)
        with (
            contextlib.closing(Store(store, must_exist=True)) as opened,
            current.progress() as bars,
        ):
            found = _refresh(
                begun,
                opened,
                begun.with_name(f"{begun.name}-refresh") if work is None else work,
                chosen,
                server=told,
                say=current.say,
                observer=TrainingDisplay(current, bars),
            )
        if found.turn is None:
            current.say(
                f"nothing done: {found.new_requests:,} new requests with events, of "
                f"{least_requests:,} that a round begins with"
            )
            current.finish(
                outcome=found.outcome,
                new_requests=found.new_requests,
                old_requests=found.old_requests,
            )
            return
        _draw(current, found.turn)
        current.say(f"{'serves' if found.outcome == 'live' else 'release'}: {found.turn.release}")
        current.finish(outcome=found.outcome, **dataclasses.asdict(found.turn))


def _draw(current: Session, turn: "Round") -> None:
    print_table(
        current,
        title="Losses on the newest requests, which no stage has learnt from",
        columns=["stage", "task", "rows", "serving", "refreshed"],
        rows=[
            [
                loss.stage,
                loss.task,
                f"{loss.rows:,}",
                number(loss.serving, 5),
                number(loss.refreshed, 5),
            ]
            for loss in turn.losses
        ],
    )
