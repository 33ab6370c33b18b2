"""Rows of every kind on a small cascade, in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamis import artifacts
from tamis.errors import ConfigError, DataError
from tamis.reproduce.early.row import RowOrder, make_row
from tamis.reproduce.early.study import Study
from tamis.reproduce.early.variants import (
    Boosted,
    Given,
    OneModel,
    OneModelEach,
    Variant,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def make(study: Study, recipes: Path, tmp_path: Path) -> Any:
    def call(variant: Variant, name: str = "row") -> dict[str, Any]:
        run = tmp_path / name
        RowOrder(variant=variant, seed=0, study=study.folder, recipes=recipes).write(run)
        return make_row(run)

    return call


def test_one_model_tells_recall_by_head_and_costs(make: Any) -> None:
    row = make(OneModel(tasks=3))
    assert set(row["soft_recall_by_head"]) == {"label", "distilled", "mean"}
    assert row["metrics"]["soft_recall"] == row["soft_recall_by_head"]["distilled"]
    assert set(row["heads"]) == {"click", "conversion", "hide"}
    assert row["heads"]["click"]["served"]["ne"] != row["heads"]["click"]["label"]["ne"]
    assert row["request_cost"]["source"] == "modelled"
    assert row["simulated_labels"] == 0.25


def test_served_heads_are_calibrated_to_the_final_stage(make: Any) -> None:
    for task, head in make(OneModel(tasks=3))["heads"].items():
        # On other requests than those that calibrated it, of which there are 30.
        found = head["calibration"]["served"]
        for name, part in (*found["all"].items(), *found["billing"].items()):
            assert part["ratio"] == pytest.approx(1.0, abs=0.15), (task, name)
        assert head["imitation"]["calibration"] == pytest.approx(found["all"]["all"]["ratio"])


def test_heads_that_are_not_served_cost_nothing(make: Any) -> None:
    flops = [
        make(OneModel(tasks=tasks), f"tasks-{tasks}")["request_cost"]["flops"] for tasks in (1, 3)
    ]
    # Two heads of 8-8-1 for each of 30 candidates, a multiplication with its addition as two.
    assert flops[1] - flops[0] == 2 * 30 * 2 * (8 * 8 + 8)


def test_models_apart_cost_no_more_than_the_one_that_they_are_compared_with(make: Any) -> None:
    together = make(OneModel(tasks=3), "one")["request_cost"]["flops"]
    equal = make(OneModelEach(equal_cost=True), "equal")["request_cost"]["flops"]
    large = make(OneModelEach(equal_cost=False), "large")["request_cost"]["flops"]
    assert 0.5 * together < equal <= together < large


def test_labels_alone_learn_nothing_from_the_final_stage(make: Any) -> None:
    row = make(OneModel(tasks=2, pools="impressed", distillation="none"))
    assert "soft_recall_by_head" not in row
    head = row["heads"]["click"]
    # The head that serves is that of the label.
    assert head["served"] == head["label"]
    assert head["calibration"]["served"] == head["calibration"]["label"]
    assert set(row["heads"]) == {"click", "conversion"}


@pytest.mark.parametrize("objective", ["value", "rank", "parts"])
def test_lightgbm_keeps_most_of_the_value_that_it_is_distilled_on(
    make: Any, objective: Any
) -> None:
    pytest.importorskip("lightgbm")
    row = make(Boosted(objective=objective))
    # Chance keeps about a half.
    assert row["metrics"]["soft_recall"] > 0.75
    assert row["models"] == (3 if objective == "parts" else 1)
    assert row["trees"] == 300 * row["models"]


def test_a_finished_row_is_not_made_again(make: Any, tmp_path: Path) -> None:
    first = make(Given(order="chance"))
    record = artifacts.read_json(tmp_path / "row" / "metrics.json")
    artifacts.write_json(tmp_path / "row" / "metrics.json", {**record, "seconds": -1.0})
    assert make(Given(order="chance")) == {**first, "seconds": -1.0}


def test_teacher_keeps_all_and_the_incumbent_less(make: Any) -> None:
    teacher = make(Given(order="teacher"), "teacher")["metrics"]
    incumbent = make(Given(order="incumbent"), "incumbent")["metrics"]
    chance = make(Given(order="chance"), "chance")["metrics"]
    assert teacher["soft_recall"] == 1.0 > incumbent["soft_recall"] > chance["soft_recall"]
    # What the incumbent turned away it does not keep.
    assert incumbent["golden_rejected"] == 0.0


def test_a_teacher_that_is_not_its_own_best_fails_loudly(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = Study.values
    generator = np.random.default_rng(0)

    def noisy(study: Study, predictions: Any, judged: Any) -> Any:
        found = values(study, predictions, judged)
        return found + generator.standard_normal(found.shape)

    monkeypatch.setattr(Study, "values", noisy)
    with pytest.raises(DataError, match="exactly 1"):
        make(Given(order="teacher"))


def test_an_early_stage_of_the_size_of_the_final_one_is_refused_before_it_is_trained(
    make: Any, tmp_path: Path
) -> None:
    wide = OneModel(tasks=1, settings=("model.bottom_units=[4096, 8]",))
    with pytest.raises(ConfigError, match="must have 2 times as many parameters outside tables"):
        make(wide, "wide")
    assert not (tmp_path / "wide" / "model").exists()
