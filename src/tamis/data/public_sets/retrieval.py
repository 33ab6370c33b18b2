"""Public sets as retrieval tasks: rows to learn from, a corpus to search, and what is to be found.

Nobody logged what these users were shown. A positive row is something that a user did; beside each
stands a row with label 0 whose item was drawn uniformly from those that the user had not touched
until the end of the row's split. To a model that learns by cross entropy it is a negative; to an
in-batch softmax, which asks for positives alone, it is the uniform half of mixed negatives.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tamis import artifacts
from tamis.data.public_sets.files import SPLITS, read_parquet
from tamis.data.public_sets.sequences import (
    LONGEST,
    Sequences,
    fields_of,
    ranges,
    read_amazon,
    rows_of_steps,
)
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import DataError
from tamis.evaluation.retrieval import ItemLists

_SEED = 2024
SAME_CATEGORY = Field(
    name="same_category",
    kind="numeric",
    side="context",
    transform="none",
    counts="history_category",
)
"""The feature of pairs, as :func:`matches_of_rows` makes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """What is to be found for U users in one split; items are numbers of rows of the corpus."""

    requests: pa.Table
    """A row for each user; columns of the item and of pairs hold nothing."""
    relevant: ItemLists
    """What each user went for in the split."""
    masked: ItemLists
    """What each user had touched before, which no list may hold."""
    values: NDArray[np.float32] | None = None
    """(U, V) what each item is truly worth to each user; None where nobody knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalSet:
    """Logs as a retrieval task."""

    tables: dict[str, pa.Table]
    """Rows of each split, labelled, to train and compare models on."""
    schema: Schema
    """What the columns mean."""
    corpus: pa.Table
    """A row for each of V items; columns of the user and of pairs hold nothing."""
    goals: dict[str, Goal]
    """Of the splits ``valid`` and ``test``."""
    matched: NDArray[np.int64]
    """(V,) the category of each item that features of pairs count matches of; empty without."""
    positives: NDArray[np.int64]
    """(V,) positives of each item among the rows that train."""
    impressions: NDArray[np.int64]
    """(V,) how often each item had been shown when requests are made; where nobody logged what was
    shown, as often as it is a positive of rows that train. An item without any is cold."""

    @property
    def num_items(self) -> int:
        """V."""
        return int(self.corpus.num_rows)

    def write_rows(self, split: str, path: Path) -> None:
        """Write the rows of a split as a log.

        Raises:
            StorageError: The disk is full or the file cannot be written.
        """
        with artifacts.disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with artifacts.atomic_path(path) as temporary:
            pq.write_table(self.tables[split], temporary, compression="zstd")


def gowalla(folder: Path) -> RetrievalSet:
    """Check-ins of Gowalla in LightGCN's split, users and places by their ids alone.

    LightGCN trains on what is ``train`` and ``valid`` here; ``valid`` is a fifth of each user's
    training places, for tuning. The test masks both, so what is to be found is what it was for
    published figures, by models that were trained on a fifth less.

    Source:
        He et al., LightGCN, SIGIR 2020, section 4.1; the data are of Cho, Myers and Leskovec, KDD
        2011.

    Differs from the source:
        A part of the training places validates. For models of clicks every place stands beside one
        drawn from those that the user has not been to.
    """
    log = read_parquet(folder / "interactions.parquet")
    split = log["split"].to_numpy().astype(np.str_)
    users, items = (log[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id"))
    unknown = sorted(set(split.tolist()) - set(SPLITS))
    if unknown:
        raise DataError(f"{folder}: splits must be of {SPLITS}, got {unknown[0]!r}. Mend the file.")
    num_users, num_items = int(users.max()) + 1, int(items.max()) + 1
    of_split = {name: (users[split == name], items[split == name]) for name in SPLITS}
    generator = np.random.default_rng(_SEED)
    tables, goals = {}, {}
    before = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    for name, (user, item) in of_split.items():
        touched = [np.concatenate(pair) for pair in zip(before, (user, item), strict=True)]
        drawn = _untouched(user, touched[0] * num_items + touched[1], num_items, generator)
        tables[name] = pa.table(
            {
                "click": np.tile(np.array([1, 0], np.int8), len(user)),
                "user": np.repeat(user, 2),
                "item": np.stack([item, drawn], axis=1).ravel(),
            }
        )
        if name != "train":
            goals[name] = Goal(
                requests=pa.table(
                    {"user": np.arange(num_users), "item": pa.nulls(num_users, pa.int64())}
                ),
                relevant=ItemLists.of_pairs(user, item, num_users=num_users),
                masked=ItemLists.of_pairs(*before, num_users=num_users),
            )
        before = (touched[0], touched[1])
    schema = Schema(
        fields=(
            Field(name="user", kind="categorical", side="user"),
            Field(name="item", kind="categorical", side="item"),
        ),
        tasks=(Task(name="click"),),
        roles=Roles(user="user", item="item"),
    )
    return RetrievalSet(
        tables=tables,
        schema=schema,
        corpus=pa.table({"item": np.arange(num_items), "user": pa.nulls(num_items, pa.int64())}),
        goals=goals,
        matched=np.zeros(0, np.int64),
        positives=(positives := np.bincount(of_split["train"][1], minlength=num_items)),
        impressions=positives,
    )


def amazon(folder: Path) -> RetrievalSet:
    """Amazon reviews of one department, to be found by what they are and by what came before them.

    Items have an id, their finest category and all their attributes; users the items and categories
    of their last steps; and a pair how many of these steps were in the item's category
    (``log(1 + n)``). The files hold the order of each user's steps and no times, so the split is by
    time within users: the last step is tested, the one before validates, the others train.

    Source:
        Zhou et al., S3-Rec, CIKM 2020, section 4.1 (data, leave-one-out, full ranking).

    Differs from the source:
        A user's earlier steps cannot be found again.
    """
    sequences, attributes = read_amazon(folder)
    category = sequences.columns["category"]
    tables = {}
    for split, unseen in (("train", 2), ("valid", 1), ("test", 0)):
        known = _without_last(sequences, unseen)
        # All steps train; of the later splits each user has one.
        firsts = known.offsets[:-1] if split == "train" else known.offsets[1:] - 1
        # What the test asks for must not be what stopped a training.
        rows, _ = rows_of_steps(known, firsts, seed=_SEED + unseen)
        item = np.searchsorted(sequences.columns["item"], rows["item"].to_numpy())
        rows = rows.append_column("attribute", attributes.take(pa.array(item)))
        tables[split] = rows.append_column("same_category", pa.array(matches_of_rows(rows)))
    count = len(sequences.columns["item"])
    blank = pa.nulls(count, pa.list_(pa.int64()))
    trained = tables["train"]
    gone_for = trained["item"].to_numpy()[trained["click"].to_numpy() == 1]
    places = np.searchsorted(sequences.columns["item"], gone_for)
    positives = np.bincount(places, minlength=count)
    corpus = pa.table(
        {
            **{name: pa.array(values) for name, values in sequences.columns.items()},
            **{f"history_{name}": blank for name in sequences.columns},
            "attribute": attributes,
            "same_category": np.zeros(count, np.float32),
        }
    )
    fields = (
        *fields_of(sequences.columns),
        Field(name="attribute", kind="sequence", side="item", max_length=LONGEST),
        SAME_CATEGORY,
    )
    return RetrievalSet(
        tables=tables,
        schema=Schema(
            fields=fields, tasks=(Task(name="click"),), roles=Roles(user="user", item="item")
        ),
        corpus=corpus,
        goals={
            split: _next_step(_without_last(sequences, unseen), attributes.type)
            for split, unseen in (("valid", 1), ("test", 0))
        },
        matched=category,
        positives=positives,
        impressions=positives,
    )


def same_category(history: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
    """The feature of pairs: ``log(1 + n)`` for n steps of a history in the category of an item.

    These are categories as a log has them; of encoded ones models count it, by
    :class:`tamis.retrieval.inverted_index.PairCount`.

    Args:
        history: (L,) categories of a user's steps.
        items: (C,) category of each item.
    """
    ordered = np.sort(history)
    counts = np.searchsorted(ordered, items, "right") - np.searchsorted(ordered, items, "left")
    feature: NDArray[np.float32] = np.log1p(counts).astype(np.float32)
    return feature


def matches_of_rows(rows: pa.Table) -> NDArray[np.float32]:
    """The feature of pairs (n,) of every row, counted at once.

    Args:
        rows: With the columns ``history_category``, lists, and ``category``.
    """
    history = rows["history_category"].combine_chunks()
    lengths = np.diff(history.offsets.to_numpy())
    own = np.repeat(rows["category"].to_numpy(), lengths)
    is_same = history.flatten().to_numpy() == own
    owner = np.repeat(np.arange(rows.num_rows), lengths)
    counts = np.bincount(owner[is_same], minlength=rows.num_rows)
    return np.log1p(counts).astype(np.float32)


def _without_last(sequences: Sequences, unseen: int) -> Sequences:
    """The same users without their last steps."""
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:] - unseen
    if (ends - starts < 1).any():
        raise DataError(
            f"sequences: every user must have at least {unseen + 1} steps, got "
            f"{int((ends + unseen - starts).min())}. Leave out shorter ones."
        )
    return Sequences(
        steps=sequences.steps[ranges(starts, ends)],
        offsets=np.concatenate([[0], (ends - starts).cumsum()]),
        columns=sequences.columns,
    )


def _next_step(sequences: Sequences, attribute_type: pa.DataType) -> Goal:
    """Each user's last step is to be found, from all the others."""
    users = len(sequences.offsets) - 1
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:] - 1
    target = sequences.steps[ends]
    owner = np.repeat(np.arange(users), ends - starts)
    pairs = np.unique(
        owner * len(sequences.columns["item"]) + sequences.steps[ranges(starts, ends)]
    )
    masked = ItemLists.of_pairs(*np.divmod(pairs, len(sequences.columns["item"])), num_users=users)
    # What somebody returns to is masked, and so cannot be found.
    is_new = ~np.isin(np.arange(users) * len(sequences.columns["item"]) + target, pairs)
    oldest = np.maximum(starts, ends - LONGEST)
    bounds = pa.array(np.concatenate([[0], (ends - oldest).cumsum()]).astype(np.int32))
    history = sequences.steps[ranges(oldest, ends)]
    columns: dict[str, pa.Array] = {"user": pa.array(np.arange(users))}
    for name, values in sequences.columns.items():
        columns[name] = pa.nulls(users, pa.int64())
        columns[f"history_{name}"] = pa.ListArray.from_arrays(bounds, pa.array(values[history]))
    columns["attribute"] = pa.nulls(users, attribute_type)
    columns["same_category"] = pa.array(np.zeros(users, np.float32))
    return Goal(
        requests=pa.table(columns),
        relevant=ItemLists.of_pairs(np.flatnonzero(is_new), target[is_new], num_users=users),
        masked=masked,
    )


def _untouched(
    users: NDArray[np.int64],
    touched: NDArray[np.int64],
    num_items: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """For each user an item, uniform over those whose key ``user * V + item`` is not touched."""
    drawn = generator.integers(num_items, size=len(users))
    while True:
        again = np.flatnonzero(np.isin(users * num_items + drawn, touched))
        if not len(again):
            return drawn
        drawn[again] = generator.integers(num_items, size=len(again))
