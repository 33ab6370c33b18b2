"""``tamis ab-test``: tables, object and page; bundles that cannot be compared."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tamis import api
from tamis.data.market import LiveMarket
from tamis.errors import ConfigError

_MARKET = ("--rows", "6000", "--seed", "4", "--threads", "1")  # of ``market_world``
_WEIGHTS = "[value]\npenalties = {hide = 0.05}\n"
_QUALITY = '[value]\nquality = "worth"\nquality_weight = 0.5\n'


@pytest.fixture(scope="session")
def _bundles(market_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arms")
    data = f'dataset = "{market_world}/data"\n'
    popular = '[[stages]]\nname = "popular"\nkind = "popularity"\nkeep = {keep}\n'
    final = f'[[stages]]\nname = "final"\nkind = "ranker"\nrun = "{market_world}/final"\nkeep = 8\n'
    recipes = {
        "popular": data + popular.format(keep=8) + _WEIGHTS,
        "ranked": data + popular.format(keep=60) + final + _WEIGHTS,
        "other": data + popular.format(keep=8),
        "quality": data + popular.format(keep=8) + _QUALITY,
    }
    for name, text in recipes.items():
        (folder / f"{name}.toml").write_text(text)
        api.publish(folder / f"{name}.toml", folder / name)
    return folder


@pytest.fixture
def bundles(_bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles ``popular``, ``ranked``, ``other`` and ``quality`` in the working directory."""
    shutil.copytree(_bundles, tmp_path / "bundles")
    monkeypatch.chdir(tmp_path / "bundles")


@pytest.mark.slow
@pytest.mark.usefixtures("bundles")
def test_json_page_and_record_say_the_same(tamis_json: Callable[..., dict[str, Any]]) -> None:
    found = tamis_json(
        "ab-test", "popular", "ranked", *_MARKET, "--first-day", "13", "--judge-every", "5"
    )

    assert (found["command"], found["out"]) == ("ab-test", "ab-tests/ranked-1")
    record = json.loads(Path("ab-tests/ranked-1/ab-test.json").read_text())
    assert {name: found[name] for name in record} == record
    assert (record["first_day"], record["days"]) == (13, 1)
    assert {arm: told["name"] for arm, told in record["arms"].items()} == {
        "control": "popular",
        "treatment": "ranked",
    }
    assert record["arms"]["treatment"]["fallbacks"] == []
    users = record["sample_ratio"]
    # Those who came on the day, of hundreds that were assigned.
    assert min(users["control_users"], users["treated_users"]) > 20
    assert [stage["stage"] for stage in record["losses"]["treatment"]["stages"]] == [
        *("known", "popular", "final", "auction"),
    ]
    page = Path("ab-tests/ranked-1/report.html").read_text()
    assert "<svg" in page
    assert f"{record['differences']['click_rate']['control']['value']:.4g}" in page


@pytest.mark.slow
@pytest.mark.usefixtures("bundles")
def test_days_and_place_are_as_they_were_asked_for(tamis: Callable[..., Result]) -> None:
    result = tamis(
        "ab-test", "popular", "popular", *_MARKET, "--first-day", "13", "--days", "1",
        "--judge-every", "1000", "--out", "here",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    words = [line.split() for line in result.output.splitlines()]
    assert ["metric", "control", "treatment", "difference", "lift", "p"] in words
    # One request in a thousand is none of an arm's, or one, which has no interval.
    assert None in json.loads(Path("here/ab-test.json").read_text())["losses"].values()
    assert "Too few requests of" in result.output
    assert ["report:", "here/report.html"] in words
    assert json.loads(Path("here/ab-test.json").read_text())["days"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("popular", "other", *_MARKET, "--first-day", "13"), "must weigh total value alike"),
        (("popular", "ranked", *_MARKET, "--first-day", "14"), "must be some of the market's 14"),
        (("quality", "quality", *_MARKET, "--first-day", "13"), "got 'worth'"),
        (
            # Trained until day 11, and validated until day 12.
            ("popular", "ranked", *_MARKET, "--first-day", "12"),
            "first_day: must come after the days that popular learnt from or was validated on, the "
            "last of which is day 12, got 12. Begin on day 13 or later.",
        ),
        (
            ("popular", "ranked", "--rows", "6000", "--seed", "5", "--first-day", "1"),
            "must be those of the market of 6,000 rows and seed 5",
        ),
        (("popular", "nowhere", *_MARKET, "--first-day", "13"), "nowhere"),
        (
            ("popular", "ranked", *_MARKET, "--first-day", "13", "--out", "popular"),
            "popular: must be a folder for a report, got a folder of kind 'bundle'. Name another.",
        ),
    ],
)
@pytest.mark.usefixtures("bundles")
def test_arms_that_cannot_be_compared_are_refused_before_anything_is_served(
    tamis: Callable[..., Result],
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def served(*_: object) -> None:
        raise AssertionError("an hour was served")

    monkeypatch.setattr(LiveMarket, "serve_hour", served)

    result = tamis("ab-test", *arguments)

    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not Path("ab-tests").exists()


@pytest.mark.usefixtures("bundles")
@pytest.mark.parametrize("wrong", [{"first_day": 0}, {"first_day": 3, "judge_every": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        api.ab_test("popular", "ranked", 6000, **wrong)
