"""Trainings of some tasks, the heads that serve them, and their calibration."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tamis import api, artifacts, config
from tamis.errors import TamisError
from tamis.evaluation import evaluate_task
from tamis.reproduce.early import trained
from tamis.reproduce.early.calibration import ValidationRows
from tamis.reproduce.early.study import Study
from tamis.reproduce.early.trained import cost_of, serve, train_tasks, with_tasks
from tamis.reproduce.early.variants import OneModel
from tamis.training.compare import read_predictions
from tamis.training.consolidation import Load, request_cost
from tamis.training.predict import load_trained

MODEL = OneModel(tasks=2, distil_weight=3.0)
KINDS = ("label", "prediction")


@pytest.fixture(scope="module")
def run(study: Study, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "model"
    train_tasks(
        study.dataset("rejected"),
        MODEL,
        ["click", "conversion"],
        recipe=config.read_toml(recipe),
        seed=4,
        run=run,
    )
    return run


def test_losses_are_those_of_the_tasks_and_their_distillation(run: Path) -> None:
    settings = config.read_toml(run / "config.toml")["training"]
    # click, conversion, hide, and the final stage's predictions of each.
    assert settings["task_weights"] == [1.0, 1.0, 0.0, 3.0, 3.0, 0.0]
    assert settings["monitor_tasks"] == ["final_click", "final_conversion"]
    assert settings["seed"] == 4


@pytest.mark.parametrize(
    ("distillation", "weights", "monitor"),
    [("none", [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], "click"),
     ("mixed", [1.0, 0.0, 0.0, 2.0, 0.0, 0.0], "final_click")],
)  # fmt: skip
def test_without_heads_of_their_own(
    study: Study,
    recipe: Path,
    tmp_path: Path,
    distillation: str,
    weights: list[float],
    monitor: str,
) -> None:
    variant = OneModel(tasks=1, distillation=distillation, distil_weight=2.0)  # type: ignore[arg-type]
    train_tasks(
        study.dataset("rejected"),
        variant,
        ["click"],
        recipe=config.read_toml(recipe),
        seed=0,
        run=tmp_path / "run",
    )
    settings = config.read_toml(tmp_path / "run" / "config.toml")
    assert settings["training"]["task_weights"] == weights
    assert settings["training"]["monitor_tasks"] == [monitor]
    assert settings["model"]["distillation"] == distillation


def test_the_mean_of_two_heads_is_that_of_their_logits(study: Study, run: Path) -> None:
    test = read_predictions(run / "predictions", "test")
    label, final = (test[f"prediction:{name}"].to_numpy() for name in ("click", "final_click"))
    odds = np.sqrt(label / (1 - label) * final / (1 - final))
    served = serve(study, run, ["click"], pools="rejected", head="mean").predictions["click"]
    # Calibration is increasing, within a way to pay.
    for kind in ("click", "conversion"):
        own = study.judged().billing == kind
        assert (np.argsort(odds[own]) == np.argsort(served[own])).all()


def test_the_head_of_the_label_is_calibrated_apart_from_the_one_that_serves(
    study: Study, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {}
    for split in ("valid", "test"):
        table = read_predictions(run / "predictions", split)
        # As if the head of the label had learned half of every chance.
        half = pa.array(0.5 * table["label:final_click"].to_numpy().astype(np.float64))
        at = table.column_names.index("prediction:click")
        tables[split] = table.set_column(at, "prediction:click", half)
    monkeypatch.setattr(trained, "read_predictions", lambda folder, split: tables[split])
    found = serve(study, run, ["click"], pools="rejected", head="distilled").heads["click"]

    judged, rows = study.judged(), ValidationRows(study, "rejected")
    label = tables["test"]["label:click"].to_numpy()
    shown = ~np.isnan(label)
    # That of the label on impressions, the imitation on all that the final stage scored.
    for name, task, own in (("label", "click", shown), ("served", "final_click", judged.pool < 2)):
        calibrator = rows.fit(*(tables["valid"][f"{kind}:{task}"].to_numpy() for kind in KINDS))
        assert calibrator is not None
        values = calibrator.apply(tables["test"][f"prediction:{task}"].to_numpy(), judged.billing)
        expected = evaluate_task(label[shown], values[shown])
        assert found[name]["ne"] == pytest.approx(expected.ne)
        assert found["is_calibrated"][name]
        target = tables["test"][f"label:{task}"].to_numpy()[own].sum(dtype=np.float64)
        assert found["calibration"][name]["all"]["all"] == {
            "ratio": pytest.approx(values[own].sum() / target),
            "targets": pytest.approx(target),
        }


def test_only_the_asked_tasks_are_served(study: Study, run: Path) -> None:
    served = serve(study, run, ["click", "conversion"], pools="rejected", head="distilled")
    assert set(served.predictions) == set(served.heads) == {"click", "conversion"}
    assert all(len(values) == 1800 for values in served.predictions.values())


def test_cost_is_that_of_the_model_without_the_heads_that_do_not_serve(
    study: Study, run: Path, recipe: Path
) -> None:
    spec = api.open_dataset(study.dataset("rejected")).spec
    table = config.read_toml(recipe)
    whole, model = cost_of(table, spec, study.tasks, candidates=30)
    trained = load_trained(run).module
    assert whole == request_cost(trained, Load(candidates=30))  # type: ignore[arg-type]
    assert [task.name for task in model.spec.tasks] == [task.name for task in spec.tasks]


def test_a_task_alone_needs_no_event_of_another(study: Study) -> None:
    spec = with_tasks(api.open_dataset(study.dataset("rejected")).spec, ["conversion"])
    assert [task.name for task in spec.tasks] == ["conversion", "final_conversion"]
    assert spec.tasks[0].observed_when == ""


def test_a_stopped_training_goes_on(study: Study, run: Path, recipe: Path) -> None:
    before = artifacts.read_json(run / "metrics.json")
    train_tasks(
        study.dataset("rejected"),
        MODEL,
        ["click", "conversion"],
        recipe=config.read_toml(recipe),
        seed=4,
        run=run,
    )
    assert artifacts.read_json(run / "metrics.json") == before


def test_a_training_that_a_signal_stopped_serves_nothing(
    study: Study, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(dataset: Path, *, run: Path, **options: object) -> api.Run:
        artifacts.write_json(run / "run.json", {"status": "interrupted"})
        return api.Run(run)

    monkeypatch.setattr(api, "train", stopped)
    with pytest.raises(TamisError, match="training was stopped"):
        train_tasks(
            study.dataset("rejected"),
            MODEL,
            ["click"],
            recipe=config.read_toml(recipe),
            seed=0,
            run=tmp_path / "run",
        )
