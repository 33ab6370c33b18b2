"""``tamis cascade``: the dataset of an early stage, and what it must not be asked of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tamis import api


@pytest.fixture
def teacher(market_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of retrieval and final stage in the working directory."""
    monkeypatch.chdir(tmp_path)
    stages = (
        'name = "popular"\nkind = "popularity"\nkeep = 60',
        f'name = "final"\nkind = "ranker"\nrun = "{market_world}/final"\nkeep = 8',
    )
    Path("teacher.toml").write_text("\n".join(f"[[stages]]\n{stage}" for stage in stages))
    api.publish("teacher.toml", "teacher")
    return Path("teacher")


def test_dataset_trains_an_early_stage(
    teacher: Path, market_world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    found = tamis_json(
        "cascade", teacher, market_world / "data", "--out", "cascade", "--requests", "50",
        "--scored", "4", "--rejected", "2", "--without", "history_ads",
        "--without", "history_categories",
    )  # fmt: skip

    dataset = api.open_dataset("cascade", verify=True)
    whole = api.open_dataset(market_world / "data")
    assert found["rows"] == {name: dataset.split(name).num_rows for name in dataset.split_names}
    # Every impression, and of fifty requests four candidates that were scored and two that weren't.
    assert found["rows"]["train"] == whole.split("train").num_rows + 50 * 6
    assert whole.spec.sequences
    assert dataset.spec.sequences == ()
    assert dataset.spec.numeric == whole.spec.numeric
    settings = ("training.max_epochs=1", "model.tower_units=[8]", "model.tower_dim=4")
    run = api.train(dataset, model="early_stage", settings=settings, run="early", report=False)
    assert run.status == "finished"


def test_teacher_with_one_stage_is_refused(
    market_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tamis: Callable[..., Result],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.toml").write_text(
        f'dataset = "{market_world}/data"\n[[stages]]\nname = "a"\nkind = "popularity"\nkeep = 9\n'
    )
    api.publish("one.toml", "one")

    result = tamis("cascade", "one", market_world / "data", "--out", "cascade")

    assert result.exit_code == 2
    assert not Path("cascade").exists()
