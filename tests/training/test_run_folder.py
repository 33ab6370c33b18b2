"""Whose run a folder holds, and which processes worked on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tamis import artifacts
from tamis.config import from_table, read_toml
from tamis.data.dataset import Dataset
from tamis.data.schema import InputSpec, load_schema
from tamis.errors import ArtifactError, ConfigError
from tamis.training.config import RunConfig, run_config_from_table
from tamis.training.run_folder import (
    begin_work,
    check_finished,
    check_place,
    check_run,
    is_opened,
    open_run,
    verified_inputs,
)


def _settings(**training: object) -> RunConfig:
    return run_config_from_table({"model": {"name": "fm"}, "training": training})


@pytest.fixture
def opened(make_dataset: Callable[..., Dataset], tmp_path: Path) -> tuple[Dataset, Path]:
    dataset, run = make_dataset(), tmp_path / "run"
    open_run(dataset, _settings(), run, trained_until=None)
    return dataset, run


def test_opened_run_holds_its_whole_config_and_inputs(opened: tuple[Dataset, Path]) -> None:
    dataset, run = opened

    assert is_opened(run)
    assert run_config_from_table(read_toml(run / "config.toml")) == _settings()
    assert read_toml(run / "config.toml")["training"]["patience"] == 2
    assert load_schema(run / "inputs" / "schema.toml") == dataset.schema
    spec = from_table(InputSpec, artifacts.read_json(run / "inputs" / "spec.json"))
    assert spec == dataset.spec
    assert (run / "inputs" / "encoders" / "encoders.json").exists()


def test_inputs_are_on_the_disk_before_the_config_that_opens_a_run(
    make_dataset: Callable[..., Dataset], tmp_path: Path, synced: list[int]
) -> None:
    dataset, run = make_dataset(), tmp_path / "run"

    open_run(dataset, _settings(), run, trained_until=None)

    opened = synced.index((run / "config.toml").stat().st_ino)
    inputs = {path.stat().st_ino for path in (run / "inputs").rglob("*")}
    assert inputs <= set(synced[:opened])


def test_first_setting_that_differs_is_named(opened: tuple[Dataset, Path]) -> None:
    dataset, run = opened

    with pytest.raises(ConfigError, match=r"got training.patience=5 instead of 2"):
        check_run(dataset, _settings(patience=5, seed=1), run)


def test_setting_that_an_older_version_did_not_know_counts_as_its_default(
    opened: tuple[Dataset, Path],
) -> None:
    dataset, run = opened
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("patience = 2\n", "", 1))

    check_run(dataset, _settings(), run)

    with pytest.raises(ConfigError, match="patience=5 instead of 2"):
        check_run(dataset, _settings(patience=5), run)


def test_second_process_says_what_differs_from_the_first(opened: tuple[Dataset, Path]) -> None:
    _, run = opened
    cpu = torch.device("cpu")
    assert begin_work(run, cpu) == []
    started = artifacts.read_json(run / "run.json")["started"]
    assert begin_work(run, cpu) == []

    torch.set_num_threads(2)  # the fixture of conftest.py puts it back
    messages = begin_work(run, cpu)

    assert messages == [
        "threads: the run was started with 1, it goes on with 2; its result may differ in the "
        "last bits"
    ]
    record = artifacts.read_json(run / "run.json")
    assert record["status"] == "running"
    assert record["started"] == started <= record["resumed"]
    assert record["environment"]["threads"] == 2


def test_what_a_killed_process_left_half_written_is_removed(opened: tuple[Dataset, Path]) -> None:
    _, run = opened
    draft = run / "checkpoints" / ".step-0000000007.tmp"
    draft.mkdir(parents=True)
    (draft / "model.safetensors").write_bytes(b"half")
    (run / ".metrics.jsonl.0badcafe.tmp").write_bytes(b"half")
    kept = run / "checkpoints" / "step-0000000003"
    kept.mkdir()

    begin_work(run, torch.device("cpu"))

    assert list(run.rglob("*.tmp")) == []
    assert kept.exists()


def test_inputs_are_sealed(opened: tuple[Dataset, Path]) -> None:
    _, run = opened

    assert set(verified_inputs(run)) == {"encoders/encoders.json", "schema.toml", "spec.json"}

    (run / "inputs" / "spec.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"inputs/spec.json: must hold \d+ bytes, got 2"):
        verified_inputs(run)


def test_inputs_of_an_earlier_version_are_written_anew_when_the_run_goes_on(
    opened: tuple[Dataset, Path],
) -> None:
    dataset, run = opened
    before = verified_inputs(run)
    (run / "inputs" / "manifest.json").unlink()
    (run / "inputs" / "encoders" / "vocabulary-0007.arrow").write_bytes(b"of another dataset")
    with pytest.raises(ArtifactError, match=r"must be sealed by a manifest.json, got none"):
        verified_inputs(run)

    check_run(dataset, _settings(), run)

    assert verified_inputs(run) == before
    assert not (run / "inputs" / "encoders" / "vocabulary-0007.arrow").exists()


def test_other_model_is_named_before_its_settings(opened: tuple[Dataset, Path]) -> None:
    dataset, run = opened
    other = run_config_from_table({"model": {"name": "dcn_v2"}, "optimizer": {"dense_lr": 0.5}})

    with pytest.raises(ConfigError, match=r"got model.name='dcn_v2' instead of 'fm'"):
        check_run(dataset, other, run)


def test_dataset_of_a_run_has_an_absolute_path(
    make_dataset: Callable[..., Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset()
    monkeypatch.chdir(tmp_path)

    open_run(Dataset.open(Path("data")), _settings(), Path("run"), trained_until=None)

    recorded = artifacts.read_json(tmp_path / "run" / "run.json")["dataset"]["path"]
    assert recorded == str((tmp_path / "data").resolve())


def test_place_of_a_run_is_a_run_an_empty_folder_or_free(
    opened: tuple[Dataset, Path], tmp_path: Path
) -> None:
    dataset, run = opened
    check_place(run)
    check_place(tmp_path / "free")
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty")
    (run / "config.toml").unlink()
    check_place(run)  # as a process leaves it that was killed while it opened the run

    (run / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="or an empty one, got 'checkpoints' in it"):
        check_place(run)
    with pytest.raises(ConfigError, match="or an empty one, got 'encoders' in it"):
        check_place(dataset.path)
    for place in (dataset.path / "manifest.json", dataset.path / "manifest.json" / "run"):
        with pytest.raises(ConfigError, match=r"free name for one, got a file .*manifest.json\."):
            check_place(place)


def test_unfinished_run_says_its_status_and_step(opened: tuple[Dataset, Path]) -> None:
    _, run = opened
    (run / "checkpoints" / "step-0000001234").mkdir(parents=True)

    with pytest.raises(
        ArtifactError, match=r"got status 'running' at step 1,234. Give .* with --run"
    ):
        check_finished(run)

    (run / "metrics.json").write_text("{}")
    check_finished(run)


def test_file_or_other_folder_is_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"must be a run folder with run.json, got none"):
        check_finished(tmp_path)
    (tmp_path / "that.csv").write_text("a,b\n")
    with pytest.raises(ArtifactError, match=r"that.csv: must be a run folder, got a file"):
        check_finished(tmp_path / "that.csv")
