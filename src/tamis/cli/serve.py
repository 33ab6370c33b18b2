"""``tamis serve``: a bundle over HTTP."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, session
from tamis.cli.extras import needs_extra
from tamis.errors import ConfigError

if TYPE_CHECKING:
    from tamis.serving.live import Live


def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle that tamis publish wrote.")],
    *,
    store: Annotated[
        str, typer.Option(help="Ads and events: sqlite:///FILE, or postgresql://...")
    ] = "sqlite:///tamis-store.db",
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8000,
    bundles: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the bundles that may be changed to; that of BUNDLE if absent."
        ),
    ] = None,
    token: Annotated[
        str,
        typer.Option(
            envvar="TAMIS_TOKEN",
            help="Secret for writing and changing; must be set when not on loopback. Better given "
            "by the environment, as other users of the machine see arguments.",
        ),
    ] = "",
    max_wait_ms: Annotated[
        float,
        typer.Option(
            help="Turn requests away that would wait longer for their turn; in a rush it is less."
        ),
    ] = 80.0,
    max_batch: Annotated[
        int, typer.Option(help="Most requests that are answered together; 1: each by itself.")
    ] = 3,
    settle_s: Annotated[
        float,
        typer.Option(help="Watch for drift with what happens within so long after an answer."),
    ] = 600.0,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Serve a published funnel: ranked ads, events, ads that change, bundles that change."""
    with session("serve", as_json=as_json, debug=debug) as current:
        with needs_extra("serve"):
            from tamis.serving.engine import EngineSettings
            from tamis.serving.joined_log import refresh_warnings
            from tamis.serving.server import ServerSettings
            from tamis.serving.server import serve as _serve
        from tamis.cli.drawing import draw_warnings
        from tamis.process import prepare_process, usable_threads

        if bundles is not None and not bundles.is_dir():
            raise ConfigError(f"{bundles}: must be a folder of bundles, got none. Name another.")
        # As many answer as there are cores, and each of them computes alone.
        count = usable_threads(threads)
        prepare_process(1)
        settings = ServerSettings(
            host=host,
            port=port,
            token=token,
            bundles=bundles,
            settle_s=settle_s,
            engine=EngineSettings(threads=count, max_batch=max_batch, max_wait_ms=max_wait_ms),
        )

        def ready(address: str, live: "Live") -> None:
            warnings = refresh_warnings(live.served.bundle.blueprint)
            draw_warnings(current, warnings)
            current.say(f"release: {live.served.release}, {len(live.ads):,} ads")
            current.say(f"serving {bundle} at {address}; stop with Ctrl-C")
            current.say(
                f"try: curl {address}/v1/rank -H 'Content-Type: application/json' -d '{{\"k\": 3}}'"
            )
            # At the start, since the end of a server is no result.
            current.finish(
                bundle=bundle, address=address, release=live.served.release, warnings=warnings
            )
            sys.stdout.flush()  # whoever reads it through a pipe is waiting for it

        try:
            _serve(bundle, store, settings, ready=ready)
        except KeyboardInterrupt:
            current.say("stopped")
