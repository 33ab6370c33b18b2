"""LightGCN as a row: what it learns from, that it goes on where it was stopped, and its search."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tamis import api, artifacts, config
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.public_sets.retrieval import Goal, RetrievalSet
from tamis.data.retrieval_task import StoredTask, read_task, write_task
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import ConfigError, DataError
from tamis.evaluation.retrieval import ItemLists
from tamis.models.weights import load_tensors
from tamis.reproduce.retrieval.lightgcn import (
    Interactions,
    LightGCNRecipe,
    Stopping,
    train_lightgcn,
    vectors_of,
)
from tamis.reproduce.retrieval.searchers import Prepared, lightgcn_points

RECIPES = Path(__file__).parents[3] / "recipes"
_USERS, _ITEMS, _HALVES = 40, 60, 2
Pairs = Iterable[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class World:
    """Users who go for one half of the items."""

    dataset: Dataset
    task: StoredTask
    prepared: Prepared


def _made(
    folder: Path,
    train: Pairs,
    valid: Pairs,
    *,
    num_items: int,
    asking: Sequence[int],
    roles: Roles,
) -> World:
    """Items are 7 + their place, so that nothing may take one for the other."""
    schema = Schema(
        fields=(
            Field(name="price", kind="numeric", side="user"),
            Field(name="item", kind="categorical", side="item"),
        ),
        tasks=(Task(name="click"),),
        roles=roles,
    )
    tables = {}
    for split, pairs in (("train", train), ("valid", valid), ("test", valid)):
        rows = [(1, user, place + 7) for user, place in pairs]
        rows += [(0, user, (place + 1) % num_items + 7) for _, user, place in rows]
        click, user, item = (np.array(column) for column in zip(*rows, strict=True))
        # Users are known by another column than the role's, as in Sports.
        tables[split] = pa.table({"click": click, "user": user, "item": item, "price": 0.5 * user})
    count = len(asking)
    goal = Goal(
        requests=pa.table(
            {
                "user": list(asking),
                "item": pa.nulls(count, pa.int64()),
                "price": np.zeros(count),
            }
        ),
        relevant=ItemLists.of([[0]] * count),
        masked=ItemLists.of([[1]] * count),
    )
    task = RetrievalSet(
        tables=tables,
        schema=schema,
        corpus=pa.table(
            {
                "item": np.arange(num_items) + 7,
                "user": pa.nulls(num_items, pa.int64()),
                "price": np.zeros(num_items),
            }
        ),
        goals={"test": goal},
        matched=np.zeros(0, np.int64),
        positives=np.ones(num_items, np.int64),
        impressions=np.ones(num_items, np.int64),
    )
    logs = {split: folder / "rows" / f"{split}.parquet" for split in tables}
    for split, path in logs.items():
        task.write_rows(split, path)
    api.ingest(logs, folder / "dataset", schema=schema)
    write_task(task, folder / "task", split="test", requests=count)
    dataset, stored = Dataset.open(folder / "dataset"), read_task(folder / "task")
    encoders = Encoders.load(folder / "dataset" / "encoders", schema)
    return World(dataset=dataset, task=stored, prepared=Prepared.of(stored, encoders, dataset.spec))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    generator = np.random.default_rng(0)
    train, valid = [], []
    for user in range(_USERS):
        places = _HALVES * generator.permutation(_ITEMS // _HALVES)[:10] + user % _HALVES
        train += [(user, int(place)) for place in places[:8]]
        valid += [(user, int(place)) for place in places[8:]]
    return _made(
        tmp_path_factory.mktemp("world"),
        train,
        valid,
        num_items=_ITEMS,
        asking=[31, 4, 0],
        roles=Roles(user="user", item="item"),
    )


def _recipe(folder: Path, **training: float) -> Path:
    path = folder / "lightgcn.toml"
    recipe = {
        "model": {"embedding_dim": 8, "num_layers": 2},
        "training": {"lr": 0.02, "batch_size": 64, "max_epochs": 20, **training},
        "stopping": {"evaluate_every": 3, "patience": 2},
    }
    artifacts.write_text(path, config.write_toml(recipe))
    return path


def _train(world: World, recipe: Path, run: Path, *, seed: int = 0) -> list[str]:
    said: list[str] = []
    train_lightgcn(world.dataset, world.task, recipe, run, seed=seed, say=said.append)
    return said


def test_positives_alone_are_interactions_and_none_is_trained_and_found(tmp_path: Path) -> None:
    small = _made(
        tmp_path,
        [(5, 2), (9, 0), (5, 1), (5, 2)],
        # User 5 returns to 1, and nobody knows user 7.
        [(5, 1), (5, 3), (7, 0), (9, 2)],
        num_items=4,
        asking=[9],
        roles=Roles(user="user", item="item"),
    )
    known = Interactions.read(small.dataset, small.task)
    # By code, which is not the order of the users.
    order = [known.trained.lengths.tolist().index(count) for count in (2, 1)]
    trained, validation = (
        [lists.lists()[place].tolist() for place in order]
        for lists in (known.trained, known.validation)
    )

    assert (len(known.user_codes), known.num_items) == (2, 4)
    assert trained == [[1, 2], [0]]
    assert validation == [[3], [2]]


def test_training_finds_the_users_half_and_keeps_its_best_evaluation(
    world: World, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path)
    said = _train(world, recipe, tmp_path / "run")
    record = artifacts.read_json(tmp_path / "run" / "run.json")
    curve = dict(record["curve"])

    assert curve[record["best_epoch"]] == max(curve.values())
    # 20 of the 52 items that are left are found, 22 of them of the half: by chance 0.38.
    assert max(curve.values()) > 0.7
    assert all(f"epoch {epoch}:" in line for epoch, line in zip(curve, said, strict=True))
    assert record["parameters"] == {"total": 8 * (_USERS + _ITEMS), "dense": 0}
    assert record["status"] == "finished"
    # As many epochs and no more end with the same vectors.
    shorter = _recipe(tmp_path / "shorter", max_epochs=record["best_epoch"])
    _train(world, shorter, tmp_path / "shorter" / "run")
    for name, ours in load_tensors(tmp_path / "run" / "vectors.safetensors").items():
        theirs = load_tensors(tmp_path / "shorter" / "run" / "vectors.safetensors")[name]
        assert torch.equal(ours, theirs)


def test_stopped_training_goes_on_to_the_same_vectors_and_a_finished_one_stays(
    world: World, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path)
    _train(world, recipe, tmp_path / "whole", seed=3)

    def stop(text: str) -> None:
        if text.startswith("epoch 6:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lightgcn(world.dataset, world.task, recipe, tmp_path / "run", seed=3, say=stop)
    with pytest.raises(artifacts.ArtifactError, match="must be whole safetensors"):
        vectors_of(tmp_path / "run", world.task)
    said = _train(world, recipe, tmp_path / "run", seed=3)

    assert said[0] == "resumed after epoch 6"
    whole, run = (
        load_tensors(tmp_path / name / "vectors.safetensors") for name in ("whole", "run")
    )
    assert all(torch.equal(whole[name], run[name]) for name in whole)
    curves = [
        artifacts.read_json(tmp_path / name / "run.json")["curve"] for name in ("whole", "run")
    ]
    assert curves[0] == curves[1]
    assert _train(world, recipe, tmp_path / "run", seed=3) == []
    _train(world, recipe, tmp_path / "other", seed=4)
    other = load_tensors(tmp_path / "other" / "vectors.safetensors")
    assert not torch.equal(other["items"], whole["items"])


def test_training_ends_where_validation_users_find_no_more(world: World, tmp_path: Path) -> None:
    _train(world, _recipe(tmp_path, lr=1e-12), tmp_path / "run")
    record = artifacts.read_json(tmp_path / "run" / "run.json")

    assert [epoch for epoch, _ in record["curve"]] == [3, 6, 9]
    assert (record["epochs"], record["best_epoch"]) == (9, 3)


def test_last_epoch_is_evaluated_where_it_is_no_multiple(world: World, tmp_path: Path) -> None:
    _train(world, _recipe(tmp_path, max_epochs=4), tmp_path / "run")

    record = artifacts.read_json(tmp_path / "run" / "run.json")
    assert [epoch for epoch, _ in record["curve"]] == [3, 4]


def test_search_gives_the_largest_products_of_whoever_asks(world: World, tmp_path: Path) -> None:
    _train(world, _recipe(tmp_path, max_epochs=3), tmp_path / "run")
    of_users, items = vectors_of(tmp_path / "run", world.task)
    (point,) = lightgcn_points(tmp_path / "run", world.task, world.prepared)

    assert point.is_main
    for place, request in reversed([*enumerate(world.prepared.requests)]):
        found = point.searcher.search(request, 5)
        best = torch.argsort(-(items.vectors @ of_users[place]), stable=True)[:5]
        assert found.ids.tolist() == best.tolist()
    # Users 31 and 4 go for different halves.
    assert not torch.equal(of_users[0], of_users[1])


def test_who_asks_and_was_not_there_is_told(tmp_path: Path) -> None:
    small = _made(
        tmp_path,
        [(5, 2), (9, 0)],
        [(5, 3), (9, 1)],
        num_items=4,
        asking=[9, 6],
        roles=Roles(user="user", item="item"),
    )
    _train(small, _recipe(tmp_path, max_epochs=1), tmp_path / "run")

    with pytest.raises(DataError, match=r"who asks must have a positive .*, got 1 of 2 unknown"):
        vectors_of(tmp_path / "run", small.task)


def test_rows_that_do_not_tell_the_user_are_refused(tmp_path: Path) -> None:
    pairs = [(5, 2), (9, 0)]
    small = _made(tmp_path, pairs, pairs, num_items=4, asking=[9], roles=Roles(item="item"))

    with pytest.raises(DataError, match="must tell user and item for LightGCN, got roles"):
        Interactions.read(small.dataset, small.task)


@pytest.mark.parametrize("settings", [(0, 5), (10, 0)])
def test_impossible_stopping_is_refused(settings: tuple[int, int]) -> None:
    every, patience = settings
    with pytest.raises(ConfigError, match=rf"at least 1, got {every} and {patience}"):
        Stopping(evaluate_every=every, patience=patience)


def test_recipe_has_the_published_sizes_and_larger_batches() -> None:
    recipe = config.from_table(
        LightGCNRecipe, config.read_toml(RECIPES / "hsnn-gowalla" / "lightgcn.toml")
    )

    assert (recipe.model.embedding_dim, recipe.model.num_layers) == (64, 3)
    training = recipe.training
    assert training.l2 == 1e-4
    # Published: 0.001 and 2,048.
    assert (training.lr, training.batch_size) == (5 * 1e-3, 8 * 2048)
    assert training.max_epochs < 1000
