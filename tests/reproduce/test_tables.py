"""Every table can be made: its recipes are there, and are recipes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tamis import artifacts, config
from tamis.data.schema import InputSpec, Task
from tamis.models import catalog
from tamis.reproduce.early.boosted import BoostedConfig
from tamis.reproduce.early.trained import settings_of
from tamis.reproduce.early.variants import VARIANTS, EarlyTable, recipes_of
from tamis.reproduce.make import check_recipes
from tamis.reproduce.result_table import ResultTable
from tamis.reproduce.tables import GROUPS, TABLES
from tamis.training.config import read_run_config, run_config_from_table
from tamis.training.cost import count_parameters

_RECIPES = Path(__file__).parents[2] / "recipes"
_UNTUNED = "# Untuned: the first trial of recipes/tune.py.\n"


def _spaces() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spaces", _RECIPES / "spaces.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_all_of_its_recipes(name: str) -> None:
    check_recipes(name, _RECIPES)

    table = TABLES[name]
    if isinstance(table, ResultTable):
        for model in table.models:
            recipe = read_run_config(_RECIPES / (table.recipes or name) / f"{model}.toml")
            assert set(recipe.training.monitor_tasks) <= set(table.tasks)


@pytest.mark.parametrize("name", [n for n, t in TABLES.items() if isinstance(t, EarlyTable)])
def test_recipes_of_early_stages_are_read_before_a_cascade_is_made(name: str) -> None:
    names = {each for variant in VARIANTS.values() for each in recipes_of(variant)}
    for each in (*names, "teacher", "incumbent"):
        recipe = config.read_toml(_RECIPES / name / f"{each}.toml")
        if each.startswith("lightgbm"):
            config.from_table(BoostedConfig, recipe)
        else:
            run_config_from_table(settings_of(recipe))


def test_rounds_train_by_the_recipe_that_was_chosen_on_their_market() -> None:
    market, rounds = (
        config.read_toml(_RECIPES / f"early-stage-{name}" / "early_stage.toml")
        for name in ("market", "rounds")
    )
    assert market == rounds


def test_recipes_that_are_said_to_be_untuned_are_first_trials() -> None:
    draw = _spaces().draw
    for path in _RECIPES.glob("*/*.toml"):
        if path.read_text().startswith(_UNTUNED):
            assert config.read_toml(path) == draw(path.stem, path.parent.name, 0)
            assert not _is_searched(path)


def test_sports_takes_the_recipes_of_beauty_and_no_trial_of_its_own() -> None:
    for path in (_RECIPES / "sequence-sports").glob("*"):
        beauty = config.read_toml(_RECIPES / "sequence-beauty" / path.name)
        training = {**beauty["training"], "precision": "float32"}
        assert config.read_toml(path) == {**beauty, "training": training}
    assert "sequence-sports" not in _spaces().SIZES


def _is_searched(recipe: Path) -> bool:
    """Whether the model of a recipe has had its trials; a search may go on on another day."""
    ledger = recipe.parent / "tuning.json"
    if not ledger.exists():
        return False
    found = artifacts.read_json(ledger)
    _, _, wanted = found["command"].partition(" --trials ")
    return len(found["trials"].get(recipe.stem, ())) >= int(wanted or 1)


@pytest.mark.parametrize("trials", [" --trials 2", ""])
def test_a_search_is_over_when_the_model_had_its_trials(tmp_path: Path, trials: str) -> None:
    assert not _is_searched(tmp_path / "lr.toml")

    found = {"command": f"python recipes/tune.py tiny{trials}", "trials": {"lr": [{}, {}]}}
    artifacts.write_json(tmp_path / "tuning.json", found)

    assert _is_searched(tmp_path / "lr.toml")
    assert not _is_searched(tmp_path / "fm.toml")


@pytest.mark.parametrize(
    ("model", "dense"),
    [
        # Both as AdaTT's specification counts them, on 482 columns, three tasks, towers of 32.
        *(("adatt", 479_697), ("ml_mmoe", 516_183)),
        # Two experts of each task and three shared ones, gates of five, and of nine for the shared.
        (
            "ple",
            9 * (483 * 96 + 97 * 48) + 3 * (483 * 5 + 97 * 5) + 483 * 9 + 3 * (49 * 32 + 33),
        ),
    ],
)
def test_nine_experts_are_trained_as_six_are(model: str, dense: int) -> None:
    six, nine = (
        config.read_toml(_RECIPES / name / f"{model}.toml") for name in ("census", "census-9")
    )
    settings = run_config_from_table(nine)
    spec = InputSpec(
        numeric=tuple(f"x{place}" for place in range(482)),
        categorical=(),
        sequences=(),
        tables=(),
        tasks=tuple(Task(name=name) for name in TABLES["census-9"].tasks),
    )

    with torch.device("meta"):
        ranker = catalog.entry(settings.model_name).model(settings.model, spec)

    assert count_parameters(ranker)["dense"] == dense
    assert nine["model"]["expert_units"] == [[96], [48]]
    budget = {"expert_units", "num_experts", "task_experts", "shared_experts"}
    assert {*nine["model"]} == {*six["model"]}
    for recipe in (six, nine):
        for name in budget & {*recipe["model"]}:
            del recipe["model"][name]
    assert nine == six


def test_both_halves_of_table_5_stand_beside_ours() -> None:
    six, nine = (TABLES[name] for name in ("census", "census-9"))
    assert isinstance(six, ResultTable)
    assert isinstance(nine, ResultTable)

    def figures(table: ResultTable) -> dict[str, list[float]]:
        return {
            model: [figure.auc for figure in table.published if figure.model == model]
            for model in ("ml_mmoe", "ple", "adatt")
        }

    assert nine.seeds == six.seeds
    assert nine.comparisons == six.comparisons
    assert figures(nine) == {
        "ml_mmoe": [0.8688, 0.9139, 0.973],
        "ple": [0.8645, 0.9134, 0.968],
        "adatt": [0.8744, 0.9174, 0.9786],
    }
    assert {figure.protocol for figure in nine.published} == {
        "AdaTT, table 5, 9 experts of 96-48, mean of 100 runs"
    }
    assert [f.task for f in nine.published if f.model == "adatt"] == [
        *("education", "income", "marital"),
    ]


def test_groups_hold_tables() -> None:
    assert {name for names in GROUPS.values() for name in names} <= set(TABLES)
    assert all(GROUPS.values())
