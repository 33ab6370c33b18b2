"""Runs from Python: opened again, stopped, predicted and reported with other data."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tamis import api
from tamis.errors import ArtifactError, ConfigError, DataError, TamisWarning
from tamis.training import loop

OPTIONS = ["training.max_epochs=1"]


def _write_log(path: Path, seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    vip = generator.random(600) < 0.5
    table = pa.table(
        {
            "vip": vip,
            "item_id": generator.integers(0, 20, 600),
            "click": (generator.random(600) < 0.2 + 0.5 * vip).astype(np.int64),
        }
    )
    pq.write_table(table, path)
    return table


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    _write_log(folder / "log.parquet")
    api.ingest(folder / "log.parquet", folder / "data", labels=["click"])
    api.train(folder / "data", model="lr", run=folder / "run", settings=OPTIONS)
    return folder


def test_run_is_opened_again_by_its_path_in_text(world: Path) -> None:
    run = api.Run(str(world / "run"))

    assert run == api.Run(world / "run")
    assert run.status == "finished"
    assert run.metrics["test"]["click"]["rows"] == 57
    assert api.compare(run, run)[0].task == "click"
    assert api.evaluate(run, [world / "log.parquet"])["metrics"]["test"]["click"]["rows"] == 600
    assert api.train(world / "data", model="lr", run=run, settings=OPTIONS) == run


def test_stopped_training_is_warned_of_and_says_that_it_has_no_metrics(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop._Training._step

    def stop(training: loop._Training, *arguments: object) -> None:
        step(training, *arguments)  # type: ignore[arg-type]
        training._request_stop()

    monkeypatch.setattr(loop._Training, "_step", stop)
    with pytest.warns(TamisWarning, match="run: stopped with a checkpoint") as caught:
        run = api.train(world / "data", model="lr", run=tmp_path / "run", settings=OPTIONS)
    assert [Path(one.filename) for one in caught] == [Path(__file__)]

    assert run.status == "interrupted"
    with pytest.raises(ArtifactError, match="must be a finished run, got status 'interrupted'"):
        _ = run.metrics
    with pytest.raises(ArtifactError, match="must be a finished run"):
        _ = run.record

    monkeypatch.undo()
    run = api.train(world / "data", model="lr", run=tmp_path / "run", settings=OPTIONS)
    assert run.status == "finished"


def test_model_that_the_data_does_not_suit_leaves_no_folder(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="some field must be of side 'user'"):
        api.train(world / "data", model="two_tower", run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_in_one_text_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"settings: must be a list of texts, got 'training.seed"):
        api.train(world / "data", model="lr", run=tmp_path / "run", settings="training.seed=1")
    assert not (tmp_path / "run").exists()


def test_values_outside_the_vocabulary_are_warned_of(world: Path, tmp_path: Path) -> None:
    run = api.Run(world / "run")
    table = _write_log(tmp_path / "log.parquet")
    # As pandas writes it: True and False, which Parquet holds as 1 and 0.
    words = pa.array([str(value) for value in table["vip"].to_pylist()])
    pyarrow.csv.write_csv(table.set_column(0, "vip", words), tmp_path / "log.csv")

    for predict in (run.predict, lambda log: api.predict(run, log)):
        with pytest.warns(TamisWarning, match=r"vip: 600 of 600 values are outside the") as told:
            predict(tmp_path / "log.csv")
        assert [Path(one.filename) for one in told] == [Path(__file__)]
    assert api.predict(run, tmp_path / "log.parquet").num_rows == 600


def test_report_takes_a_dataset_with_the_encoders_of_the_run_only(
    world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    _write_log(tmp_path / "log.parquet", seed=1)
    other = api.ingest(tmp_path / "log.parquet", tmp_path / "data", labels=["click"])
    before = (tmp_path / "run" / "diagnostics.json").read_bytes()

    with pytest.raises(DataError, match="must be encoded with the run's own encoders, got another"):
        api.write_report(tmp_path / "run", other)
    assert (tmp_path / "run" / "diagnostics.json").read_bytes() == before

    page = api.write_report(str(tmp_path / "run"), str(world / "data"))
    assert page == tmp_path / "run" / "report.html"


def test_figures_of_a_run_are_read_without_pytorch(world: Path) -> None:
    code = (
        "import sys, tamis; found = tamis.Run(sys.argv[1]).metrics['test']['click']['rows']; "
        "assert found == 57 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, world / "run"], check=True)
