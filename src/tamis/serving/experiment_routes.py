"""The routes of experiments: begin one, end one, and look at one while it runs or afterwards."""

import time
from typing import Annotated, Any

from fastapi import FastAPI, Path
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from tamis.serving.engine import Engine
from tamis.serving.experiment_wire import ExperimentAnswer, ExperimentBody, experiment_answer
from tamis.serving.experiments import Experiments
from tamis.serving.records import Experiment
from tamis.serving.refused import RefusedError, bundle_must_serve

ExperimentId = Annotated[
    str, Path(min_length=1, max_length=64, pattern=r"^[a-z0-9_-]+$", alias="experiment")
]
_HOUR_MICROS = 3_600_000_000


def add_experiments(
    app: FastAPI,
    engine: Engine,
    experiments: Experiments,
    *,
    needs: list[Any],
    problems: dict[int | str, dict[str, Any]],
) -> None:
    """Add the routes.

    Args:
        app: Gets the routes.
        engine: Serves the control.
        experiments: Are begun, ended and looked at.
        needs: What must hold before, such as a token; a look takes work, so that it needs it too.
        problems: How errors are documented.
    """

    @app.post("/v1/admin/experiments/{experiment}", responses=problems, dependencies=needs)
    async def begin(experiment: ExperimentId, body: ExperimentBody) -> ExperimentAnswer:
        """Begin an experiment: users are split by their id, or a shadow scores what is served."""
        if body.replaces != engine.live.served.release:
            raise RefusedError(
                409, "body.replaces", "must be the release that serves. Look at /readyz."
            )
        now = _now_micros()
        plan = Experiment(
            experiment=experiment,
            kind=body.kind,
            control=body.replaces,
            treatment=body.release,
            treated_share=body.treated_share,
            attribution_micros=round(body.attribution_hours * _HOUR_MICROS),
            smallest=body.smallest,
            began_micros=now,
        )
        with bundle_must_serve():
            await run_in_threadpool(experiments.start, plan)
        return await _look(experiment)

    @app.delete(
        "/v1/admin/experiments/{experiment}",
        status_code=204,
        responses=problems,
        dependencies=needs,
    )
    async def end(experiment: ExperimentId) -> Response:
        """End an experiment: the control serves all users again."""
        await run_in_threadpool(experiments.stop, experiment, now_micros=_now_micros())
        return Response(status_code=204)

    @app.get("/v1/experiments/{experiment}", responses=problems, dependencies=needs)
    async def look(experiment: ExperimentId) -> ExperimentAnswer:
        """Look at an experiment, running or ended: the estimates with their intervals."""
        return await _look(experiment)

    async def _look(name: str) -> ExperimentAnswer:
        found = await run_in_threadpool(experiments.look, name, now_micros=_now_micros())
        return experiment_answer(found)


def _now_micros() -> int:
    return time.time_ns() // 1_000
