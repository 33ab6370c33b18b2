"""Tables from trainings that are only pretended here; ``tests/cli`` makes a real one."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tamis import artifacts, config
from tamis.errors import DataError, TamisError
from tamis.reproduce import make
from tamis.reproduce.make import MadeTable, make_table
from tamis.reproduce.result_table import Average, Comparison, Published, ResultTable
from tamis.reproduce.results import claims_of
from tamis.reproduce.runner import Cell
from tamis.training.evaluate import PREDICTIONS_VERSION

TABLE = ResultTable(
    name="tiny",
    dataset="market:10",
    models=("lr", "dhen"),
    tasks=("click",),
    comparisons=(Comparison(better="dhen", worse="lr"),),
    seeds=2,
    published=(Published(model="dhen", auc=0.7, log_loss=0.1, protocol="elsewhere"),),
)
AUC = {("lr", 0): 0.60, ("lr", 1): 0.62, ("dhen", 0): 0.6994, ("dhen", 1): 0.6998}


def _pretend_training(cell: Cell) -> None:
    auc = AUC[cell.model, cell.seed]
    values = {"auc": auc, "log_loss": 0.2, "ne": 1.5 - auc, "rows": 5}
    values |= {"calibration": 1.0, "ece": 0.0}
    metrics = {split: {"click": values} for split in ("valid", "test")}
    artifacts.write_json(cell.run / "metrics.json", {"metrics": metrics})
    run = {
        "parameters": {"total": 30, "dense": 10},
        "forward_flops_per_row": 20.0,
        "samples_per_second": 1000.4,
        "commit": "c0ffee",
        "environment": {"device_name": "a processor"},
        "precision": "float32",
    }
    artifacts.write_json(cell.run / "run.json", run)
    if cell.model in ("lr", "dhen"):
        # Five rows of two users; the two models are wrong about different ones.
        wrong = 0 if cell.model == "lr" else 4
        labels = [0.0, 1.0, 0.0, 1.0, 0.0]
        found = [0.9 if label else 0.1 for label in labels]
        found[wrong] = 0.6
        table = pa.table(
            {
                "row": list(range(5)),
                "user": [1, 1, 1, 2, 2],
                "label:click": pa.array(labels, pa.float32()),
                "prediction:click": found,
            }
        )
        folder = cell.run / "predictions"
        folder.mkdir(exist_ok=True)
        with (
            pa.OSFile(str(folder / "test.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        artifacts.write_manifest(
            folder,
            kind="predictions",
            version=PREDICTIONS_VERSION,
            files=folder.glob("*.arrow"),
            payload={},
        )
    line = '{"step": 7, "valid": {"click": {"ne": 0.9}}}\n'
    (cell.run / "metrics.jsonl").write_text(line)


class _Trainer:
    """Stands in for the processes that train; may fail after some trainings."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, int]] = []
        self.runs: list[Path] = []
        self.recipes: list[dict[str, Any]] = []
        self.fails_after = 99
        self.meanwhile: Callable[[Cell], None] = lambda cell: None

    def __call__(
        self,
        cells: list[Cell],
        *,
        command: Callable[[Cell], Sequence[str]],
        on_done: Callable[[Cell], None],
        **options: object,
    ) -> None:
        for done, cell in enumerate(cells):
            if done == self.fails_after:
                raise TamisError("no power")
            ordered = list(command(cell))
            recipe = Path(ordered[ordered.index("--recipe") + 1])
            self.recipes.append(config.read_toml(recipe))
            _pretend_training(cell)
            self.meanwhile(cell)
            self.trained.append((cell.model, cell.seed))
            self.runs.append(cell.run)
            on_done(cell)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> _Trainer:
    trainer = _Trainer()
    monkeypatch.setattr(make, "TABLES", {"tiny": TABLE})
    monkeypatch.setattr(make, "run_cells", trainer)
    return trainer


@pytest.fixture
def make_tiny(
    tmp_path: Path, trainer: _Trainer, make_dataset: Callable[..., Any]
) -> Callable[[], MadeTable]:
    (tmp_path / "work" / "datasets").mkdir(parents=True)
    make_dataset(name="work/datasets/market-10")
    recipes = tmp_path / "recipes" / "tiny"
    recipes.mkdir(parents=True)
    for model in TABLE.models:
        (recipes / f"{model}.toml").write_text(f'[model]\nname = "{model}"\n')

    def call() -> MadeTable:
        return make_table(
            "tiny",
            data=None,
            recipes=tmp_path / "recipes",
            work=tmp_path / "work",
            out=tmp_path / "results",
            workers=1,
            progress=lambda done, total: None,
        )

    return call


def test_keeps_each_row_with_what_it_came_from(make_tiny: Callable[[], MadeTable]) -> None:
    payload = artifacts.read_json(make_tiny().path)
    assert payload["complete"]
    assert payload["commit"] == "c0ffee"
    row = payload["rows"][1]
    assert (row["model"], row["seed"], row["split"]) == ("dhen", 0, "test")
    assert row["dataset"] == "market:10"
    assert row["metrics"]["auc"] == 0.6994
    assert row["curve"] == [[7, 0.9]]
    assert len(row["recipe"]) == 64


def test_a_figure_stands_beside_the_page_that_shows_it(make_tiny: Callable[[], MadeTable]) -> None:
    path = make_tiny().path

    figure = path.with_suffix(".svg").read_text()
    assert "](tiny.svg)" in path.with_suffix(".md").read_text()
    assert all(f">{model}<" in figure for model in TABLE.models)
    assert "<style>" in figure


def test_claims_say_what_holds_and_what_does_not(make_tiny: Callable[[], MadeTable]) -> None:
    # Mean AUC 0.6996 is 0.0004 below 0.7. NE: -0.0994 and -0.0798, mean -0.0896, standard error
    # 0.0098; with one degree of freedom t = 12.706, so the interval reaches +0.0349.
    published, paired = make_tiny().claims
    assert published["estimate"] == pytest.approx(-0.0004)
    assert published["holds"]
    assert paired["estimate"] == pytest.approx(-0.0896)
    assert paired["interval"][1] == pytest.approx(0.0349, abs=1e-4)
    assert not paired["holds"]


def test_a_finished_table_trains_nothing_even_without_its_runs(
    make_tiny: Callable[[], MadeTable], trainer: _Trainer
) -> None:
    first = make_tiny()
    before = first.path.read_bytes()
    trainer.trained.clear()
    assert make_tiny().claims == first.claims
    assert trainer.trained == []
    assert first.path.read_bytes() == before


def test_another_recipe_is_trained_again_and_alone(
    make_tiny: Callable[[], MadeTable], trainer: _Trainer, tmp_path: Path
) -> None:
    make_tiny()
    trainer.trained.clear()
    recipe = tmp_path / "recipes" / "tiny" / "dhen.toml"
    recipe.write_text(recipe.read_text() + "num_layers = 1\n")
    make_tiny()
    assert trainer.trained == [("dhen", 0), ("dhen", 1)]
    # In folders of its own: a finished run of the old recipe must not stand for the new one.
    assert len(set(trainer.runs)) == 6


def test_a_recipe_that_changes_meanwhile_is_for_the_next_time(
    make_tiny: Callable[[], MadeTable], trainer: _Trainer, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipes" / "tiny" / "dhen.toml"
    before = config.read_toml(recipe)
    changed = recipe.read_text() + "num_layers = 1\n"
    trainer.meanwhile = lambda cell: artifacts.write_text(recipe, changed)

    rows = artifacts.read_json(make_tiny().path)["rows"]
    assert trainer.recipes[1] == before
    assert [row["recipe"] for row in rows] == [*map(config.fingerprint, trainer.recipes)]

    trainer.trained.clear()
    make_tiny()
    assert trainer.trained == [("dhen", 0), ("dhen", 1)]
    assert trainer.recipes[-1] == config.read_toml(recipe)


def test_an_interrupted_table_keeps_its_rows_and_says_that_it_is_not_complete(
    make_tiny: Callable[[], MadeTable], trainer: _Trainer, tmp_path: Path
) -> None:
    trainer.fails_after = 3
    with pytest.raises(TamisError, match="no power"):
        make_tiny()
    payload = artifacts.read_json(tmp_path / "results" / "tiny.json")
    assert not payload["complete"]
    assert len(payload["rows"]) == 3
    trainer.fails_after = 99
    trainer.trained.clear()
    make_tiny()
    assert trainer.trained == [("dhen", 1)]


def test_rows_that_another_process_adds_meanwhile_stay(
    make_tiny: Callable[[], MadeTable], trainer: _Trainer, tmp_path: Path
) -> None:
    path = make_tiny().path
    *others, last = artifacts.read_json(path)["rows"]
    payload = artifacts.read_json(path)
    shutil.rmtree(tmp_path / "work" / "tiny")
    artifacts.write_json(path, {**payload, "rows": []})
    trainer.meanwhile = lambda cell: artifacts.write_json(path, {**payload, "rows": [last]})
    trainer.fails_after = 1

    with pytest.raises(TamisError, match="no power"):
        make_tiny()

    assert artifacts.read_json(path)["rows"] == [last, others[0]]


def test_rows_of_other_data_are_not_taken(
    make_tiny: Callable[[], MadeTable], trainer: _Trainer
) -> None:
    path = make_tiny().path
    payload = artifacts.read_json(path)
    artifacts.write_json(path, {**payload, "data": {"market:10": "other"}})
    trainer.trained.clear()
    make_tiny()
    assert len(trainer.trained) == 4


def test_average_is_the_mean_prediction_of_both_models(
    make_tiny: Callable[[], MadeTable],
    trainer: _Trainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    averaged = replace(
        TABLE,
        averages=(Average(name="average", of=("lr", "dhen")),),
        comparisons=(Comparison(better="average", worse="dhen"),),
    )
    monkeypatch.setattr(make, "TABLES", {"tiny": averaged})
    made = make_tiny()
    payload = artifacts.read_json(made.path)

    rows = [row for row in payload["rows"] if row["model"] == "average"]
    assert [row["seed"] for row in rows] == [0, 1]
    # Means of 0.1 and 0.6 in two rows, 0.1 or 0.9 in three: -(2 log 0.65 + 3 log 0.9) / 5.
    assert rows[0]["metrics"]["log_loss"] == pytest.approx(0.235531, abs=1e-5)
    assert rows[0]["dense_parameters"] == 20
    assert made.display_rows[-1][0] == "average"
    assert [claim["claim"] for claim in made.claims][-1] == "average has a lower NE than dhen"
    trainer.trained.clear()
    assert make_tiny().claims == made.claims
    assert trainer.trained == []


def test_average_outlives_the_runs_that_it_was_read_off(
    make_tiny: Callable[[], MadeTable],
    trainer: _Trainer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    averaged = replace(TABLE, averages=(Average(name="average", of=("lr", "dhen")),))
    monkeypatch.setattr(make, "TABLES", {"tiny": averaged})
    trainer.fails_after = 3
    with pytest.raises(TamisError, match="no power"):
        make_tiny()
    shutil.rmtree(tmp_path / "work" / "tiny")
    path = tmp_path / "results" / "tiny.json"
    payload = artifacts.read_json(path)
    assert [row["model"] for row in payload["rows"]] == ["lr", "dhen", "average", "lr"]
    trainer.fails_after = 99

    # Of the second seed the first model's run is on another machine.
    with pytest.raises(DataError, match=r"must hold a row 'average' of seed 1, or the runs of lr"):
        make_tiny()

    rows = [row for row in payload["rows"] if (row["model"], row["seed"]) != ("lr", 1)]
    artifacts.write_json(path, {**payload, "rows": rows})
    shutil.rmtree(tmp_path / "work" / "tiny")
    trainer.trained.clear()
    assert artifacts.read_json(make_tiny().path)["complete"]
    assert trainer.trained == [("lr", 1), ("dhen", 1)]


def test_members_are_compared_with_a_model_alone() -> None:
    rows = []
    for seed in range(3):
        members = {name: {"auc": 0.6 + 0.01 * seed} for name in ("a 0", "a 1")}
        rows.append({"model": "pair", "metrics": {"auc": 0.8}, "members": members})
        rows.append({"model": "lr", "metrics": {"auc": 0.7 + 0.011 * seed}})
    comparisons = (
        Comparison(better="lr", worse="pair", metric="auc", members_of_worse=True),
        Comparison(better="pair", worse="lr", metric="auc", members_of_better=True),
        Comparison(better="pair", worse="lr", metric="auc"),
    )
    table = replace(TABLE, models=("lr", "pair"), published=(), comparisons=comparisons)
    above, below, whole = claims_of(table, rows)

    assert above["claim"] == "lr has a higher AUC than the members of pair"
    assert above["estimate"] == pytest.approx(0.101)
    assert above["holds"]
    assert below["claim"] == "the members of pair have a higher AUC than lr"
    assert below["estimate"] == pytest.approx(-0.101)
    assert not below["holds"]
    # The ensemble itself is above, which says nothing of what its members are worth.
    assert whole["claim"] == "pair has a higher AUC than lr"
    assert whole["holds"]


@pytest.mark.parametrize(("metric", "sign"), [("auc", 1), ("ne", -1)])
@pytest.mark.parametrize(("margin", "holds"), [(0.0, True), (0.005, False)])
def test_a_claim_with_a_margin_asks_for_more_than_any_difference(
    metric: Any, sign: int, margin: float, holds: bool
) -> None:
    # Differences 0.005, 0.006 and 0.007: mean 0.006, and with two degrees of freedom the interval
    # reaches 4.303 * 0.001 / sqrt(3) = 0.0025 to either side, above 0 but not above 0.005.
    rows = []
    for seed in range(3):
        away = sign * (0.005 + 0.001 * seed)
        rows.append({"model": "lr", "metrics": {metric: 0.7}})
        rows.append({"model": "dhen", "metrics": {metric: 0.7 + away}})
    comparison = Comparison(better="dhen", worse="lr", metric=metric, margin=margin)
    (claim,) = claims_of(replace(TABLE, published=(), comparisons=(comparison,)), rows)

    assert claim["holds"] is holds
    assert claim["claim"].endswith("by more than 0.005" if margin else "than lr")
