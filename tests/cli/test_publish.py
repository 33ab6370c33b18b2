"""``tamis publish``: its table and object, and recipes that make no bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tamis.data.dataset import Dataset
from tamis.funnel.bundle import load_bundle, read_bundle
from tamis.funnel.log import logged_requests

_RECIPE = """
reserve = 0.01

[ads]
table = "{world}/market/ads.parquet"
bid = "bid_micros"
bid_unit = 1e-6
advertiser = "advertiser_id"

[value]
penalties = {{hide = 0.05}}

[[stages]]
name = "popular"
kind = "popularity"
keep = 60

[[stages]]
name = "early"
kind = "early"
run = "{world}/early"
calibration = "isotonic"
keep = 20
budget_ms = 60000

[[stages]]
name = "final"
kind = "ranker"
run = "{world}/final"
keep = 8
"""


@pytest.fixture
def recipe(market_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``funnel.toml`` in the working directory, of a simulated market's two runs."""
    monkeypatch.chdir(tmp_path)
    path = Path("funnel.toml")
    path.write_text(_RECIPE.format(world=market_world))
    return path


def test_json_holds_release_and_stages(
    recipe: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    found = tamis_json("publish", recipe, "--out", "bundle")

    assert (found["command"], found["ok"], found["out"]) == ("publish", True, "bundle")
    assert found["release"] == read_bundle(Path("bundle")).release
    assert found["stages"] == [
        {"name": "popular", "kind": "popularity", "model": "", "keep": 60, "budget_ms": None},
        {"name": "early", "kind": "early", "model": "early_stage", "keep": 20,
         "budget_ms": 60000.0},
        {"name": "final", "kind": "ranker", "model": "deepfm", "keep": 8, "budget_ms": None},
    ]  # fmt: skip
    funnel = load_bundle(Path("bundle"))
    assert len(funnel.ads) == found["ads"] > 100
    assert funnel.reserve == 0.01
    of_early, of_ads = found["warnings"]
    assert "the final stage must see more, got the same" in of_early
    assert "ads were not shown in train, valid and are not in the bundle" in of_ads


def test_answers_to_a_user_are_kept_where_the_recipe_says_so(
    recipe: Path, market_world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    searching = f'kind = "two_tower"\nrun = "{market_world}/towers"'
    traces = {}
    for name, more in (("plain", ""), ("kept", "\ntime_to_live_ms = 60000\nmax_users = 500")):
        text = _RECIPE.format(world=market_world)
        recipe.write_text(text.replace('kind = "popularity"', searching + more))
        tamis_json("publish", recipe, "--out", name)
        funnel, codes = load_bundle(Path(name)), read_bundle(Path(name)).blueprint.inventory.codes
        data = Dataset.open(market_world / "data")
        request = next(logged_requests(data.split("valid"), data.spec, codes))
        traces[name] = [funnel.answer(request) for _ in range(2)]

    assert [trace.stages[0].cache_hits for trace in traces["kept"]] == [0, 1]
    assert [trace.stages[0].cache_lookups for trace in traces["plain"]] == [0, 0]
    for kept, plain in zip(traces["kept"], traces["plain"], strict=True):
        assert kept.slate.to_json() == plain.slate.to_json()
        assert len(kept.slate.ads)


def test_table_and_release_are_printed(recipe: Path, tamis: Callable[..., Result]) -> None:
    result = tamis("publish", recipe, "--out", "bundle")

    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["early", "early", "early_stage", "20", "60000", "ms"] in lines
    assert ["popular", "popularity", "-", "60", "-"] in lines
    assert ["release:", read_bundle(Path("bundle")).release] in lines
    assert "warning: stage 'early' before 'final': early stage: the final stage must see more" in (
        result.output
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("keep = 8", "keep = 80", "funnel.toml: stage 'final': keep must be at most the 20 that"),
        (
            "keep = 8",
            "keeps = 8",
            "funnel.toml: stages[2].keeps: must be a known key, got 'keeps'.",
        ),
        ('kind = "ranker"', 'kind = "rankr"', "stages[2].kind: must be one of 'popularity', 'ind"),
        ("/final", "/nowhere", "nowhere: must be a run folder with run.json, got none"),
        ('"bid_micros"', '"bids"', "ads.parquet: must hold column 'bids', got ad_id"),
        (
            "{hide =",
            "{report =",
            "funnel.toml: value.penalties.report: must be a task of every stage",
        ),
    ],
)
def test_recipe_that_makes_no_funnel_is_refused(
    recipe: Path, refused: Callable[..., str], old: str, new: str, message: str
) -> None:
    recipe.write_text(recipe.read_text().replace(old, new))

    assert message in refused("publish", recipe, "--out", "bundle")
    assert not Path("bundle").exists()


def test_taken_place_is_refused(recipe: Path, refused: Callable[..., str]) -> None:
    Path("bundle").mkdir()
    Path("bundle", "mine.txt").write_text("mine")

    message = refused("publish", recipe, "--out", "bundle")

    assert "bundle: must not exist or be empty, got files in it. Name another" in message
    assert [path.name for path in Path("bundle").iterdir()] == ["mine.txt"]
