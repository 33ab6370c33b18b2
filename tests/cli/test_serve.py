"""``tamis serve``: what is refused before anything listens; serving itself is tested there."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import Result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "--port", "0"), "none: must be finished bundle"),
        (("none", "--host", "0.0.0.0"), "token: must be set to listen at 0.0.0.0"),
        (("none", "--port", "0", "--store", "mysql://x"), "got the kind 'mysql'"),
        (("none", "--bundles", "nowhere"), "nowhere: must be a folder of bundles, got none"),
        (("none", "--max-wait-ms", "0"), "max_wait_ms positive, got"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    assert message.replace("be finished", "be a finished") in refused("serve", *arguments)


def test_port_that_is_taken_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused("serve", "none", "--port", str(port))

    assert f"must be an address that is free, got 127.0.0.1:{port}" in message


@pytest.mark.parametrize("verb", [("serve", "none"), ("ingest", "sqlite:///x.db", "--out", "o")])
def test_missing_packages_are_named_with_the_line_that_installs_them(verb: tuple[str, ...]) -> None:
    code = (
        "import sys; sys.modules['sqlalchemy'] = None; sys.argv[1:] = sys.argv[2:]; "
        "from tamis.cli.main import run; run()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "-", *verb], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 2
    assert "must be installed for this, got no such package" in ended.stderr
    assert "pip install '.[serve]'" in ended.stderr


def test_label_that_no_event_tells_is_warned_of_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamis: Callable[..., Result]
) -> None:
    def serve(*arguments: Any, ready: Callable[..., None]) -> None:
        served = SimpleNamespace(release="0" * 64, bundle=SimpleNamespace(blueprint=None))
        ready("http://127.0.0.1:1", SimpleNamespace(served=served, ads=()))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tamis.serving.server.serve", serve)
    monkeypatch.setattr("tamis.serving.joined_log.refresh_warnings", lambda _: ("task 'x': no",))

    ended = tamis("serve", "bundle", "--json")

    assert json.loads(ended.stdout)["warnings"] == ["task 'x': no"]
    assert "warning: task 'x': no" in ended.stderr


def test_store_is_the_only_source(
    tamis: Callable[..., Result], refused: Callable[..., str]
) -> None:
    message = refused("ingest", "sqlite:///a.db", "b.csv", "--out", "o")

    assert "a store must be the only source" in message
