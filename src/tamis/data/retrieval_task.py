"""A retrieval task on disk: the corpus, a sample of those who ask, and what is known of both.

corpus.parquet       a row for each of V items, in the order of their numbers
items.parquet        what training rows knew of them, and the category that pairs are matched by
requests.parquet     a row for each of U users
lists.parquet        what each is to find, and what no list may hold
values.safetensors   what each item is truly worth to each user, where somebody knows
schema.toml          what the columns of corpus and requests mean
manifest.json        written last
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tamis import artifacts
from tamis.data.public_sets.retrieval import RetrievalSet
from tamis.data.schema import Schema, load_schema
from tamis.errors import ArtifactError
from tamis.evaluation.retrieval import CUTOFFS, ItemLists

TASK_VERSION = 1
_KIND = "retrieval task"
_CORPUS, _REQUESTS, _LISTS = "corpus.parquet", "requests.parquet", "lists.parquet"
_ITEMS, _VALUES, _SCHEMA = "items.parquet", "values.safetensors", "schema.toml"
_SEED = 2024


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredTask:
    """A task that :func:`write_task` wrote; items are numbers of rows of the corpus."""

    folder: Path
    """Where it stands."""
    schema: Schema
    """What the columns of corpus and requests mean."""
    relevant: ItemLists
    """What each of U users is to find."""
    masked: ItemLists
    """What no list of theirs may hold."""
    histories: list[NDArray[np.int64]]
    """Categories of each user's last steps; empty where pairs have no feature."""
    matched: NDArray[np.int64]
    """(V,) category of each item that is matched with them; zeros where pairs have no feature."""
    positives: NDArray[np.int64]
    """(V,) positives of each item among the rows that train."""
    impressions: NDArray[np.int64]
    """(V,) how often each item had been shown when requests are made; see ``RetrievalSet``."""
    values: NDArray[np.float32] | None
    """(U, V) what each item is truly worth to each user; None where nobody knows."""

    @property
    def corpus(self) -> Path:
        """Log with a row for each item."""
        return self.folder / _CORPUS

    @property
    def requests(self) -> Path:
        """Log with a row for each user."""
        return self.folder / _REQUESTS

    @property
    def num_items(self) -> int:
        """V."""
        return len(self.positives)

    @property
    def longest(self) -> int:
        """Items that a search is asked for at most, so that the masked ones can be dropped."""
        return max(CUTOFFS) + int(self.masked.lengths.max())

    @property
    def has_pairs(self) -> bool:
        """Whether pairs of a user and an item have a feature."""
        return bool(self.histories)


def write_task(
    task: RetrievalSet, folder: Path, *, split: Literal["valid", "test"], requests: int
) -> None:
    """Write the goal of a split for a sample of its users.

    Args:
        task: What was read or simulated.
        folder: Gets the files; what a killed writing left is written over.
        split: Whose goal. How a corpus is searched is chosen on ``valid``.
        requests: Users at most, of those who have something to find; the same ones every time.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    goal = task.goals[split]
    able = np.flatnonzero(goal.relevant.lengths)
    picked = np.sort(np.random.default_rng(_SEED).permutation(able)[:requests])
    asked = goal.requests.take(pa.array(picked))
    # Once: ``lists`` makes those of every user.
    everybody = (goal.relevant.lists(), goal.masked.lists())
    relevant, masked = ([lists[user] for user in picked] for lists in everybody)
    has_pairs = len(task.matched) > 0
    matched = task.matched if has_pairs else np.zeros(task.num_items, np.int64)
    history = asked["history_category"].to_pylist() if has_pairs else [[]] * len(picked)
    integers = pa.list_(pa.int64())
    tables = {
        _CORPUS: task.corpus,
        _REQUESTS: asked,
        _LISTS: pa.table(
            {
                "relevant": pa.array(relevant, integers),
                "masked": pa.array(masked, integers),
                "history": pa.array(history, integers),
            }
        ),
        _ITEMS: pa.table(
            {
                "matched": matched,
                "positives": task.positives,
                "impressions": task.impressions,
            }
        ),
    }
    with artifacts.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        with artifacts.atomic_path(folder / name) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    files = [folder / name for name in tables]
    if goal.values is not None:
        with artifacts.atomic_path(folder / _VALUES) as temporary:
            save_file({"values": np.ascontiguousarray(goal.values[picked])}, temporary)
        files.append(folder / _VALUES)
    artifacts.write_text(folder / _SCHEMA, task.schema.to_toml())
    artifacts.write_manifest(
        folder,
        kind=_KIND,
        version=TASK_VERSION,
        files=[*files, folder / _SCHEMA],
        payload={"has_pairs": has_pairs, "has_values": goal.values is not None},
    )


def is_task(folder: Path) -> bool:
    """Whether a whole task stands there."""
    try:
        artifacts.read_manifest(folder, kind=_KIND, version=TASK_VERSION, verify=False)
    except ArtifactError:
        return False
    return True


def read_task(folder: Path) -> StoredTask:
    """Read a task.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    manifest = artifacts.read_manifest(folder, kind=_KIND, version=TASK_VERSION, verify=True)
    lists, items = (pq.read_table(folder / name) for name in (_LISTS, _ITEMS))
    return StoredTask(
        folder=folder,
        schema=load_schema(folder / _SCHEMA),
        relevant=_item_lists(lists["relevant"]),
        masked=_item_lists(lists["masked"]),
        histories=_item_arrays(lists["history"]) if manifest["has_pairs"] else [],
        # Copies, as Arrow's own memory cannot be written to.
        **{name: items[name].to_numpy().copy() for name in ("matched", "positives", "impressions")},
        values=load_file(folder / _VALUES)["values"] if manifest["has_values"] else None,
    )


def _item_arrays(column: pa.ChunkedArray) -> list[NDArray[np.int64]]:
    return [np.asarray(values, np.int64) for values in column.to_pylist()]


def _item_lists(column: pa.ChunkedArray) -> ItemLists:
    return ItemLists.of(_item_arrays(column))
