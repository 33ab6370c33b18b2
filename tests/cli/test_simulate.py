"""``tamis simulate --funnel``: what a bundle's funnel logs, and what cannot serve."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from tamis import api
from tamis.data.market import market_schema
from tamis.data.market.tables import LOG_COLUMNS

pytestmark = pytest.mark.slow

# The market of ``market_world``.
_MARKET = ("--rows", "6000", "--seed", "4")


@pytest.fixture(scope="session")
def _bundle(market_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    stages = [
        f'name = "index"\nkind = "index"\nrun = "{market_world}/index"\nbeams = [3]\nkeep = 60',
        f'name = "early"\nkind = "early"\nrun = "{market_world}/early"\nkeep = 20',
        f'name = "final"\nkind = "ranker"\nrun = "{market_world}/final"\nkeep = 8',
    ]
    recipe = folder / "funnel.toml"
    recipe.write_text("\n".join(f"[[stages]]\n{stage}" for stage in stages))
    api.publish(recipe, folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def bundle(_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of a simulated market, beside the working directory."""
    monkeypatch.chdir(tmp_path)
    return _bundle


def test_funnel_writes_an_ordinary_market_and_its_candidates(
    bundle: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    found = tamis_json(
        "simulate", *_MARKET, "--funnel", bundle, "--out", "log", "--first-day", 1, "--days", 1,
        "--judge-every", 5, "--threads", 1,
    )  # fmt: skip

    manifest = json.loads(Path("log/market.json").read_text())
    assert manifest["served"] == {"first_hour": 24, "days": 1}
    assert (found["out"], found["funnel"], found["rows"]) == ("log", str(bundle), manifest["rows"])
    candidates = pq.read_table("log/candidates")
    stages = set(candidates["stages"].to_pylist())
    assert stages == {"known,index,early,final,auction"}
    assert {"score_index", "score_early", "score_final", "predicted_click"} <= set(
        candidates.column_names
    )
    assert (candidates["request_id"].to_numpy() % 5 == 0).all()
    assert candidates.num_rows == pq.read_table("log/candidate_truth").num_rows
    prices = pq.read_table("log/slates")["cost_per_click"].to_numpy()
    assert len(prices) == found["rows"] > 100
    # Whoever ingests it reads a market like any other.
    assert api.schema_of("log").schema == market_schema()
    assert pq.read_table("log/logs").column_names == list(LOG_COLUMNS)


def test_table_says_how_much_was_shown(bundle: Path, tamis: Callable[..., Result]) -> None:
    result = tamis("simulate", *_MARKET, "--funnel", bundle, "--out", "log", "--days", "1")

    assert result.exit_code == 0, result.output
    rows = json.loads(Path("log/market.json").read_text())["rows"]
    assert f"Simulated market in log, {rows:,} impressions" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "6000", "--seed", "5"), "must be those of the market of 6,000 rows and seed 5"),
        ((*_MARKET, "--first-day", "14"), "must be some of the market's 14, got first_day=14 and"),
        ((*_MARKET, "--first-day", "12", "--days", "3"), "got first_day=12 and days=3. Begin earl"),
    ],
)
def test_bundles_and_days_of_another_market_are_refused(
    bundle: Path, refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused("simulate", *arguments, "--funnel", bundle, "--out", "log")
    assert not Path("log").exists()


def test_folder_that_is_no_bundle_is_refused(
    bundle: Path, market_world: Path, refused: Callable[..., str]
) -> None:
    message = "must be a finished bundle with a manifest.json, got none"
    assert message in refused("simulate", *_MARKET, "--funnel", "nowhere", "--out", "log")
    assert "nowhere: " + message in refused(
        "simulate", *_MARKET, "--funnel", "nowhere", "--out", "log"
    )
    assert message in refused("simulate", *_MARKET, "--funnel", market_world, "--out", "log")


@pytest.mark.parametrize("option", ["--first-day", "--days", "--judge-every"])
def test_options_of_a_funnel_are_refused_without_one(
    bundle: Path, refused: Callable[..., str], option: str
) -> None:
    message = refused("simulate", *_MARKET, "--out", "log", option, "1")

    assert f"{option}: must be given with --funnel, got 1 without" in message


def test_taken_place_is_refused(bundle: Path, refused: Callable[..., str]) -> None:
    Path("log").mkdir()
    Path("log/mine.txt").write_text("mine")

    message = refused("simulate", *_MARKET, "--funnel", bundle, "--out", "log", "--days", "1")

    assert "log: must not exist or be empty, got 'mine.txt' in it" in message
