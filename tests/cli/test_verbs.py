"""Every verb from the command line: tables, JSON, exit statuses, messages."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from tamis import artifacts
from tamis.cli.main import app

FAST = ("--set", "training.max_epochs=1", "--set", "model.head_units=[8]")


def _tamis(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _json(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture
def clicks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A newcomer's file of six columns, in the working directory."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    count = 2000
    item = generator.integers(0, 30, count)
    table = pa.table(
        {
            "timestamp": 1_700_000_000 + np.arange(count) * 60,
            "user_id": generator.integers(0, 100, count),
            "item_id": item,
            "device": np.array(["ios", "android", "web"])[generator.integers(0, 3, count)],
            "price": generator.lognormal(1, 1, count).round(2),
            "y": (generator.random(count) < 0.1 + 0.5 * (item % 2)).astype(np.int64),
        }
    )
    pyarrow.csv.write_csv(table, tmp_path / "that.csv")
    return tmp_path / "that.csv"


def test_help_names_every_verb() -> None:
    output = _tamis("--help").output

    verbs = ("quickstart", "simulate", "ingest", "train", "evaluate", "predict", "compare")
    for verb in (*verbs, "publish", "cascade", "replay", "ab-test"):
        assert verb in output


def test_newcomers_csv_becomes_a_trained_run_with_a_report(clicks: Path) -> None:
    result = _json(_tamis("train", "that.csv", "--label", "y", "--json", *FAST))

    assert result["command"] == "train"
    assert result["ok"] is True
    assert result["metrics"]["test"]["y"]["auc"] > 0.6
    run = Path(result["run"])
    assert run == Path("runs/that-dhen-1")
    page = (run / "report.html").read_text()
    assert "<svg" in page
    assert "Calibration, y" in page
    assert "item_id" in page


def test_train_goes_on_with_the_dataset_it_made(clicks: Path) -> None:
    _tamis("ingest", "that.csv", "--label", "y", "--out", "d")

    first = _json(_tamis("train", "d", "--model", "lr", "--run", "r", "--json", "--no-report"))
    again = _json(_tamis("train", "d", "--model", "lr", "--run", "r", "--json", "--no-report"))

    assert again["metrics"] == first["metrics"]


def test_ingest_writes_a_schema_for_editing_and_reads_it_back(clicks: Path) -> None:
    _tamis("ingest", "that.csv", "--label", "y", "--schema-only", "--out", "schema.toml")
    text = Path("schema.toml").read_text()
    Path("schema.toml").write_text(
        text.replace('name = "user_id"', 'name = "user_id"\nmin_count = 3')
    )

    result = _json(_tamis("ingest", "that.csv", "--schema", "schema.toml", "--out", "d", "--json"))

    assert result["rows"] == {"train": 1600, "valid": 200, "test": 200}
    assert "min_count" in Path("d/schema.toml").read_text()


def test_evaluate_predict_compare_and_report_agree_with_the_run(clicks: Path) -> None:
    _tamis("ingest", "that.csv", "--label", "y", "--split", "ratio", "--out", "d")
    for model, name in (("lr", "a"), ("dhen", "b")):
        settings = FAST if model == "dhen" else FAST[:2]
        _json(_tamis("train", "d", "--model", model, "--run", name, "--json", *settings))
    trained = json.loads(Path("b/metrics.json").read_text())["metrics"]["test"]["y"]

    evaluated = _json(_tamis("evaluate", "b", "--json"))["metrics"]["test"]["y"]
    assert evaluated == trained

    _json(_tamis("predict", "b", "that.csv", "--out", "p.parquet", "--json"))
    predictions = pq.read_table("p.parquet")
    assert predictions.num_rows == 2000
    with pa.memory_map("b/predictions/test.arrow") as source:
        saved = pa.ipc.open_file(source).read_all()
    chosen = predictions["prediction_y"].to_numpy()[saved["row"].to_numpy()]
    # The server's path and the dataset's path must give the same probabilities.
    assert chosen == pytest.approx(saved["prediction:y"].to_numpy(), abs=1e-5)

    compared = _json(_tamis("compare", "a", "b", "--json"))["comparisons"]["y"]
    assert compared["auc"]["candidate"] == pytest.approx(trained["auc"])
    assert compared["ne"]["lower"] <= compared["ne"]["difference"] <= compared["ne"]["upper"]

    Path("b/report.html").unlink()
    _json(_tamis("report", "b", "--json"))
    assert Path("b/report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("train", "nothing.csv", "--label", "y"), 2, "nothing.csv: must exist"),
        (("train", "that.csv", "--label", "z"), 2, "must hold the label column 'z'"),
        (("train", "that.csv", "--label", "y", "--model", "dhenn"), 2, "Did you mean 'dhen'?"),
        (("evaluate", "nowhere"), 2, "nowhere: must be a run folder with run.json"),
        (("predict", "nowhere", "that.csv", "--out", "p.csv"), 2, "must be a run folder"),
        (("compare", "a", "b"), 2, "a: must be a run folder with run.json"),
        (("report", "nowhere"), 2, "must be a run folder with run.json"),
        (("simulate", "--rows", "10", "--out", "m"), 2, "rows: must be at least 1000"),
        (("reproduce", "tabel"), 2, "table: must be one of frappe"),
        (("train",), 2, "Missing argument"),
    ],
)
def test_bad_input_is_one_message_without_a_traceback(
    clicks: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    result = _tamis(*arguments)

    assert result.exit_code == status
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_json_of_a_failure_says_so_on_standard_output(clicks: Path) -> None:
    result = _tamis("train", "nothing.csv", "--label", "y", "--json")

    assert result.exit_code == 2
    payload = json.loads(result.stdout)
    assert payload["ok"] is False
    assert "must exist" in payload["error"]


def test_debug_shows_the_traceback(clicks: Path) -> None:
    assert "Traceback" in _tamis("train", "nothing.csv", "--label", "y", "--debug").output


def test_run_in_use_is_refused(clicks: Path) -> None:
    from tamis.artifacts import folder_lock

    _tamis("ingest", "that.csv", "--label", "y", "--out", "d")
    with folder_lock(Path("r")):
        result = _tamis("train", "d", "--run", "r")

    assert result.exit_code == 2
    assert "must not be in use, got a living process" in " ".join(result.output.split())


def test_compare_says_when_the_rows_do_not_suffice(clicks: Path) -> None:
    generator = np.random.default_rng(1)
    label = np.zeros(2000, np.int64)
    label[::40] = 1
    table = pa.table({"user_id": generator.integers(0, 500, 2000), "rare": label})
    pyarrow.csv.write_csv(table, "rare.csv")
    _tamis("ingest", "rare.csv", "--label", "rare", "--out", "d", "--split", "ratio")
    for name in ("a", "b"):
        _tamis("train", "d", "--model", "lr", "--run", name, "--set", "training.max_epochs=1")
    for name in ("a", "b"):
        folder = Path(name, "predictions")
        path = folder / "test.arrow"
        rows = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all().slice(0, 30)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        files = list(folder.glob("*.arrow"))
        artifacts.write_manifest(folder, kind="predictions", version=1, files=files, payload={})

    result = _tamis("compare", "a", "b")

    assert result.exit_code == 0, result.output
    assert "rare: " in result.output
    assert "Evaluate on more" in " ".join(result.output.split())
