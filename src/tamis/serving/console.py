"""The console: one page for whoever runs the server, and what it asks beside the other routes."""

from collections.abc import Callable, Coroutine
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from tamis.serving import wire
from tamis.serving.columns import Columns
from tamis.serving.engine import Engine
from tamis.serving.experiments import Experiments
from tamis.serving.live import Live, ServedBundle

_FOLDER = "console_page"
_FILES = {
    "/": ("console.html", "text/html"),
    "/console.css": ("console.css", "text/css"),
    "/console.js": ("console.js", "text/javascript"),
    "/console.svg": ("console.svg", "image/svg+xml"),
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Browsers that know this let no text become markup.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_MAX_ADS = 100
_MAX_VALUES = 40
"""Categories that are worth a list to choose from."""


def add_console(
    app: FastAPI,
    engine: Engine,
    experiments: Experiments,
    *,
    needs_token: bool,
    problems: dict[int | str, dict[str, Any]],
) -> None:
    """Add the page and its routes.

    Args:
        app: Gets the routes.
        engine: Is asked.
        experiments: Say what runs.
        needs_token: Whether writes and changes must bear a token.
        problems: How errors are documented.
    """
    for path, (name, kind) in _FILES.items():
        app.get(path, include_in_schema=False)(_file(name, kind))

    @app.get("/v1/about", responses=problems)
    async def about() -> wire.AboutAnswer:
        """What serves, and what it may be told."""
        running = experiments.running
        return _about(
            engine.live,
            needs_token=needs_token,
            experiment=None if running is None else running.experiment,
        )

    @app.get("/v1/ads", responses=problems)
    async def ads(
        contains: Annotated[str, Query(max_length=128, description="Part of an id.")] = "",
        offset: Annotated[int, Query(ge=0, le=10**9, description="Ads to pass over.")] = 0,
        limit: Annotated[int, Query(ge=1, le=_MAX_ADS)] = 20,
    ) -> wire.AdsAnswer:
        """Look at the live ads, some at a time."""
        # Millions of ids take a while to look through, and rankings are not to wait for it.
        return await run_in_threadpool(_ads, engine.live, contains, offset, limit)


def _file(name: str, kind: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    # Read once: from here on no request comes near the file system.
    content = (resources.files("tamis.serving") / _FOLDER / name).read_bytes()

    async def file() -> Response:
        return Response(
            content,
            media_type=kind,
            headers={"content-security-policy": POLICY},
        )

    return file


def _ads(live: Live, contains: str, offset: int, limit: int) -> wire.AdsAnswer:
    ids = live.ads.ids
    rows = [row for row, ad in enumerate(ids) if contains in ad] if contains else range(len(ids))
    return wire.AdsAnswer(
        total=len(rows), ads=wire.ad_answers(live, list(rows[offset : offset + limit]))
    )


def _about(live: Live, *, needs_token: bool, experiment: str | None) -> wire.AboutAnswer:
    served = live.served
    return wire.AboutAnswer(
        release=served.release,
        ads=len(live.ads),
        needs_token=needs_token,
        experiment=experiment,
        user=_described(served, served.user_columns),
        context=_described(served, served.context_columns),
        ad=_described(served, served.catalogue.said),
    )


def _described(served: ServedBundle, columns: Columns) -> list[wire.ColumnBody]:
    from_events = set(served.online.names)
    return [
        wire.ColumnBody(
            name=name,
            kind=kind,
            values=_values(served, name) if kind == "category" else [],
            is_from_events=name in from_events,
        )
        for name, kind in columns.kinds.items()
    ]


def _values(served: ServedBundle, column: str) -> list[str]:
    """The categories of a column, where they are few."""
    encoders = served.bundle.blueprint.encoders
    for item in encoders.schema.fields:
        if item.source == column and item.kind == "categorical":
            values = encoders.vocabularies[item.shares or item.name].values
            if values is not None and len(values) <= _MAX_VALUES:
                return [str(value) for value in values.to_pylist()]
    return []
