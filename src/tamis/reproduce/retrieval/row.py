"""One row of a table of retrieval: a model is trained, published, searched and measured.

The folder of a row holds ``order.json``, what is wanted; it gets ``metrics.json``, what was
measured. Progress is printed, line by line.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis import artifacts, config
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.retrieval_task import StoredTask, read_task
from tamis.errors import RunInUseError
from tamis.process import prepare_process
from tamis.reproduce.retrieval import searchers
from tamis.reproduce.retrieval.beams import Tried, best_of, choose_share
from tamis.reproduce.retrieval.checks import checks_of
from tamis.reproduce.retrieval.lightgcn import train_lightgcn
from tamis.reproduce.retrieval.scores import Measurer, of_users, spread
from tamis.reproduce.retrieval.searchers import Point, Prepared
from tamis.reproduce.retrieval.tables import Method
from tamis.reproduce.training import train
from tamis.retrieval.occupancy import occupancy
from tamis.retrieval.search import Retriever

ORDER, ROW = "order.json", "metrics.json"
_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RowOrder:
    """What a process is told to make; folders as text, as they stand in JSON."""

    method: Method
    """How the model is searched."""
    inputs: str
    """Folder with ``dataset``, ``task`` and ``task-valid``."""
    seed: int
    """Of the trainings."""
    recipe: str
    """Of the model; empty for popularity."""
    run: str
    """Its run, trained by whichever row comes first; empty for popularity."""
    teacher_recipe: str
    """Of its teacher; empty: none."""
    teacher_run: str
    """The teacher's run; empty: none."""
    reference_recipe: str
    """Of the two towers that the row is timed beside."""
    reference_run: str
    """Their run."""
    exhaustive: int
    """Users for whom every node and item is scored too."""
    whole_curve: bool = False
    """Whether beams are measured that are wider than comparisons with other indexes need."""
    by_content: bool = False
    """Whether items that were never shown are looked for, placed by their content alone."""

    def write(self, folder: Path) -> None:
        """Write it into the row's folder, where :func:`make_row` reads it."""
        artifacts.write_json(folder / ORDER, config.to_table(self))


def make_row(folder: Path) -> dict[str, Any]:
    """Make the row that was ordered in a folder; one that is finished is returned as it is.

    Raises:
        TamisError: A training failed, or something does not hold that no correct search can fail.
    """
    if (folder / ROW).exists():
        return dict(artifacts.read_json(folder / ROW))
    prepare_process(1)
    searchers.use_one_thread()
    order = config.from_table(RowOrder, artifacts.read_json(folder / ORDER), where="order")
    started = time.perf_counter()
    _train(order, order.reference_recipe, Path(order.reference_run), started)
    if order.method == "lightgcn":
        _train_lightgcn(order, started)
    elif order.run:
        teacher = None
        if order.teacher_run:
            teacher = Path(order.teacher_run)
            _train(order, order.teacher_recipe, teacher, started)
        _train(order, order.recipe, Path(order.run), started, teacher=teacher)
    found = _measured(order, started)
    artifacts.write_json(folder / ROW, found)
    return found


class _Told:
    """Prints how a training goes; see ``tamis.training.loop.Observer``."""

    def __init__(self, started: float) -> None:
        self._started = started

    def on_message(self, text: str) -> None:
        _say(self._started, text)

    def on_warning(self, text: str) -> None:
        _say(self._started, f"warning: {text}")

    def on_step(self, *, step: int, total_steps: int, rows_per_second: float) -> None:
        """Steps are too many for a log."""

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        (task,) = record["valid"].values()
        _say(self._started, f"step {record['step']}: NE {task['ne']:.4f} on the validation rows")


def _train(
    order: RowOrder, recipe: str, run: Path, started: float, *, teacher: Path | None = None
) -> None:
    """Train a model, go on with it, or wait for the row that is training it."""
    settings = [f"training.seed={order.seed}"]
    dataset = Path(order.inputs) / "dataset"
    while True:
        try:
            train(
                dataset,
                recipe=Path(recipe),
                settings=settings,
                run=run,
                teacher=teacher,
                observer=_Told(started),
            )
        except RunInUseError:
            time.sleep(_PATIENCE_SECONDS)
        else:
            _say(started, f"{run} is trained")
            return


def _train_lightgcn(order: RowOrder, started: float) -> None:
    """Train LightGCN; no other row searches its run, so there is none to wait for."""
    folder, run = Path(order.inputs), Path(order.run)
    dataset, task = Dataset.open(folder / "dataset"), read_task(folder / "task")

    def say(text: str) -> None:
        _say(started, text)

    train_lightgcn(dataset, task, Path(order.recipe), run, seed=order.seed, say=say)
    _say(started, f"{run} is trained")


def _measured(order: RowOrder, started: float) -> dict[str, Any]:
    """Everything that is measured of a row; JSON values."""
    folder = Path(order.inputs)
    task, dataset = read_task(folder / "task"), Dataset.open(folder / "dataset")
    encoders = Encoders.load(folder / "dataset" / "encoders", task.schema)
    prepared = Prepared.of(task, encoders, dataset.spec)
    reference = searchers.reference_searcher(Path(order.reference_run), prepared)
    measurer = Measurer(task, prepared.requests, reference)
    _say(started, f"{task.num_items:,} items and {len(prepared.requests):,} requests are encoded")
    found: dict[str, Any] = {"checks": [], "levels": []}
    if order.method in ("network", "kmeans_tree"):
        retrievers, of_index = _networks(order, prepared, dataset)
        retriever = next(iter(retrievers.values()))
        found |= {**of_index, "weights": retriever.snapshot.weights_version}
        if of_index:
            _say(started, f"levels {found['levels']}, checks {found['checks']}")
        if retriever.snapshot.tree.num_nodes:
            tuning = read_task(folder / "task-valid")
            requests = searchers.encoded_requests(tuning, encoders, dataset.spec)
            some = of_users(tuning, requests, spread(len(requests), order.exhaustive))
            tried = {
                nodes: _tried(one, Measurer(*some, reference)) for nodes, one in retrievers.items()
            }
            best = best_of(tried)
            retriever, chosen = retrievers[best], tried[best][-1].share
            found["validation"] = [dataclasses.asdict(one) for one in tried[best]]
            if len(tried) > 1:
                found["nodes"] = {
                    "chosen": best,
                    **{name: [dataclasses.asdict(one) for one in tried[name]] for name in tried},
                }
            _say(started, f"share {chosen} of {tried} on validation users")
            found["exhaustive"] = measurer.exhaustive(retriever, users=order.exhaustive)
            _say(started, f"every node and item: {found['exhaustive']}")
            if order.by_content:
                is_cold = task.impressions == 0
                found["by_content"] = None
                if is_cold.any():
                    placed = searchers.placed_by_content(retriever, prepared.corpus, is_cold)
                    searcher = searchers.beam_searcher(placed, chosen)
                    found["by_content"] = measurer.among_unseen(searcher)
                _say(started, f"items never shown, and others: {found['by_content']}")
            points: Iterator[Point] = searchers.beam_points(
                retriever, chosen=chosen, whole_curve=order.whole_curve
            )
        else:
            points = searchers.all_items_points(retriever)
    else:
        points = _points(order, task, prepared)
    found["points"] = []
    for point in points:
        found["points"].append(measurer.measure(point))
        _say(started, f"{point.setting}: {found['points'][-1]}")
    return found


def _networks(
    order: RowOrder, prepared: Prepared, dataset: Dataset
) -> tuple[Mapping[str, Retriever], dict[str, Any]]:
    """The row's network over what it may walk, and what an index of its own is like."""
    run = Path(order.run)
    if order.method == "kmeans_tree":
        trees = searchers.over_kmeans(run, prepared, dataset, seed=order.seed)
        return {str(nodes): one for nodes, one in trees.items()}, {}
    model, snapshot = searchers.published(run, prepared, dataset)
    retrievers = {"own": Retriever(model, snapshot)}
    if not snapshot.tree.num_nodes:
        return retrievers, {}
    levels = [dataclasses.asdict(level) for level in occupancy(snapshot)]
    return retrievers, {"levels": levels, **checks_of(model, snapshot, prepared, dataset)}


def _tried(retriever: Retriever, measurer: Measurer) -> Sequence[Tried]:
    """Shares of nodes that the users of the measurer tried, the last one theirs."""

    def quality_of(share: float) -> Mapping[str, Any]:
        return measurer.quality(searchers.beam_searcher(retriever, share))

    everything = measurer.exhaustive(retriever, users=measurer.num_users)
    return choose_share(quality_of, everything)[1]


def _points(order: RowOrder, task: StoredTask, prepared: Prepared) -> Iterator[Point]:
    run, reference = Path(order.run), Path(order.reference_run)
    if order.method == "popularity":
        return searchers.popular_points(task)
    if order.method == "exact":
        return searchers.exact_points(run, prepared)
    if order.method == "lightgcn":
        return searchers.lightgcn_points(run, task, prepared)
    if order.method == "ann":
        return searchers.ann_points(run, prepared, longest=task.longest)
    return searchers.rerank_points(run, reference, prepared, longest=task.longest)


def _say(started: float, text: str) -> None:
    sys.stdout.write(f"{time.perf_counter() - started:8.1f} s  {text}\n")
    sys.stdout.flush()
