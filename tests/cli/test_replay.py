"""``tamis replay``: tables, object and page; bundles and datasets that do not go together."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tamis import api


@pytest.fixture(scope="session")
def _bundle(market_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    stages = [
        'name = "popular"\nkind = "popularity"\nkeep = 60',
        f'name = "early"\nkind = "early"\nrun = "{market_world}/early"\nkeep = 20',
        f'name = "final"\nkind = "ranker"\nrun = "{market_world}/final"\nkeep = 8',
    ]
    recipe = folder / "funnel.toml"
    recipe.write_text("\n".join(f"[[stages]]\n{stage}" for stage in stages))
    api.publish(recipe, folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def bundle(_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of a simulated market in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(_bundle, "bundle")
    return Path("bundle")


def test_json_page_and_record_say_the_same(
    bundle: Path, market_world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    found = tamis_json("replay", bundle, market_world / "data", "--threads", "1")

    assert (found["command"], found["ok"], found["out"]) == ("replay", True, "replays/bundle-1")
    record = json.loads(Path("replays/bundle-1/replay.json").read_text())
    assert {name: found[name] for name in record if name != "seconds"} == {
        name: value for name, value in record.items() if name != "seconds"
    }
    assert [stage["name"] for stage in found["stages"]] == ["popular", "early", "final", "auction"]
    assert found["requests"] == found["compared"] > 100
    # The last stage is compared with itself: it loses nothing of what it was given.
    final = found["stages"][2]["measures"]
    assert final["regret"] == 0
    assert final["value_kept"] == found["stages"][1]["measures"]["value_kept"] < 1
    assert 0 < found["heads"]["final"]["click"]["ne"] < 2
    page = Path("replays/bundle-1/report.html").read_text()
    assert "<svg" in page
    assert f"{found['heads']['final']['click']['ne']:.4f}" in page


def test_tables_are_printed_and_folders_numbered(
    bundle: Path, market_world: Path, tamis: Callable[..., Result]
) -> None:
    Path("replays/bundle-1").mkdir(parents=True)

    result = tamis("replay", bundle, market_world / "data", "--limit", "7", "--every", "3")

    assert result.exit_code == 0, result.output
    words = [line.split() for line in result.output.splitlines()]
    assert any(line[:3] == ["early", "60", "20"] for line in words)
    assert ["stage", "recall", "soft", "recall", "value", "kept", "regret"] in words
    assert any(line[:2] == ["final", "conversion"] for line in words)
    assert any(line[:2] == ["7", "requests,"] for line in words)
    assert ["report:", "replays/bundle-2/report.html"] in words


def test_place_and_no_reference_are_as_they_were_asked_for(
    bundle: Path, market_world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    found = tamis_json(
        "replay", bundle, market_world / "data", "--split", "valid", "--reference", "none",
        "--limit", 5, "--out", "here",
    )  # fmt: skip

    assert (found["out"], found["split"], found["compared"]) == ("here", "valid", 0)
    # Every ad of the validation split was there when the funnel was published.
    assert found["unknown_impressions"] == 0
    assert sorted(path.name for path in Path("here").iterdir()) == ["replay.json", "report.html"]


def test_search_of_an_index_is_told_level_by_level(
    bundle: Path, market_world: Path, tamis: Callable[..., Result]
) -> None:
    Path("funnel.toml").write_text(
        f'[[stages]]\nname = "index"\nkind = "index"\nrun = "{market_world}/index"\nbeams = [3]\n'
        f'keep = 40\n[[stages]]\nname = "final"\nkind = "ranker"\nrun = "{market_world}/final"\n'
        f"keep = 8"
    )
    api.publish("funnel.toml", "searching")

    result = tamis("replay", "searching", market_world / "data", "--limit", "5")

    assert result.exit_code == 0, result.output
    words = [line.split() for line in result.output.splitlines()]
    assert "Search of the index, mean of a request" in result.output
    assert any(line[:3] == ["index,", "level", "1"] for line in words)
    assert any(line[:2] == ["index,", "ads"] and line[4] == "40" for line in words)
    assert "Search of the index" not in tamis(
        "replay", bundle, market_world / "data", "--limit", "5"
    ).output  # fmt: skip


def test_mixture_of_two_bundles_is_refused(
    bundle: Path, market_world: Path, refused: Callable[..., str]
) -> None:
    Path("funnel.toml").write_text(
        f'[[stages]]\nname = "early"\nkind = "early"\nrun = "{market_world}/early"\nkeep = 9'
    )
    api.publish("funnel.toml", "other")
    shutil.rmtree(bundle / "stages" / "early")
    shutil.copytree("other/stages/early", bundle / "stages" / "early")

    message = refused("replay", bundle, market_world / "data")

    assert "bundle: must hold parts of one publishing, got stages/early of release " in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("early", "data"), "early: must be a finished bundle with a manifest.json, got none"),
        (("bundle", "early"), "early: must be a finished dataset with a manifest.json, got none"),
        (("bundle", "data", "--split", "tset"), "must have a split 'tset', got train, valid, test"),
        (("bundle", "data", "--out", "early"), "early: must be a folder for a report, got a run."),
        (("bundle", "data", "--out", "data"), "report, got a folder of kind 'dataset'. Name"),
        (("bundle", "data", "--out", "bundle/manifest.json"), "for a report, got a file. Name"),
    ],
)
def test_other_folders_and_splits_are_refused(
    bundle: Path,
    market_world: Path,
    refused: Callable[..., str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    for name in ("early", "data"):
        Path(name).symlink_to(market_world / name)

    assert message in refused("replay", *arguments)
    assert not Path("replays").exists()


def test_dataset_of_another_split_is_refused(
    bundle: Path, market_world: Path, refused: Callable[..., str]
) -> None:
    split = api.split_config("ratio", valid=0.3, test=0.3)
    api.ingest(market_world / "market", "other", split=split)

    message = refused("replay", bundle, "other")

    assert "stage: " in message
    assert "Use the dataset of more fields" in message or "Train on a dataset" in message
