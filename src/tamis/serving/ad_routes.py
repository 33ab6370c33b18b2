"""The routes of one ad: look at it, put it in or replace it, change a part of it, take it away."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import FastAPI, Path
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from tamis.errors import StoreError, TamisError
from tamis.serving import wire
from tamis.serving.engine import Engine
from tamis.serving.live import Live
from tamis.serving.records import StoredAd
from tamis.serving.refused import RefusedError, no_such_ad

AdId = Annotated[
    str, Path(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", alias="ad")
]


def add_ads(
    app: FastAPI, engine: Engine, *, needs: list[Any], problems: dict[int | str, dict[str, Any]]
) -> None:
    """Add the routes.

    Args:
        app: Gets the routes.
        engine: Serves the ads.
        needs: What must hold before a change, such as a token.
        problems: How errors are documented.
    """

    @app.get("/v1/ads/{ad:path}", responses=problems)
    async def get_ad(ad: AdId) -> wire.AdAnswer:
        """Look at a live ad."""
        return _ad_answer(engine.live, ad)

    @app.put("/v1/ads/{ad:path}", responses=problems, dependencies=needs)
    async def put_ad(ad: AdId, body: wire.AdBody) -> wire.AdAnswer:
        """Add an ad, or replace all of it; when this is answered, it may be shown."""
        if body.ad not in (None, ad):
            raise RefusedError(422, "body.ad", "must be the id of the path, or be left out.")
        served = engine.live.served
        columns = served.catalogue.said.check(body.features, where="body.features")
        served.check_groups(columns, where="body.features")
        stored = StoredAd(
            ad=ad,
            columns=columns,
            bid=body.bid,
            billing=body.billing,
            advertiser=body.advertiser,
            quality=body.quality,
            popularity=body.popularity,
        )
        with _ad_must_fit():
            await run_in_threadpool(engine.put_ad, stored)
        return _ad_answer(engine.live, ad)

    @app.patch("/v1/ads/{ad:path}", responses=problems, dependencies=needs)
    async def change_ad(ad: AdId, body: wire.AdChangeBody) -> wire.AdAnswer:
        """Change what is named of an ad; when this is answered, it may be shown as it then is."""
        served = engine.live.served
        columns = served.catalogue.said.check(body.features, where="body.features")
        said = body.model_dump(exclude={"features"}, exclude_none=True)
        if not columns and not said:
            raise RefusedError(422, "body", "must name what changes; nothing is named.")

        def change(now: StoredAd) -> StoredAd:
            if columns:
                changed = {**now.columns, **columns}
                served.check_groups(changed, where="body.features")
                now = replace(now, columns=changed)
            return replace(now, **said)

        with _ad_must_fit():
            await run_in_threadpool(engine.change_ad, ad, change)
        return _ad_answer(engine.live, ad)

    @app.delete("/v1/ads/{ad:path}", status_code=204, responses=problems, dependencies=needs)
    async def delete_ad(ad: AdId) -> Response:
        """Take an ad away; when this is answered, no new request is shown it."""
        _row_of(engine.live, ad)
        await run_in_threadpool(engine.delete_ad, ad)
        return Response(status_code=204)


@contextlib.contextmanager
def _ad_must_fit() -> Iterator[None]:
    """Make 422 of what a funnel has no place for: how an ad is billed.

    Raises:
        RefusedError: That, or the request was refused already.
        StoreError: The store is not there.
    """
    try:
        yield
    except (RefusedError, StoreError):
        raise
    except TamisError as error:
        raise RefusedError(
            422, "body.billing", "must be an event that the funnel's last stage predicts."
        ) from error


def _ad_answer(live: Live, ad: str) -> wire.AdAnswer:
    (found,) = wire.ad_answers(live, [_row_of(live, ad)])
    return found


def _row_of(live: Live, ad: str) -> int:
    row = live.ads.row_by_id.get(ad)
    if row is None:
        raise no_such_ad()
    return row
