"""Options start from what the library starts from.

Commands write their defaults down once more, so that ``--help`` need not load what they call.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from tamis.cli.cascade import cascade
from tamis.cli.serve import serve
from tamis.publishing.cascade import CascadeSampling


def _engine_settings() -> type[Any]:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    from tamis.serving.engine import EngineSettings

    return EngineSettings


@pytest.mark.parametrize(
    ("command", "settings", "names"),
    [
        (cascade, lambda: CascadeSampling, {"requests", "scored", "rejected", "seed"}),
        (serve, _engine_settings, {"max_batch", "max_wait_ms"}),
    ],
)
def test_defaults_of_a_command_are_those_of_its_settings(
    command: Callable[..., None], settings: Callable[[], type[Any]], names: set[str]
) -> None:
    offered = {
        name: parameter.default for name, parameter in inspect.signature(command).parameters.items()
    }
    own = {field.name: field.default for field in fields(settings())}

    assert {name: offered[name] for name in names} == {name: own[name] for name in names}
