"""Requests made from the server's own document: answered as it says, whatever they hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.core import NOT_SET

from tamis.serving.app import make_app
from tamis.serving.engine import Engine
from tamis.serving.metrics import Metrics

pytestmark = pytest.mark.slow


@pytest.fixture
def client(
    make_engine: Callable[..., Engine], bundles: Path, call_app: Callable[[Any], Any]
) -> Any:
    return call_app(make_app(make_engine(), Metrics(), bundles=bundles))


def _call(client: Any, case: Case) -> Any:
    headers = {str(name): str(value) for name, value in dict(case.headers or {}).items()}
    content = b""
    if case.body is not NOT_SET:
        content = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
        headers["content-type"] = case.media_type or "application/json"
    return client.request(
        case.method, case.formatted_path, params=dict(case.query or {}), content=content,
        headers=headers,
    )  # fmt: skip


def _check_document(
    client: Any, examples: int, caplog: pytest.LogCaptureFixture
) -> dict[tuple[str, int], int]:
    """Ask every route what fits its document and what does not; how often each status came."""
    document = client.get("/openapi.json").json()
    statuses: dict[tuple[str, int], int] = {}

    def ask(case: Case) -> None:
        found = _call(client, case)
        route = f"{case.method} {case.operation.path}"
        statuses[route, found.status_code] = statuses.get((route, found.status_code), 0) + 1
        assert found.status_code < 500, (route, case.body)
        if found.status_code >= 400:
            error = found.json()["error"]
            assert error["field"], (route, case.body)
            assert error["message"], (route, case.body)
        # Headers, type and fields are those that the document promises.
        case.operation.validate_response(found, case=case)

    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        modes = [GenerationMode.POSITIVE]
        # Without parameters and body nothing can be wrong.
        if operation.body or operation.path_parameters or operation.query:
            modes.append(GenerationMode.NEGATIVE)
        for mode in modes:
            settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(given(operation.as_strategy(generation_mode=mode))(ask))()
    assert not caplog.records
    return statuses


def test_every_route_answers_what_its_document_makes(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    statuses = _check_document(client, 15, caplog)

    assert len({route for route, _ in statuses}) == 16
    answered = {route for route, status in statuses if status < 300}
    assert {"POST /v1/rank", "POST /v1/events", "PUT /v1/ads/{ad}"} <= answered
    refused = {route for route, status in statuses if status == 422}
    assert {"POST /v1/rank", "POST /v1/events", "PUT /v1/ads/{ad}", "PATCH /v1/ads/{ad}"} <= refused


@pytest.mark.slow(seconds=45)
@pytest.mark.timeout(3600)
def test_every_route_answers_much_of_what_its_document_makes(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert sum(_check_document(client, 120, caplog).values()) > 1_000
