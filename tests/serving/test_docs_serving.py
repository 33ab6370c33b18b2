"""Every call of docs/serving.md is answered, in the order in which they stand there."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tamis.funnel.bundle import read_bundle
from tamis.serving.app import make_app
from tamis.serving.engine import Engine
from tamis.serving.metrics import Metrics

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


def _call(line: str) -> tuple[str, str, dict[str, str], str]:
    """Method, address, headers and body of a line for curl."""
    words = iter(shlex.split(line.replace("$JSON", "Content-Type: application/json")))
    options = {"-X": "", "-d": "", "-H": ""}
    address = ""
    for word in words:
        if word.startswith("-"):
            options[word] = next(words)
        else:
            address = word
    body, (name, _, value) = options["-d"], options["-H"].partition(": ")
    method = options["-X"] or ("POST" if body else "GET")
    return method, address.removeprefix("$AT"), {name: value} if name else {}, body


@pytest.mark.slow
def test_every_call_is_answered(
    make_engine: Callable[..., Engine], bundles: Path, call_app: Callable[[Any], Any]
) -> None:
    client = call_app(make_app(make_engine(), Metrics(), bundles=bundles))
    first, second = (read_bundle(bundles / name).release for name in ("first", "second"))
    lines = re.findall(r"^\$ curl (.*)$", PAGE, flags=re.M)
    (events,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.S)

    answers = []
    for line in lines:
        method, path, headers, body = _call(line.replace("NOW", first).replace("OTHER", second))
        found = client.request(method, path, headers=headers, content=body)
        assert found.is_success, (line, found.text)
        answers.append((f"{method} {path}", found))

    by_call = dict(answers)
    assert len(by_call["POST /v1/rank"].json()["ads"]) == 3
    assert by_call["GET /v1/ads/new-1"].json()["bid"] == 0.6
    assert by_call["POST /v1/admin/bundle"].json()["release"] == first
    assert by_call["GET /v1/experiments/one"].json()["is_running"] is True
    told = client.post("/v1/events", json=json.loads(events))
    # The page's ad is none of this bundle.
    assert told.json() == {"accepted": 2, "duplicates": 0, "unknown_ads": 2}
