"""Recall against latency, the whole curve: HSNN beside every rival, one request at a time.

Two towers and HSNN are trained on the same rows for as many epochs, and search the same corpus on
one thread, the user's towers included. Each way to search is measured at several widths:

- ``exact``: two towers, every item scored;
- ``ivf_flat``, ``ivf_pq``, ``hnsw``: Faiss over the two towers' items (where it is installed);
- ``rerank``: candidates of ``ivf_flat`` (of ``exact`` without Faiss), scored by the network of
  HSNN's leaf, trained by itself;
- ``leaf``: that network on every item;
- ``kmeans_tree``: HSNN's networks over a tree of k-means of its item vectors;
- ``hsnn``: beams through the learnt index, and all of it.

``recall`` is of what users did next, training items masked, over the full corpus; ``kept`` is the
share of what the same model finds when it scores every item. Operations and bytes are modelled,
milliseconds measured. A ratio compares a rival's points with the fastest point of HSNN that recalls
as much; how many of a rival's points HSNN does not reach stands in its rows as ``unreached``.

Without ``--data`` the users are made up: each goes round a few groups of items that are in one
category. With it, they are those of a folder in the form of S3-Rec's Amazon sets.
"""

import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tamis import api
from tamis.data.batch import Batch
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.public_sets import retrieval
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.evaluation.retrieval import ItemLists, full_corpus_scores
from tamis.models import catalog
from tamis.models.hsnn import HSNN
from tamis.models.two_tower import TwoTower
from tamis.retrieval.collect import collect
from tamis.retrieval.encoded import encoded_rows, pairs_by_features
from tamis.retrieval.exact import ExactSearcher
from tamis.retrieval.faiss_index import HNSW, IVFPQ, FaissSearcher, IVFFlat
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.kmeans_tree import KMeansTree
from tamis.retrieval.rerank import Reranker
from tamis.retrieval.search import BeamSearcher, Retriever
from tamis.retrieval.searcher import Request, Searcher
from tamis.retrieval.snapshot import IndexSnapshot
from tamis.training.config import run_config_from_table
from tamis.training.loop import train
from tamis.training.predict import load_best_weights

FOUND = 100
SEED = 2024


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much of everything."""

    items: int
    """Items of a made-up corpus."""
    users: int
    """Users of a made-up corpus."""
    epochs: int
    """Epochs that each model is trained for."""
    requests: int
    """Users who are searched for."""
    codebooks: tuple[int, int]
    """Nodes of HSNN's two index levels."""


SIZES = {
    False: Size(items=100_000, users=60_000, epochs=3, requests=1000, codebooks=(64, 32)),
    True: Size(items=3000, users=2500, epochs=2, requests=100, codebooks=(16, 8)),
}
STEPS, GROUP = 8, 25
COLUMNS = {
    "way": str,
    "setting": str,
    "recall": lambda value: f"{value:.4f}",
    "kept": lambda value: f"{value:.3f}",
    "p50_ms": lambda value: f"{value:.2f}",
    "p95_ms": lambda value: f"{value:.2f}",
    "pairs": lambda value: f"{value:,.0f}",
    "flops": lambda value: f"{value / 1e6:,.2f} M",
    "bytes": lambda value: f"{value / 2**20:,.2f} MiB",
    "index_bytes": lambda value: f"{value / 2**20:,.1f} MiB",
    "build_seconds": lambda value: f"{value:.1f}",
}
LEVEL = {"user_tokens": 4, "user_dim": 12, "width": 12, "module_tokens": 2}
LEAF = LEVEL | {"head_units": [32], "modules": ["dot", "linear"]}
LEVELS = [LEVEL | {"user_tokens": 12, "num_layers": 2, "head_units": [128]}, LEVEL, LEAF]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Who asks a corpus for what."""

    dataset: Dataset
    """Rows to learn from."""
    corpus: Callable[..., Iterator[tuple[Tensor, Batch]]]
    """All items, as many at a time as it is told (``batch_size``)."""
    requests: list[Request]
    """One for each user."""
    relevant: ItemLists
    """What each user did next."""
    masked: ItemLists
    """What each user had done before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """A task, and models that were trained for it."""

    task: Task
    """Who asks."""
    two_tower: TwoTower
    """Trained on all rows."""
    hsnn: HSNN
    """Two index levels."""
    leaf: HSNN
    """The network of HSNN's items by itself."""
    codebooks: tuple[int, int]
    """Nodes of HSNN's index levels."""


def make_up(folder: Path, items: int, users: int) -> None:
    """Write made-up steps in the form of the published sets."""
    generator = np.random.default_rng(SEED)
    group = np.arange(items) // GROUP
    num_groups = int(group[-1]) + 1
    lists = pa.list_(pa.int32())
    # A user has three groups; popular groups have more users, popular items more steps.
    own = (num_groups * generator.random((users, 3)) ** 2).astype(np.int64)
    chosen = np.take_along_axis(own, generator.integers(0, 3, (users, 3 * STEPS)), axis=1)
    drawn = chosen * GROUP + (GROUP * generator.random(chosen.shape) ** 2).astype(np.int64)
    steps = [list(dict.fromkeys(np.minimum(row, items - 1).tolist()))[:STEPS] for row in drawn]
    steps = [row for row in steps if len(row) >= 4]
    attributes = [[num_groups + kind % 97, int(kind)] for kind in group]
    table = pa.table({"user_id": range(len(steps)), "items": pa.array(steps, lists)})
    pq.write_table(table, folder / "sequences.parquet")
    ids = pa.array(range(items), pa.int32())
    table = pa.table({"item_id": ids, "attributes": pa.array(attributes, lists)})
    pq.write_table(table, folder / "item_attributes.parquet")


def make_task(published: Path, work: Path, *, requests: int) -> Task:
    """Ingest a set and encode who asks."""
    task = retrieval.amazon(published)
    goal = task.goals["test"]
    with_goal = np.flatnonzero(goal.relevant.lengths)
    picked = np.sort(np.random.default_rng(SEED).permutation(with_goal)[:requests])
    tables = task.tables | {"corpus": task.corpus, "requests": goal.requests.take(picked)}
    for name, table in tables.items():
        pq.write_table(table, work / f"{name}.parquet")
    api.ingest(
        {split: work / f"{split}.parquet" for split in task.tables},
        work / "data",
        schema=task.schema,
    )
    dataset = Dataset.open(work / "data")
    encoders = Encoders.load(work / "data" / "encoders", task.schema)
    relevant, masked = goal.relevant.lists(), goal.masked.lists()
    histories = goal.requests["history_category"].take(picked).to_pylist()
    rows = encoded_rows(work / "requests.parquet", encoders, dataset.spec, batch_size=1)
    return Task(
        dataset=dataset,
        corpus=functools.partial(encoded_rows, work / "corpus.parquet", encoders, dataset.spec),
        requests=[
            make_request(dataset.spec, row, np.array(history), task.matched)
            for (_, row), history in zip(rows, histories, strict=True)
        ],
        relevant=ItemLists.of([relevant[user] for user in picked]),
        masked=ItemLists.of([masked[user] for user in picked]),
    )


def make_world(published: Path, work: Path, size: Size) -> World:
    """Ingest a set and train all models on it."""
    task = make_task(published, work, requests=size.requests)
    index = {"codebooks": list(size.codebooks), "levels": LEVELS, "alpha_steps": 500}

    def trained(name: str, model: dict[str, Any]) -> Any:  # noqa: ANN401  (any model)
        return train_model(task.dataset, work / name, model, epochs=size.epochs)

    return World(
        task=task,
        two_tower=trained("two_tower", {"name": "two_tower"}),
        hsnn=trained("hsnn", {"name": "hsnn", **index}),
        leaf=trained("leaf", {"name": "hsnn", "codebooks": [], "levels": [LEAF]}),
        codebooks=size.codebooks,
    )


def train_model(dataset: Dataset, run: Path, model: dict[str, Any], *, epochs: int) -> Any:  # noqa: ANN401  (any model)
    """A model as it was best on the validation rows, in evaluation mode."""
    table = {
        "model": model,
        "optimizer": {"dense_lr": 2e-3, "embedding_lr": 0.02},
        "training": {"batch_size": 512, "max_epochs": epochs, "device": "cpu", "seed": SEED},
    }
    settings = run_config_from_table(table)
    train(dataset, settings, run)
    built = catalog.entry(settings.model_name).model(settings.model, dataset.spec)
    load_best_weights(run, built)
    return built.eval()


def make_request(
    spec: InputSpec, row: Batch, history: np.ndarray[Any, Any], categories: np.ndarray[Any, Any]
) -> Request:
    """A user's row, and the categories that he shares with items."""

    def features(items: Tensor) -> Tensor:
        found = retrieval.same_category(history, categories[items.numpy()])
        return torch.from_numpy(found).unsqueeze(1)

    return Request(user=row, pairs=pairs_by_features(spec, features))


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One way to search at one width."""

    way: str
    """Name of the way."""
    setting: str
    """Its width."""
    searcher: Searcher
    """Ready to answer."""
    exhaustive: Searcher
    """The same model on every item."""
    build_seconds: float
    """Time to encode the corpus and build the index."""


def points(world: World) -> Iterator[Point]:
    """Every way to search at every width, the rivals first."""
    started = time.perf_counter()
    items = ItemVectors.encode(world.two_tower, world.task.corpus())
    encoded = time.perf_counter() - started
    exact = ExactSearcher(items, world.two_tower.queries())
    of_dots = functools.partial(Point, exhaustive=exact)
    yield of_dots(way="exact", setting="all", searcher=exact, build_seconds=encoded)
    candidates: Searcher = exact
    try:
        for way, setting, searcher, seconds in faiss_points(items, world):
            if way == "ivf_flat":
                candidates = searcher
            yield of_dots(
                way=way, setting=setting, searcher=searcher, build_seconds=encoded + seconds
            )
    except ConfigError as error:
        print(error, file=sys.stderr)

    started = time.perf_counter()
    snapshot = IndexSnapshot.publish(world.leaf, world.task.corpus())
    own = ItemVectors.of(snapshot.members.ids, snapshot.members.vectors)
    leaf_seconds = time.perf_counter() - started
    leaf = BeamSearcher(retriever=Retriever(world.leaf, snapshot), beams=())
    # Masked items are dropped from what is found, so the least width has room for them.
    least = FOUND + int(world.task.masked.lengths.max())
    for count in widths(world, (0.02, 0.05, 0.1, 0.2)):
        searcher = Reranker(candidates, world.leaf, own, num_candidates=max(least, count))
        yield Point(
            way="rerank",
            setting=f"m={max(least, count)}",
            searcher=searcher,
            exhaustive=leaf,
            build_seconds=encoded + leaf_seconds,
        )
    yield Point(
        way="leaf", setting="all", searcher=leaf, exhaustive=leaf, build_seconds=leaf_seconds
    )
    coarse, fine = world.codebooks
    for way, build in (
        (
            "kmeans_tree",
            lambda: KMeansTree.build(world.hsnn, world.task.corpus(), (coarse, fine), seed=0),
        ),
        ("hsnn", lambda: IndexSnapshot.publish(world.hsnn, world.task.corpus())),
    ):
        started = time.perf_counter()
        retriever = Retriever(world.hsnn, build())
        seconds = time.perf_counter() - started
        num_nodes = retriever.snapshot.tree.num_nodes
        full = BeamSearcher(retriever=retriever, beams=num_nodes)
        for share in (0.05, 0.1, 0.2, 0.4, 1.0):
            beams = tuple(max(1, round(share * nodes)) for nodes in num_nodes)
            yield Point(
                way=way,
                setting=f"beams={beams}",
                searcher=BeamSearcher(retriever=retriever, beams=beams),
                exhaustive=full,
                build_seconds=seconds,
            )


def widths(world: World, shares: Sequence[float]) -> list[int]:
    """Shares of the corpus as numbers of items."""
    count = sum(len(ids) for ids, _ in world.task.corpus())
    return sorted({max(1, round(share * count)) for share in shares})


def faiss_points(
    items: ItemVectors, world: World
) -> Iterator[tuple[str, str, FaissSearcher, float]]:
    """Faiss' indexes, the widest of each kind last, and the seconds that building took."""
    count, width = items.vectors.shape
    lists = max(1, round(4 * count**0.5))
    queries = world.two_tower.queries()
    probes = [min(lists, n) for n in (1, 4, 16, 64)]
    settings: list[tuple[str, str, Any]] = [
        ("ivf_flat", f"probes={n}", IVFFlat(lists=lists, probes=n)) for n in probes
    ]
    settings += [
        ("ivf_pq", f"probes={n}", IVFPQ(lists=lists, probes=n, parts=width // 2)) for n in probes
    ]
    settings += [("hnsw", f"width={n}", HNSW(search_width=n)) for n in (32, 128, 512)]
    for way, setting, chosen in settings:
        started = time.perf_counter()
        searcher = FaissSearcher(items, queries, chosen)
        yield way, setting, searcher, time.perf_counter() - started


def measure(point: Point, world: World, best: dict[int, list[Tensor]]) -> dict[str, Any]:
    """Recall, cost and latency of one point.

    Args:
        point: What is measured.
        world: Who asks.
        best: What exhaustive searchers found, by their identity; filled here.
    """
    if id(point.exhaustive) not in best:
        best[id(point.exhaustive)] = [
            point.exhaustive.search(request, FOUND).ids for request in world.task.requests
        ]
    # First touches of memory, outside the clock.
    point.searcher.search(world.task.requests[0], FOUND)
    milliseconds, kept = [], []
    for request, wanted in zip(world.task.requests, best[id(point.exhaustive)], strict=True):
        started = time.perf_counter()
        found = point.searcher.search(request, FOUND)
        milliseconds.append(1e3 * (time.perf_counter() - started))
        kept.append(float(torch.isin(wanted, found.ids).float().mean()))
    lists = collect(point.searcher, world.task.requests, FOUND, masked=world.task.masked)
    scores = full_corpus_scores(
        lists.ids,
        world.task.relevant,
        world.task.masked,
        num_items=point.searcher.num_items,
        candidates=lists.candidates,
        cutoffs=(FOUND,),
    )
    p50, p95 = np.percentile(milliseconds, [50, 95]).tolist()
    return {
        "way": point.way,
        "setting": point.setting,
        "recall": scores.means()[f"recall@{FOUND}"],
        "ndcg@20": scores.means()["ndcg@20"],
        "kept": float(np.mean(kept)),
        "p50_ms": p50,
        "p95_ms": p95,
        "pairs": lists.mean_pairs,
        "flops": lists.mean_flops,
        "bytes": lists.mean_bytes,
        "index_bytes": point.searcher.index_bytes,
        "build_seconds": point.build_seconds,
        "items": point.searcher.num_items,
        "threads": 1,
    }


def compare(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, harness.Ratio], dict[str, int]]:
    """Latency at equal recall by rival, and how many of its points HSNN does not reach."""
    own = [row for row in rows if row["way"] == "hsnn"]
    ratios, unreached = {}, {}
    for way in dict.fromkeys(row["way"] for row in rows if row["way"] != "hsnn"):
        theirs = [row for row in rows if row["way"] == way]
        pairs = []
        for row in theirs:
            as_good = [mine["p50_ms"] for mine in own if mine["recall"] >= row["recall"]]
            if as_good:
                pairs.append((row["p50_ms"], min(as_good)))
        unreached[way] = len(theirs) - len(pairs)
        if pairs:
            ratios[f"{way}/hsnn, p50 at equal recall"] = harness.ratio_of(pairs)
    return ratios, unreached


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--data", type=Path, help="folder of a set in the form of S3-Rec's")
    options = parser.parse_args(arguments)
    api.prepare_process(1)
    limit_faiss_to_one_thread()
    size = SIZES[options.quick]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        published = options.data
        if published is None:
            published = work / "set"
            published.mkdir()
            make_up(published, size.items, size.users)
        world = make_world(published, work, size)
        best: dict[int, list[Tensor]] = {}
        kept_alive = list(points(world))  # identities in ``best`` must stay their own
        rows = [measure(point, world, best) for point in kept_alive]
    ratios, unreached = compare(rows)
    rows = [row | {"unreached": unreached.get(row["way"], 0)} for row in rows]
    title = f"recall@{FOUND} against latency, {rows[0]['items']:,} items, one thread"
    harness.report(options, "retrieval_latency", title, COLUMNS, rows=rows, ratios=ratios, bars={})
    return 0


def limit_faiss_to_one_thread() -> None:
    """Faiss has threads of its own, where it is installed."""
    try:
        import faiss
    except ImportError:
        return
    faiss.omp_set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
