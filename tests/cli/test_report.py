"""``tamis report``: its object, and runs that lack a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.toml", "a: must be a run folder with config.toml, got none"),
        ("metrics.jsonl", "a/metrics.jsonl: must exist, got no such file; a run has one"),
    ],
)
def test_run_without_one_of_its_files_is_refused(
    world: Path, refused: Callable[..., str], name: str, message: str
) -> None:
    Path("a", name).unlink()

    assert message in refused("report", "a")


def test_json_holds_page_and_metrics(
    world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    found = tamis_json("report", "a")

    assert found["out"] == "a/report.html"
    assert found["metrics"]["test"]["y"]["rows"] > 0
