"""The routes of the server: what comes in is checked, handed to the engine, and answered."""

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from tamis.errors import StoreError
from tamis.serving import wire
from tamis.serving.ad_routes import add_ads
from tamis.serving.answers import Query
from tamis.serving.console import add_console
from tamis.serving.engine import Engine
from tamis.serving.experiment_routes import add_experiments
from tamis.serving.experiments import Experiments
from tamis.serving.guard import Guard, Token
from tamis.serving.live import Live
from tamis.serving.metrics import METRICS_TYPE, RANK_ROUTE, Metrics
from tamis.serving.records import Event, RawRow
from tamis.serving.refused import RefusedError, bundle_must_serve
from tamis.serving.shelf import take_bundle

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]

_FIELD_CHARACTERS = 80
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": wire.ProblemAnswer, "description": "The request; it names the field."},
    503: {"model": wire.ProblemAnswer, "description": "Ask again after 'Retry-After' seconds."},
}


def make_app(
    engine: Engine,
    metrics: Metrics,
    *,
    bundles: Path,
    token: Token | None = None,
    hosts: tuple[str, ...] | None = None,
) -> Guard:
    """Put the server together, outside in: guard, count, routes.

    Args:
        engine: Answers; it is closed when the server ends.
        metrics: Shown at ``/metrics``, and its drift watch beside.
        bundles: Folder of the bundles that it may change to.
        token: What writes and changes must know; None: nothing.
        hosts: Names under which the server may be called; None for any.

    Raises:
        StoreError: The store cannot be reached.
    """
    experiments = Experiments(engine, bundles, metrics.drift)
    for name, text in (
        ("scored", "Requests that the shadow has scored."),
        ("dropped", "Requests that the shadow had no time for."),
        ("failed", "Requests that the shadow could not score."),
    ):
        metrics.add_gauge(f"tamis_shadow_{name}", text, partial(_of_shadow, experiments, name))
    app = FastAPI(
        title="tamis",
        summary="Ranked ads from a published funnel.",
        # Pages that load scripts from elsewhere would need a policy that allows it.
        docs_url=None,
        redoc_url=None,
        lifespan=_closing(engine, experiments),
    )
    _add_problems(app)
    _add_ranking(app, engine, experiments)
    add_ads(app, engine, needs=_needs(token), problems=_PROBLEMS)
    _add_events(app, engine, metrics, token)
    _add_admin(app, engine, bundles, token)
    add_experiments(app, engine, experiments, needs=_needs(token), problems=_PROBLEMS)
    _add_state(app, engine, metrics)
    add_console(app, engine, experiments, needs_token=token is not None, problems=_PROBLEMS)
    return Guard(_Counted(_Door(app, engine), metrics), refuse=_refusal, hosts=hosts)


def _of_shadow(experiments: Experiments, name: str) -> float:
    report = experiments.shadow
    return 0.0 if report is None else float(getattr(report, name))


def _add_ranking(app: FastAPI, engine: Engine, experiments: Experiments) -> None:
    @app.post(RANK_ROUTE, responses=_PROBLEMS)
    async def rank(body: wire.RankBody) -> wire.RankAnswer:
        """Rank ads for a user."""
        live, arm = experiments.choose(body.user.id)
        query = Query(
            request_id=body.request_id or uuid.uuid4().hex,
            user=body.user.id,
            columns=_said(live, body),
            slots=body.k,
            candidates=None if body.candidates is None else tuple(body.candidates),
            time_micros=_now_micros(),
            arm=arm,
        )
        answer = await asyncio.wrap_future(engine.rank(query, live))
        experiments.served(query, answer)
        return wire.rank_answer(answer, with_trace=body.trace)


def _said(live: Live, body: wire.RankBody) -> RawRow:
    served = live.served
    of_user = served.user_columns.check(body.user.features, where="body.user.features")
    served.check_groups(of_user, where="body.user.features")
    of_context = served.context_columns.check(body.context, where="body.context")
    served.check_groups(of_context, where="body.context")
    return {**of_user, **of_context}


def _add_events(app: FastAPI, engine: Engine, metrics: Metrics, token: Token | None) -> None:
    @app.post("/v1/events", responses=_PROBLEMS, dependencies=_needs(token))
    async def events(body: wire.EventsBody) -> wire.EventsAnswer:
        """Tell what happened; when this is answered, it is on the disk."""
        live = engine.live
        found = _events_of(live, body)
        unknown = sum(event.ad not in live.ads.row_by_id for event in found)
        is_new = await asyncio.wrap_future(engine.write(found))
        metrics.happened(found, is_new)
        accepted = sum(is_new)
        return wire.EventsAnswer(
            accepted=accepted, duplicates=len(found) - accepted, unknown_ads=unknown
        )


def _events_of(live: Live, body: wire.EventsBody) -> list[Event]:
    known = live.ads.row_by_id
    rows = {item.ad: known[item.ad] for item in body.events if item.ad in known}
    columns = dict(
        zip(rows, live.ads.columns(np.array(list(rows.values()), np.int64)), strict=True)
    )
    said = [_said_of(live, item, at) for at, item in enumerate(body.events)]
    now = _now_micros()
    return [
        Event(
            event_id=item.event_id,
            kind=item.kind,
            ad=item.ad,
            user=item.user,
            request_id=item.request_id,
            time_micros=now if item.time_micros is None else item.time_micros,
            columns=of_context,
            ad_columns=columns.get(item.ad, {}),
        )
        for item, of_context in zip(body.events, said, strict=True)
    ]


def _said_of(live: Live, event: wire.EventBody, at: int) -> RawRow:
    where = f"body.events.{at}.columns"
    found = live.served.context_columns.check(event.columns, where=where)
    live.served.check_groups(found, where=where)
    return found


def _add_admin(app: FastAPI, engine: Engine, bundles: Path, token: Token | None) -> None:
    @app.post("/v1/admin/bundle", responses=_PROBLEMS, dependencies=_needs(token))
    async def bundle(body: wire.BundleBody) -> wire.BundleAnswer:
        """Change the bundle that serves, or go back to the one before; all of it or nothing."""
        if body.roll_back == (body.release is not None):
            raise RefusedError(
                422, "body.release", "must be given, or roll_back be true; one of the two."
            )
        with bundle_must_serve():
            if body.release is None:
                await run_in_threadpool(engine.roll_back, replaces=body.replaces)
            else:
                found = await run_in_threadpool(take_bundle, bundles, body.release)
                await run_in_threadpool(engine.swap, found, replaces=body.replaces)
        return wire.BundleAnswer(release=engine.live.served.release)


def _add_state(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get("/healthz", responses=_PROBLEMS)
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses=_PROBLEMS)
    async def readyz() -> dict[str, str | int]:
        """Whether requests are answered, by which bundle, over how many ads."""
        if not engine.is_alive:
            raise RefusedError(503, "server", "must be answering, and is not.", retry_after_s=1)
        live = engine.live
        return {"status": "ok", "release": live.served.release, "ads": len(live.ads)}

    @app.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        """What the server measures of itself, for Prometheus."""
        # Adding up what waits takes a while, and rankings are not to wait for it.
        text = await run_in_threadpool(metrics.text)
        return Response(text, media_type=METRICS_TYPE)

    @app.get("/v1/watch", responses=_PROBLEMS)
    async def watch() -> wire.WatchAnswer:
        """The last minutes of the server, and how well its probabilities fit what happened."""
        drift = await run_in_threadpool(metrics.drift.report)
        return wire.watch_answer(
            drift,
            metrics.pulse.ticks(),
            release=engine.live.served.release,
            settle_s=metrics.drift.settle_s,
        )


def _needs(token: Token | None) -> list[Any]:
    if token is None:
        return []

    async def check(authorization: Annotated[str, Header()] = "") -> None:
        token.check(authorization)

    return [Depends(check)]


def _closing(
    engine: Engine, experiments: Experiments
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        yield
        await run_in_threadpool(experiments.close)
        await run_in_threadpool(engine.close)

    return lifespan


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        del request
        return _refusal(error)

    @app.exception_handler(StoreError)
    async def store_away(request: Request, error: StoreError) -> Response:
        del request, error
        return _refusal(
            RefusedError(
                503, "server", "must reach its store, and cannot. Send it again.", retry_after_s=1
            )
        )

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        del request, error
        return _refusal(RefusedError(500, "server", "must not fail, and has. Look at its log."))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        # pydantic's own text says what must hold, and never what was there.
        message = f"{first['msg']}. Look at /openapi.json."
        if first["loc"] == ("body",) and not _says_json(request):
            message = "must be JSON that says so. Send it with Content-Type: application/json."
        elif first["type"] == "missing" and request.method == "PUT":
            message = "must be given: PUT replaces the whole. PATCH changes a part."
        return _refusal(RefusedError(422, _path_of(first["loc"]), message))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        del request
        field = {404: "path", 405: "method"}.get(error.status_code, "body")
        message = "must be one of those in /openapi.json."
        if field == "body":
            message = "must be JSON in UTF-8."
        answer = _refusal(RefusedError(error.status_code, field, message))
        answer.headers.update(error.headers or {})
        return answer


def _says_json(request: Request) -> bool:
    """Whether a body is read as JSON; another one is not looked at."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return re.fullmatch(r"application/(?:.+\+)?json", kind) is not None


def _refusal(error: RefusedError) -> JSONResponse:
    body = wire.ProblemAnswer(error=wire.Problem(field=error.field, message=error.message))
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body.model_dump(), status_code=error.status, headers=headers)


def _path_of(places: tuple[int | str, ...]) -> str:
    """Where a field stands; its own names are cut short, and may hold what UTF-8 cannot."""
    names = [str(place)[:_FIELD_CHARACTERS] for place in places]
    return ".".join(names).encode("utf-8", "replace").decode()


def _now_micros() -> int:
    return time.time_ns() // 1_000


class _Door:
    """An ASGI application around another that turns rankings away before they are read.

    Under overload most requests are turned away: to parse and check each would take the time of
    those that are answered.
    """

    def __init__(self, app: FastAPI, engine: Engine) -> None:
        self._app, self._engine = app, engine
        self._route = next(one for one in app.routes if getattr(one, "path", "") == RANK_ROUTE)

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        is_ranking = (
            scope["type"] == "http" and scope["path"] == RANK_ROUTE and scope["method"] == "POST"
        )
        if is_ranking and self._engine.is_full:
            scope["route"] = self._route  # it is counted as one of that route
            await _refusal(self._engine.turn_away())(scope, receive, send)
            return
        await self._app(scope, receive, send)


class _Counted:
    """An ASGI application around another that counts its answers by route and status."""

    def __init__(self, app: "_Door", metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_and_see(message: _Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            # The route's template, not the address, which holds ids and has no end.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered_http(route, status, time.perf_counter() - started)
