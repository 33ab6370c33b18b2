"""From raw rows to recall: a public set's form, ingested, trained on, indexed and searched."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tamis.api import ingest
from tamis.data.batch import Batch
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.public_sets import retrieval
from tamis.data.schema import CategoricalInput, InputSpec, Table, load_schema
from tamis.errors import DataError
from tamis.evaluation.retrieval import full_corpus_scores
from tamis.models.hsnn import HSNN, HSNNConfig
from tamis.models.monn import MoNNConfig
from tamis.models.two_tower import TwoTower, TwoTowerConfig
from tamis.retrieval.collect import collect
from tamis.retrieval.encoded import encoded_rows, pairs_by_features
from tamis.retrieval.exact import ExactSearcher
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.rerank import Reranker
from tamis.retrieval.search import BeamSearcher, Retriever
from tamis.retrieval.searcher import Request
from tamis.retrieval.snapshot import IndexSnapshot
from tamis.training.config import run_config_from_table
from tamis.training.loop import train
from tamis.training.predict import load_best_weights

pytestmark = pytest.mark.slow

_KINDS, _ITEMS, _USERS = 5, 60, 150


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> retrieval.RetrievalSet:
    """Users who stay in a category of their own for most of their steps."""
    folder = tmp_path_factory.mktemp("set")
    generator = np.random.default_rng(0)
    kinds = np.arange(_ITEMS) % _KINDS
    steps = []
    for user in range(_USERS):
        weights = np.where(kinds == user % _KINDS, 10.0, 0.3)
        steps.append(generator.choice(_ITEMS, 8, replace=False, p=weights / weights.sum()).tolist())
    lists = pa.list_(pa.int32())
    pq.write_table(
        pa.table({"user_id": range(_USERS), "items": pa.array(steps, lists)}),
        folder / "sequences.parquet",
    )
    attributes = pa.array([[100, 200 + int(kind)] for kind in kinds], lists)
    pq.write_table(
        pa.table({"item_id": pa.array(range(_ITEMS), pa.int32()), "attributes": attributes}),
        folder / "item_attributes.parquet",
    )
    return retrieval.amazon(folder)


@pytest.fixture(scope="module")
def work(task: retrieval.RetrievalSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset, and beside it the corpus and the requests as files."""
    folder = tmp_path_factory.mktemp("work")
    for name, table in {
        **task.tables,
        "corpus": task.corpus,
        "requests": task.goals["test"].requests,
    }.items():
        pq.write_table(table, folder / f"{name}.parquet")
    files = {split: folder / f"{split}.parquet" for split in task.tables}
    ingest(files, folder / "data", schema=task.schema)
    return folder


def _encoders(work: Path) -> Encoders:
    schema = load_schema(work / "data" / "schema.toml")
    return Encoders.load(work / "data" / "encoders", schema)


def _requests(task: retrieval.RetrievalSet, work: Path, spec: InputSpec) -> list[Request]:
    history = task.goals["test"].requests["history_category"].to_pylist()
    requests = []
    for numbers, batch in encoded_rows(work / "requests.parquet", _encoders(work), spec):
        for place, number in enumerate(numbers.tolist()):

            def features(items: torch.Tensor, user: int = number) -> torch.Tensor:
                found = retrieval.same_category(
                    np.array(history[user]), task.matched[items.numpy()]
                )
                return torch.from_numpy(found).unsqueeze(1)

            row = torch.tensor([place])
            sequences = {name: jagged.take(row) for name, jagged in batch.sequences.items()}
            user_row = replace(
                batch,
                numeric=batch.numeric[row],
                ids=batch.ids[row],
                labels=batch.labels[row],
                weights=batch.weights[row],
                sequences=sequences,
            )
            requests.append(Request(user=user_row, pairs=pairs_by_features(spec, features)))
    return requests


def _trained(work: Path, model: dict, kind: Any, config: Any) -> Any:
    dataset = Dataset.open(work / "data")
    table = {
        "model": model,
        "optimizer": {"dense_lr": 0.01, "embedding_lr": 0.02},
        "training": {"batch_size": 128, "max_epochs": 5, "patience": 5, "device": "cpu"},
    }
    run = work / f"run-{model['name']}"
    train(dataset, run_config_from_table(table), run)
    built = kind(config, dataset.spec)
    load_best_weights(run, built)
    return built.eval()


def _recall(searcher: Any, task: retrieval.RetrievalSet, requests: list[Request]) -> float:
    goal = task.goals["test"]
    found = collect(searcher, requests, 12, masked=goal.masked)
    scores = full_corpus_scores(
        found.ids,
        goal.relevant,
        goal.masked,
        num_items=task.num_items,
        candidates=found.candidates,
        cutoffs=(12,),
        ndcg_at=12,
    )
    return scores.means()["recall@12"]


def test_all_ways_to_search_find_what_users_do_next(
    task: retrieval.RetrievalSet, work: Path
) -> None:
    encoders = _encoders(work)
    two_tower = _trained(
        work,
        {"name": "two_tower", "tower_dim": 16},
        TwoTower,
        TwoTowerConfig(tower_dim=16),
    )
    requests = _requests(task, work, two_tower.spec)

    def corpus() -> Any:
        return encoded_rows(work / "corpus.parquet", encoders, two_tower.spec, batch_size=25)

    first = ExactSearcher(ItemVectors.encode(two_tower, corpus()), two_tower.queries())
    small = MoNNConfig(user_tokens=2, user_dim=6, width=6, module_tokens=2, head_units=(8,))
    table = {
        "user_tokens": 2,
        "user_dim": 6,
        "width": 6,
        "module_tokens": 2,
        "head_units": [8],
    }
    leaf = _trained(
        work,
        {"name": "hsnn", "codebooks": [], "levels": [table]},
        HSNN,
        HSNNConfig(codebooks=(), levels=(small,)),
    )
    exhaustive = BeamSearcher(
        retriever=Retriever(leaf, IndexSnapshot.publish(leaf, corpus())), beams=()
    )
    second = Reranker(first, leaf, ItemVectors.encode(leaf, corpus()), num_candidates=40)

    # 12 of some 53 items by chance: 0.23. The right category, which most next steps are in, has 12
    # items less those that came before.
    recalls = [_recall(searcher, task, requests) for searcher in (first, exhaustive, second)]
    assert min(recalls) > 0.5


def test_rows_are_numbered_and_encoded_as_in_training(
    task: retrieval.RetrievalSet, work: Path
) -> None:
    spec = Dataset.open(work / "data").spec
    parts = list(encoded_rows(work / "corpus.parquet", _encoders(work), spec, batch_size=25))
    assert [len(ids) for ids, _ in parts] == [25, 25, 10]
    assert torch.cat([ids for ids, _ in parts]).tolist() == list(range(_ITEMS))
    ids = torch.cat([batch.ids for _, batch in parts])
    split = Dataset.open(work / "data").split("train")
    log = task.tables["train"]
    for name in ("item", "category"):
        column = [item.name for item in spec.categorical].index(name)
        by_value = dict(zip(log[name].to_pylist(), split.ids(name).tolist(), strict=True))
        for raw, row in zip(task.corpus[name].to_pylist(), ids[:, column].tolist(), strict=True):
            assert row == by_value.get(raw, 0)


def test_ids_alone_are_enough(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rows = {
        "user_id": [0, 0, 1, 1, 0, 1],
        "item_id": [0, 2, 1, 2, 1, 3],
        "split": ["train", "train", "train", "valid", "valid", "test"],
    }
    pq.write_table(pa.table(rows), folder / "interactions.parquet")
    task = retrieval.gowalla(folder)
    for name, table in {
        **task.tables,
        "corpus": task.corpus,
        "requests": task.goals["test"].requests,
    }.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    files = {split: tmp_path / f"{split}.parquet" for split in task.tables}
    ingest(files, tmp_path / "data", schema=task.schema)
    encoders, spec = _encoders(tmp_path), Dataset.open(tmp_path / "data").spec

    users, items = (
        torch.cat([batch.ids for _, batch in encoded_rows(tmp_path / name, encoders, spec)])
        for name in ("requests.parquet", "corpus.parquet")
    )
    # Row 0 is that of what is unknown, or not said.
    assert bool((users[:, 0] > 0).all())
    assert not users[:, 1].any()
    assert bool((items[:3, 1] > 0).all())
    assert not items[:, 0].any()


def test_pairs_hold_the_features_and_nothing_else() -> None:
    spec = InputSpec(
        numeric=("price", "same", "overlap"),
        categorical=(CategoricalInput(name="item", table="item", side="item"),),
        sequences=(),
        tables=(Table(name="item", num_rows=9),),
        tasks=(),
        numeric_sides=("item", "context", "context"),
    )
    pairs = pairs_by_features(spec, lambda items: torch.stack([items + 0.5, items * 2.0], dim=1))
    batch = pairs(torch.tensor([3, 1]))

    assert isinstance(batch, Batch)
    assert batch.numeric.tolist() == [[0.0, 3.5, 6.0], [0.0, 1.5, 2.0]]
    with_category = replace(
        spec, categorical=(CategoricalInput(name="item", table="item", side="context"),)
    )
    with pytest.raises(DataError, match="must hold numbers alone, got categories"):
        pairs_by_features(with_category, lambda items: items.unsqueeze(1).float())
