"""``tamis train``: what it refuses before it works, and what it says about a raw log."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytest
import torch
from typer.testing import Result

from tamis import api
from tamis.models.cetnet import CETNet
from tamis.training.predict import load_model

FAST = ("--model", "lr", "--set", "training.max_epochs=1", "--set", "training.batch_size=256")


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_flipped_bit_in_the_dataset_is_found_before_training(
    world: Path, refused: Callable[..., str]
) -> None:
    _flip_a_bit(world / "d" / "splits" / "train" / "data.arrow")

    message = refused("train", "d", "--run", "r", *FAST)

    assert "splits/train/data.arrow: must have sha256" in message
    assert not Path("r").exists()


def test_folder_that_is_no_run_is_not_trained_into(
    world: Path, refused: Callable[..., str]
) -> None:
    Path("thesis").mkdir()
    Path("thesis", "chapter.tex").write_text("x")

    message = refused("train", "d", "--run", "thesis", *FAST)

    assert "thesis: must be a run folder or an empty one, got 'chapter.tex' in it" in message
    assert os.listdir("thesis") == ["chapter.tex"]
    assert "that.csv: must be a run folder or a free name for one, got a file" in refused(
        "train", "d", "--run", "that.csv", *FAST
    )


def test_labels_of_a_dataset_are_not_given_again(world: Path, refused: Callable[..., str]) -> None:
    message = refused("train", "d", "--label", "price", *FAST)

    assert "--label: must not be given with a dataset, which has its labels, got 'price'" in message


def test_model_beside_a_recipe_is_refused(world: Path, refused: Callable[..., str]) -> None:
    Path("s.toml").write_text('[model]\nname = "fm"\n')

    message = refused("train", "d", "--recipe", "s.toml", "--model", "lr")

    assert "model: must not be given with a recipe, which names its own, got 'lr'" in message


def test_wrong_settings_are_found_before_the_log_is_read(
    world: Path, refused: Callable[..., str]
) -> None:
    assert "training: seed: must be in [0, 2**63), got -1" in refused(
        "train", "that.csv", "--label", "y", "--set", "training.seed=-1"
    )
    assert not Path("datasets").exists()


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ('[model]\nname = "lr"\n[training]\npatiense = 1\n', (), "s.toml: training.patiense: must"),
        ("model = 'lr'\n", (), "s.toml: model: must be a table, got 'lr'. Write it as [model]."),
        ('[model]\nname = "lr"\n', ("--set", "training.x=1"), "train: training.x: must be a known"),
        (
            '[model]\nname = "lr"\nwidth = 1\n',
            (),
            "s.toml: model.width: must be a known key, got 'width'. model takes no keys; remove it",
        ),
    ],
)
def test_wrong_key_is_blamed_on_the_recipe_or_the_option(
    world: Path, refused: Callable[..., str], recipe: str, settings: tuple[str, ...], message: str
) -> None:
    Path("s.toml").write_text(recipe)

    assert message in refused("train", "d", "--recipe", "s.toml", *settings)


def test_recipe_that_is_a_folder_is_refused(world: Path, refused: Callable[..., str]) -> None:
    assert "d: must be a TOML file, got a folder" in refused("train", "d", "--recipe", "d")


def test_other_model_is_named_before_its_settings(world: Path, refused: Callable[..., str]) -> None:
    message = refused("train", "d", "--run", "a", "--model", "dcn_v2")

    assert "a: must be resumed with its own config, got model.name='dcn_v2' instead of" in message


def test_damaged_config_of_a_run_is_named(world: Path, refused: Callable[..., str]) -> None:
    path = world / "a" / "config.toml"
    path.write_text(path.read_text().replace("\npatience", "\npatiense", 1))

    assert "a/config.toml: training.patiense: must be a known key" in refused("evaluate", "a")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("d/manifest.json", "d: must be a log file or a folder of logs, got a dataset without its"),
        ("", "a: must be a log file or a folder of logs, got a run. To go on with it"),
    ],
)
def test_folder_that_is_no_log_is_called_what_it_is(
    world: Path, refused: Callable[..., str], make: str, message: str
) -> None:
    if make:
        Path(make).unlink()

    assert message in refused("train", message.split(":")[0], "--label", "y", *FAST)


def test_folder_of_datasets_names_one_of_them(world: Path, refused: Callable[..., str]) -> None:
    Path("sets").mkdir()
    Path("d").rename("sets/mine")

    message = refused("train", "sets", "--label", "y", *FAST)

    assert "sets: must be a log file or a folder of logs, got a folder with the dataset" in message
    assert "sets/mine in it. Name that" in message


def test_warnings_and_split_of_a_raw_log_are_in_json_and_report(
    world: Path, tamis: Callable[..., Result]
) -> None:
    result = tamis("train", "that.csv", "--label", "y", "--run", "r", *FAST, "--json")

    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert any(
        warning.startswith("time: no column was recognised") for warning in found["warnings"]
    )
    assert found["split"]["by"] == "ratio"
    assert found["dataset"] == "datasets/that"
    assert "warning: time: no column was recognised" in result.stderr
    assert "split at random by row: 10 % validation, 10 % test" in result.stderr
    page = Path("r", "report.html").read_text()
    assert "at random by row: 10 % validation, 10 % test" in page


@pytest.mark.parametrize(("monitor", "is_drawn"), [("gauc", True), ("auc", False)])
def test_auc_within_users_is_drawn_where_it_is_watched(
    world: Path, tamis: Callable[..., Result], monitor: str, is_drawn: bool
) -> None:
    result = tamis("train", "d", "--run", "r", *FAST, "--set", f"training.monitor={monitor}")

    assert result.exit_code == 0, result.output
    line = " ".join(result.output.split("step ")[1].split())
    assert (re.search(r" y: ne \S+ auc \S+ gauc 0\.\d+", line) is not None) is is_drawn
    assert re.search(r" y: ne \S+ auc 0\.\d+", line)


def test_run_that_was_begun_on_a_log_is_given_again_without_a_second_dataset(
    world: Path, tamis: Callable[..., Result], tamis_json: Callable[..., dict[str, Any]]
) -> None:
    model = ("--model", "lr", "--set", "training.max_epochs=1", "--no-report")
    first = tamis_json("train", "that.csv", "--label", "y", "--run", "r", *model)
    again = tamis("train", "that.csv", "--label", "y", "--run", "r", *model)

    assert again.exit_code == 0, again.output
    assert f"dataset: {Path('datasets/that').resolve()}, with which r was begun" in again.output
    assert tamis_json("train", "that.csv", "--run", "r", *model)["metrics"] == first["metrics"]
    assert os.listdir("datasets") == ["that"]


def test_killed_training_goes_on_with_the_dataset_of_its_log(
    world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    tamis_json("train", "that.csv", "--label", "y", "--run", "r", "--no-report", *FAST)
    for path in Path("r").iterdir():
        if path.name not in ("run.json", "inputs"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    found = tamis_json("train", "that.csv", "--label", "y", "--run", "r", "--no-report", *FAST)

    assert found["metrics"]["test"]["y"]["rows"] > 0
    assert os.listdir("datasets") == ["that"]


def test_other_config_is_found_before_the_log_is_read_again(
    world: Path, refused: Callable[..., str], tamis_json: Callable[..., dict[str, Any]]
) -> None:
    tamis_json("train", "that.csv", "--label", "y", "--run", "r", "--no-report", *FAST)
    Path("that.csv").unlink()

    message = refused("train", "that.csv", "--label", "y", "--run", "r", "--model", "fm")

    assert "r: must be resumed with its own config, got model.name='fm' instead of 'lr'" in message


def test_log_or_labels_that_the_run_was_not_begun_with_are_refused(
    world: Path, refused: Callable[..., str], tamis_json: Callable[..., dict[str, Any]]
) -> None:
    tamis_json("train", "that.csv", "--label", "y", "--run", "r", "--no-report", *FAST)
    text = Path("that.csv").read_text()
    Path("other.csv").write_text(text)

    message = refused("train", "other.csv", "--label", "y", "--run", "r", *FAST)
    assert "datasets/that: must be made of the log that is given, got other.csv of" in message
    assert "Give the log that the run r was begun with, or another run name." in message
    assert "r: must go on with its own labels, y, got price" in refused(
        "train", "that.csv", "--label", "price", "--run", "r", *FAST
    )
    with Path("that.csv").open("a") as file:
        file.write(text.splitlines()[-1] + "\n")
    assert "bytes for a dataset of that.csv of" in refused(
        "train", "that.csv", "--label", "y", "--run", "r", *FAST
    )
    shutil.rmtree("datasets")
    message = refused("train", "that.csv", "--label", "y", "--run", "r", *FAST)
    assert "r: the run's dataset must be in" in message
    assert not Path("datasets").exists()


def test_dataset_and_run_are_named_after_the_folder_that_a_dot_stands_for(
    world: Path, tamis_json: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("logs").mkdir()
    Path("that.csv").rename("logs/that.csv")
    monkeypatch.chdir("logs")

    found = tamis_json("train", ".", "--label", "y", "--no-report", *FAST)
    assert (found["dataset"], found["run"]) == ("datasets/logs", "runs/logs-lr-1")

    monkeypatch.chdir(world / "d")
    assert tamis_json("train", ".", "--no-report", *FAST)["run"] == "runs/d-lr-1"


def test_run_can_be_evaluated_from_any_folder(
    world: Path, tamis_json: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tamis_json("train", "d", "--run", "r", "--no-report", *FAST)
    (world / "elsewhere").mkdir()
    monkeypatch.chdir(world / "elsewhere")

    assert tamis_json("evaluate", "../r")["metrics"]["test"]["y"]["rows"] > 0


_ENSEMBLE = """
[model]
name = "cetnet"
embeddings = "shared"

[[model.members]]
name = "dcn_v2"
hidden_units = [8]

[[model.members]]
name = "deepfm"
hidden_units = [8]

[training]
max_epochs = 1
batch_size = 256
ema_decay = 0.9
"""


def test_ensemble_and_one_of_its_members_are_trained_from_one_recipe(
    world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    Path("s.toml").write_text(_ENSEMBLE)

    together = tamis_json("train", "d", "--recipe", "s.toml", "--run", "together", "--no-report")
    tamis_json("train", "d", "--recipe", "s.toml", "--member", "1", "--run", "alone")
    tamis_json("report", "together")

    assert tamis_json("evaluate", "together")["metrics"]["test"] == together["metrics"]["test"]
    members = together["members"]["test"]
    assert list(members) == ["dcn_v2 0", "deepfm 1"]
    assert members["deepfm 1"]["y"]["auc"] != members["dcn_v2 0"]["y"]["auc"]
    with pa.OSFile(str(Path("together", "predictions", "test.arrow"))) as file:
        columns = pa.ipc.open_file(file).schema.names
    assert "prediction:y:deepfm 1" in columns
    assert 'name = "deepfm"' in Path("alone", "config.toml").read_text()
    page = Path("together", "report.html").read_text()
    alone = Path("alone", "report.html").read_text()
    for shown in ("Inside the model", "Loss terms", "deepfm 1"):
        assert shown in page
        assert shown not in alone
    assert "information abundance" in alone


def test_member_without_common_losses_is_bit_for_bit_the_one_that_is_trained_alone(
    world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    losses = "member_weight = 1.0\ncollaboration_weight = 0.0\nfused_weight = 0.0"
    separate = _ENSEMBLE.replace('embeddings = "shared"', losses)
    Path("s.toml").write_text(separate.replace("max_epochs = 1", "max_epochs = 2"))

    tamis_json("train", "d", "--recipe", "s.toml", "--run", "together", "--no-report")
    arguments = ("--member", "0", "--run", "alone", "--no-report")
    tamis_json("train", "d", "--recipe", "s.toml", *arguments)

    together, alone = (
        load_model(Path(run), device=torch.device("cpu"))[0] for run in ("together", "alone")
    )
    assert isinstance(together, CETNet)
    of_member, of_single = together.members[0].state_dict(), alone.state_dict()
    assert of_member.keys() == of_single.keys()
    for name, value in of_single.items():
        assert torch.equal(of_member[name], value), name


@pytest.mark.parametrize(
    ("recipe", "member", "message"),
    [
        (_ENSEMBLE, "2", "member: must be in [0, 2), one of the recipe's members, got 2"),
        ('[model]\nname = "lr"\n', "0", "member: needs a recipe with [[model.members]], got one"),
        ("model = 3\n", "0", "member: needs a recipe with [[model.members]], got one"),
    ],
)
def test_member_that_is_not_there_is_refused(
    world: Path, refused: Callable[..., str], recipe: str, member: str, message: str
) -> None:
    Path("s.toml").write_text(recipe)

    assert message in refused("train", "d", "--recipe", "s.toml", "--member", member)


def test_report_without_the_dataset_says_what_it_lacks(
    world: Path, tamis: Callable[..., Result]
) -> None:
    assert tamis("train", "d", "--run", "r", "--no-report", *FAST).exit_code == 0
    shutil.rmtree("d")
    result = tamis("report", "r")

    assert result.exit_code == 0
    assert "no dataset any more; the report is without diagnostics" in result.output
    assert Path("r", "report.html").exists()


def test_teacher_labels_the_rows_that_have_no_label(
    world: Path, refused: Callable[..., str], tamis: Callable[..., Result]
) -> None:
    Path("empty").mkdir()
    assert "empty: must be a run folder with run.json" in refused(
        "train", "d", "--teacher", "empty", "--run", "r", *FAST
    )
    assert "teacher: must have training rows without any label to label, got none" in refused(
        "train", "d", "--teacher", "a", "--run", "r", *FAST
    )
    log = pa.csv.read_csv("that.csv")
    is_drawn = pa.array([row % 3 == 0 for row in range(log.num_rows)])
    labels = pc.if_else(is_drawn, pa.scalar(None, pa.int64()), log["y"])
    pa.csv.write_csv(log.set_column(log.column_names.index("y"), "y", labels), "drawn.csv")
    found = api.schema_of("that.csv", ["y"]).schema
    schema = replace(found, tasks=(replace(found.tasks[0], may_be_missing=True),))
    api.ingest("drawn.csv", "drawn", schema=schema)
    assert tamis("train", "drawn", "--run", "teacher", "--no-report", *FAST).exit_code == 0

    done = tamis("train", "drawn", "--teacher", "teacher", "--run", "r", "--no-report", *FAST)

    assert done.exit_code == 0, done.output
    runs = [json.loads(Path(name, "run.json").read_text()) for name in ("r", "teacher")]
    assert [len(run.get("taught_by", "")) for run in runs] == [64, 0]
    assert "must be resumed with the weights that taught it, got none instead of" in refused(
        "train", "drawn", "--run", "r", "--no-report", *FAST
    )
    assert "drawn: must be encoded as the run's dataset was" in refused(
        "train", "drawn", "--teacher", "a", "--run", "other", *FAST
    )
