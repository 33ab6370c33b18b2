"""Whose run a folder holds, and which processes worked on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tamis import artifacts
from tamis.config import from_table, read_toml
from tamis.data.dataset import Dataset
from tamis.data.schema import InputSpec, load_schema
from tamis.errors import ConfigError
from tamis.training.config import RunConfig, run_config_from_table
from tamis.training.run_folder import begin_work, check_run, is_opened, open_run


def _settings(**training: object) -> RunConfig:
    return run_config_from_table({"model": {"name": "fm"}, "training": training})


@pytest.fixture
def opened(make_dataset: Callable[..., Dataset], tmp_path: Path) -> tuple[Dataset, Path]:
    dataset, run = make_dataset(), tmp_path / "run"
    open_run(dataset, _settings(), run)
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
