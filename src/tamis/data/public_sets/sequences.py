"""Item sequences as click prediction in the manner of DIN: did this item come next?

Each step of a user's sequence, from the second on, is a positive row whose history is all that
came before, and beside it stands a row with an item that the user never touched, drawn uniformly
with a fixed seed. A user's last step is tested, the one before it validates, the others train. The
user is no input: it only groups rows for GAUC.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.public_sets.files import read_parquet
from tamis.data.schema import Field, Roles, Schema, Task

LONGEST = 50
_SEED = 2024


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """What users did, one after the other; user u's steps are ``steps[offsets[u]:offsets[u + 1]]``.

    Shapes: ``steps`` (N,) and ``offsets`` (U + 1,); the item of a step is an index into
    ``columns``.
    """

    steps: NDArray[np.int64]
    """Index of the item of each step."""
    offsets: NDArray[np.int64]
    """Where each user's steps begin, and the end."""
    columns: dict[str, NDArray[np.int64]]
    """Categories of each item, its id among them, by name of the field."""


def amazon(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
    """Amazon reviews of one department, as prepared for S3-Rec; every user has five steps or more.

    Fields are the item and the last of its attributes, which is its finest category.

    Source:
        Zhou et al., S3-Rec, CIKM 2020; DIN's protocol of one drawn item per positive.

    Differs from the source:
        S3-Rec ranks items; here a step is told from one drawn item. The last step but one
        validates, where DIN trains on it.
    """
    return _tables(read_amazon(folder)[0])


def grocery(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
    """Amazon grocery reviews with the category of each item, in the order of their days.

    Of each user's steps the published files hold all but the last two.

    Source:
        Li et al., ReChorus, RecSys 2024.

    Differs from the source:
        Rows and splits are those of the other departments (see :func:`amazon`). Relations between
        items are left out.
    """
    log = read_parquet(folder / "interactions.parquet")
    items = read_parquet(folder / "items.parquet").sort_by("item_id")
    ids = items["item_id"].to_numpy()
    user, time = log["user_id"].to_numpy(), log["time"].to_numpy()
    order = np.lexsort((np.arange(len(user)), time, user))
    _, counts = np.unique(user, return_counts=True)
    return _tables(
        Sequences(
            steps=np.searchsorted(ids, log["item_id"].to_numpy()[order]),
            offsets=np.concatenate([[0], counts.cumsum()]),
            columns={"item": ids.astype(np.int64), "category": items["i_category"].to_numpy()},
        )
    )


def collm_ml1m(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
    """The last twenty months of MovieLens-1M in the published split by time: rating above 3.

    The history holds the films that the user liked before; a leading 0 in it means nothing.

    Source:
        Zhang et al., CoLLM, arXiv:2310.19488.

    Differs from the source:
        Titles, times and the mark of rare users and films are left out.
    """
    tables = {}
    for split in ("train", "valid", "test"):
        table = read_parquet(folder / f"{split}.parquet")
        history = table["history"].combine_chunks()
        values, offsets = history.values.to_numpy(), history.offsets.to_numpy()
        kept = np.concatenate([[0], (values != 0).cumsum()])
        liked = pa.ListArray.from_arrays(
            pa.array(kept[offsets].astype(np.int32)), pa.array(values[values != 0])
        )
        tables[split] = pa.table(
            {
                "click": table["label"],
                "user": table["user_id"],
                "item": table["item_id"],
                "history_item": liked,
            }
        )
    fields = (
        Field(name="user", kind="categorical", side="user"),
        Field(name="item", kind="categorical", side="item"),
        _history("item"),
    )
    return tables, _schema(fields)


def rees46(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
    """Sessions of one day in an electronics shop; a history also has the user's earlier sessions.

    The part named test is tested. The part named valid trains, without the users of the other one,
    whose earlier sessions would show tested events, and but for a tenth of the users, who validate.
    Each event of a session but its very first without earlier ones is a positive. People look at
    things again: one tested positive in seven is in its own history, and no drawn item is.

    Source:
        REES46 eCommerce events, as prepared by NVIDIA Transformers4Rec.

    Differs from the source:
        Transformers4Rec ranks the next item of a session; here an event is told from one drawn
        item. Prices and times are left out.
    """
    parts = {name: read_parquet(folder / f"day1_{name}.parquet") for name in ("valid", "test")}
    names = {"item": "pid", "category": "csid", "brand": "bid"}
    columns = _products(list(parts.values()), names)
    tables = {}
    for name, part in parts.items():
        before, session = (_lists(part, f"{prefix}_pid_seq") for prefix in ("bef_sess", "sess"))
        steps, offsets, firsts = _joined(before, session)
        people = part["user_idx"].to_numpy()
        sequences = Sequences(
            steps=np.searchsorted(columns["item"], steps), offsets=offsets, columns=columns
        )
        table, session_of_row = rows_of_steps(sequences, firsts, people=people)
        if name == "test":
            tables["test"] = table
            continue
        known = np.unique(people)
        validates = np.random.default_rng(_SEED).random(len(known)) < 0.1
        is_valid = validates[np.searchsorted(known, people)]
        is_tested = np.isin(people, parts["test"]["user_idx"].to_numpy())
        for split, chosen in (("train", ~is_valid & ~is_tested), ("valid", is_valid & ~is_tested)):
            tables[split] = table.filter(pa.array(chosen[session_of_row]))
    return tables, _schema(fields_of(columns))


def read_amazon(folder: Path) -> tuple[Sequences, pa.ListArray]:
    """Steps of all users, and the attributes of each item, the finest category last."""
    sequences = read_parquet(folder / "sequences.parquet")["items"].combine_chunks()
    items = read_parquet(folder / "item_attributes.parquet").sort_by("item_id")
    ids = items["item_id"].to_numpy()
    attributes = items["attributes"].combine_chunks()
    ends = attributes.offsets.to_numpy()
    assert (np.diff(ends) > 0).all(), "every item has an attribute in the published files"
    finest = attributes.values.to_numpy()[ends[1:] - 1]
    steps = Sequences(
        steps=np.searchsorted(ids, sequences.values.to_numpy()),
        offsets=sequences.offsets.to_numpy().astype(np.int64),
        columns={"item": ids.astype(np.int64), "category": finest.astype(np.int64)},
    )
    return steps, attributes


def _tables(sequences: Sequences) -> tuple[dict[str, pa.Table], Schema]:
    """Rows of every step but the first; a user's last two steps are those of test and valid."""
    table, user = rows_of_steps(sequences, sequences.offsets[:-1] + 1)
    length = np.diff(sequences.offsets)[user]
    to_the_end = length - 1 - table["step"].to_numpy()
    masks = {"train": to_the_end > 1, "valid": to_the_end == 1, "test": to_the_end == 0}
    tables = {split: table.filter(pa.array(mask)) for split, mask in masks.items()}
    return tables, _schema(fields_of(sequences.columns))


def rows_of_steps(
    sequences: Sequences,
    firsts: NDArray[np.int64],
    people: NDArray[np.int64] | None = None,
    *,
    seed: int = _SEED,
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Positive and drawn rows of each sequence's steps from ``firsts`` on, and its place of each.

    Args:
        sequences: The steps.
        firsts: Where each sequence's rows begin.
        people: Whose each sequence is, where somebody may have several.
        seed: Of what is drawn. Sequences that differ in length alone get the same for each.
    """
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]
    firsts = np.minimum(np.maximum(firsts, starts + 1), ends)
    user = np.repeat(np.arange(len(starts)), ends - firsts)
    place = ranges(firsts, ends)
    people = np.arange(len(starts)) if people is None else people
    _, people = np.unique(people, return_inverse=True)
    drawn = _drawn(sequences, user, people, np.random.default_rng(seed))
    item = np.stack([sequences.steps[place], drawn], axis=1).ravel()
    user, place = np.repeat(user, 2), np.repeat(place, 2)
    oldest = np.maximum(starts[user], place - LONGEST)
    history = sequences.steps[ranges(oldest, place)]
    bounds = pa.array(np.concatenate([[0], (place - oldest).cumsum()]).astype(np.int32))
    columns: dict[str, pa.Array] = {
        "click": pa.array(np.tile(np.array([1, 0], np.int8), len(drawn))),
        "user": pa.array(people[user]),
        "step": pa.array(place - starts[user]),
    }
    for name, values in sequences.columns.items():
        columns[name] = pa.array(values[item])
        columns[f"history_{name}"] = pa.ListArray.from_arrays(bounds, pa.array(values[history]))
    return pa.table(columns), user


def _drawn(
    sequences: Sequences,
    user: NDArray[np.int64],
    people: NDArray[np.int64],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """For each row an item, uniform over those that its person never touched."""
    count = len(sequences.columns["item"])
    owner = np.repeat(people, np.diff(sequences.offsets))
    touched = np.unique(owner * count + sequences.steps)
    drawn = generator.integers(count, size=len(user))
    while True:
        again = np.flatnonzero(np.isin(people[user] * count + drawn, touched))
        if not len(again):
            return drawn
        drawn[again] = generator.integers(count, size=len(again))


def ranges(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """``start, ..., stop - 1`` of each pair, one after the other."""
    lengths = stops - starts
    before = lengths.cumsum() - lengths
    places: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    return places


def _lists(table: pa.Table, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Values and offsets of a list column."""
    column = table[name].combine_chunks()
    return column.values.to_numpy().astype(np.int64), column.offsets.to_numpy().astype(np.int64)


def _joined(
    first: tuple[NDArray[np.int64], NDArray[np.int64]],
    second: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Two lists of each row as one: its values, its offsets, and where the second begins."""
    lengths = [np.diff(offsets) for _, offsets in (first, second)]
    offsets = np.concatenate([[0], (lengths[0] + lengths[1]).cumsum()])
    middle = offsets[:-1] + lengths[0]
    values = np.empty(offsets[-1], np.int64)
    values[ranges(offsets[:-1], middle)] = first[0]
    values[ranges(middle, offsets[1:])] = second[0]
    return values, offsets, middle


def _products(parts: list[pa.Table], names: dict[str, str]) -> dict[str, NDArray[np.int64]]:
    """Categories of every product, as they stand at its first event."""
    events = {
        field: np.concatenate(
            [
                _lists(part, f"{prefix}_{column}_seq")[0]
                for part in parts
                for prefix in ("bef_sess", "sess")
            ]
        )
        for field, column in names.items()
    }
    _, first = np.unique(events["item"], return_index=True)
    return {field: values[first] for field, values in events.items()}


def fields_of(columns: dict[str, NDArray[np.int64]]) -> tuple[Field, ...]:
    """Each category of an item, and the same of every item in the user's history."""
    return (
        *(Field(name=name, kind="categorical", side="item") for name in columns),
        *(_history(name) for name in columns),
    )


def _history(name: str) -> Field:
    return Field(
        name=f"history_{name}",
        kind="sequence",
        side="user",
        shares=name,
        group="history",
        max_length=LONGEST,
    )


def _schema(fields: tuple[Field, ...]) -> Schema:
    return Schema(fields=fields, tasks=(Task(name="click"),), roles=Roles(user="user", item="item"))
