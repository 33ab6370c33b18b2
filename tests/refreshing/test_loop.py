"""The whole loop over HTTP: serve, click, refresh, another ranking, and back."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

TOKEN = "a-token-of-the-tests"


def _environment() -> dict[str, str]:
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "300"}
    return {**os.environ, **paths, "TAMIS_TOKEN": TOKEN}


@pytest.fixture
def start(start_server: Callable[..., Any]) -> Callable[[Any], Any]:
    def make(world: Any) -> Any:
        return start_server(world.bundle, world.folder, "--store", world.url, token=TOKEN)

    return make


def _command(world: Any, address: str, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "tamis", "refresh", str(world.bundle), "--store", world.url,
        "--server", address, "--least-requests", "20", "--settle-minutes", "0", "--json",
        "--set", "training.batch_size=128", "--set", "optimizer.embedding_lr=0.1",
        "--set", "optimizer.dense_lr=0.01", "--set", "training.max_epochs=4", *options,
    ]  # fmt: skip


def _refresh(world: Any, address: str, *options: str, token: str = TOKEN) -> Any:
    return subprocess.run(
        _command(world, address, *options), cwd=world.folder, capture_output=True, text=True,
        check=False, env={**_environment(), "TAMIS_TOKEN": token},
    )  # fmt: skip


@pytest.mark.slow
def test_events_change_the_ranking_and_a_roll_back_brings_it_back(
    world: Any, start: Callable[[Any], Any]
) -> None:
    server = start(world)
    with httpx.Client(
        base_url=server.address, timeout=60, headers={"Authorization": f"Bearer {TOKEN}"}
    ) as client:

        def ranking() -> list[str]:
            # One request id, as ties between ads are broken by it.
            body = {"request_id": "probe", "user": {"id": "3"}, "k": 8}
            answer = client.post("/v1/rank", json=body)
            return [ad["ad"] for ad in answer.raise_for_status().json()["ads"]]

        before, first = ranking(), client.get("/readyz").json()["release"]

        made = _refresh(world, server.address, "--tolerance", "0.5")

        assert made.returncode == 0, made.stderr
        found = json.loads(made.stdout)
        assert (found["command"], found["ok"], found["outcome"]) == ("refresh", True, "live")
        second = client.get("/readyz").json()["release"]
        assert (found["base"], found["release"]) == (first, second)
        assert first != second
        after = ranking()
        # Whoever answered clicked even ids: more of them are shown, and further up.
        assert _places_of_even(after) < _places_of_even(before)

        # Again nothing is left to do.
        again = json.loads(_refresh(world, server.address).stdout)
        assert again["outcome"] == "nothing"
        assert again["new_requests"] == 0

        back = {"replaces": second, "roll_back": True}
        assert client.post("/v1/admin/bundle", json=back).json()["release"] == first
        assert ranking() == before


@pytest.mark.slow
def test_wrong_token_leaves_the_bundle_published_and_the_next_call_has_it_served(
    world: Any, start: Callable[[Any], Any]
) -> None:
    server = start(world)

    wrong = _refresh(world, server.address, "--tolerance", "0.5", token="another-token-of-all")
    right = _refresh(world, server.address)

    assert wrong.returncode == 1
    assert "must be answered with 200, got 401" in wrong.stderr
    assert "another-token" not in wrong.stderr + wrong.stdout
    found = json.loads(right.stdout)
    assert (found["outcome"], found["number"]) == ("live", 1)
    assert httpx.get(f"{server.address}/readyz").json()["release"] == found["release"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_refresh_that_is_killed_over_and_over_ends_well(
    world: Any, start: Callable[[Any], Any]
) -> None:
    server = start(world)
    for wait_s in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0):
        # The very command that ends it: a run that was begun goes on with its own settings only.
        process = subprocess.Popen(
            _command(world, server.address), cwd=world.folder, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=_environment(),
        )  # fmt: skip
        time.sleep(wait_s)
        process.kill()
        process.wait(60)

    done = _refresh(world, server.address)

    assert done.returncode == 0, done.stderr
    served = httpx.get(f"{server.address}/readyz").json()["release"]
    ledger = json.loads((world.folder / "bundles" / "first-refresh" / "ledger.json").read_text())
    assert [turn["status"] for turn in ledger["rounds"]] == ["live"]
    assert ledger["rounds"][0]["release"] == served


def _places_of_even(ads: list[str]) -> float:
    """Mean place of the ads with even ids; the last one and more where none is shown."""
    places = [place for place, ad in enumerate(ads) if int(ad) % 2 == 0]
    missing = [len(ads)] * (len(ads) - len(places))
    return sum(places + missing) / len(ads)
