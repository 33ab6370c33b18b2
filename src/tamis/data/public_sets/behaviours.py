"""Public sets as what users did with items: the ground that a cascade of ads is simulated over.

An event is a user's first contact with an item, and all that came of it: the click, whether it
converted, and whether the user said how good it was. Nobody logged what else users were offered;
what they would have done with it is for an oracle to say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tamis.data.public_sets.files import read_parquet
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import DataError

LONGEST_HISTORY = 20
_SEED = 2024
_PARTS = (0.6, 0.8)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Behaviours:
    """E events of U users with V items, by time; of equal times in no order."""

    user: NDArray[np.int64]
    """(E,) row of ``users``."""
    item: NDArray[np.int64]
    """(E,) row of ``items``; a user meets an item once."""
    part: NDArray[np.int8]
    """(E,) 0 for the events that train the stages, 1 for those of the log, 2 for the test."""
    conversion: NDArray[np.bool_]
    """(E,) whether the click converted."""
    quality: NDArray[np.bool_]
    """(E,) whether the quality event came."""
    users: pa.Table
    """U rows: ``user`` and what is known of each."""
    items: pa.Table
    """V rows: ``item`` and what is known of each."""
    advertiser: NDArray[np.int64]
    """(V,) whose ad an item is."""
    quality_task: str
    """Name of the quality event."""
    quality_is_bad: bool
    """Whether it says that the user did not like the item."""
    schema: Schema
    """Of a row: a user, an item, and the items of the user's ``history``."""

    @property
    def tasks(self) -> tuple[str, str, str]:
        """Click, conversion and quality by name."""
        return "click", "conversion", self.quality_task

    def earlier(
        self, event: NDArray[np.int64], *, longest: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The items that each event's user met before it, the oldest first.

        Args:
            event: (n,) events.
            longest: Keep the last so many; None for all.

        Returns:
            Bounds (n + 1,), and the rows of the items between them.
        """
        order = np.argsort(self.user, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        start = np.searchsorted(self.user[order], self.user[event])
        stop = place[event]
        if longest is not None:
            start = np.maximum(start, stop - longest)
        bounds = np.concatenate([[0], np.cumsum(stop - start)])
        inside = np.arange(bounds[-1]) - np.repeat(bounds[:-1] - start, stop - start)
        return bounds, self.item[order[inside]]

    def counts_before(
        self, event: NDArray[np.int64], item: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        """The columns of counts as they were when each of n events came, for its user and an item.

        The tables hold the counts of the whole first part. Rows of that very part would find
        themselves among them: an item without a buy would never be bought there, and yet be bought
        later on. Events of later parts do not count, as in the tables, whose numbers these are for
        every event of a later part.

        Args:
            event: (n,) events.
            item: (n,) the item beside each, which need not be its own.
        """
        first = np.flatnonzero(self.part == 0)
        counted = {
            "user_events": (self.user, first, self.user[event]),
            "item_events": (self.item, first, item),
            "item_buys": (self.item, first[self.conversion[first]], item),
        }
        columns = {*self.users.column_names, *self.items.column_names}
        return {
            name: _events_before(of, events, wanted, event)
            for name, (of, events, wanted) in counted.items()
            if name in columns
        }

    def histories(self, event: NDArray[np.int64]) -> pa.Array:
        """The last items before each of n events as lists, for the field ``history``."""
        bounds, items = self.earlier(event, longest=LONGEST_HISTORY)
        known = self.items["item"].to_numpy()[items]
        return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), pa.array(known))


def movielens_1m(folder: Path) -> Behaviours:
    """Films: a rating is a click, one of at least 4 a conversion, one of at most 2 a hide.

    The ratings at hand have no time stamps, so that a fixed random order of each user's ratings
    stands for it: nothing here drifts, and what a model knows of earlier days is as good as ever.
    Advertisers are the films of one genre and decade.

    Source:
        Harper and Konstan, The MovieLens Datasets: History and Context, TiiS 2015.

    Differs from the source:
        There are ratings alone; what they are as clicks, conversions and hides, their order and the
        advertisers are choices of this library.
    """
    ratings = read_parquet(folder / "ratings_no_time.parquet")
    users = read_parquet(folder / "users.parquet")
    movies = read_parquet(folder / "movies.parquet")
    user = _rows_of(users["user_id"], ratings["user_id"], folder)
    item = _rows_of(movies["movie_id"], ratings["movie_id"], folder)
    rating = ratings["rating"].to_numpy()
    # Time is the share of the user's ratings that came before.
    shuffled = np.random.default_rng(_SEED).permutation(len(user))
    shuffled = shuffled[np.argsort(user[shuffled], kind="stable")]
    counts = np.bincount(user, minlength=users.num_rows)
    before = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    time = before / np.repeat(counts, counts)
    order = np.argsort(time, kind="stable")
    events, time = shuffled[order], time[order]
    year = pc.struct_field(pc.extract_regex(movies["title"], r"\((?P<year>\d{4})\)\s*$"), "year")
    decade = pc.cast(year, pa.int64()).fill_null(0).to_numpy(zero_copy_only=False) // 10
    genre = pc.list_element(pc.split_pattern(movies["genres"], "|"), 0)
    codes = genre.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    _, advertiser = np.unique(codes * 1000 + decade, return_inverse=True)
    part = np.searchsorted(_PARTS, time, side="right").astype(np.int8)
    return Behaviours(
        user=user[events],
        item=item[events],
        part=part,
        conversion=rating[events] >= 4,
        quality=rating[events] <= 2,
        users=pa.table(
            {
                "user": users["user_id"],
                **{name: users[name] for name in ("gender", "age", "occupation", "zip")},
            }
        ),
        items=pa.table(
            {
                "item": movies["movie_id"],
                "year": year,
                "genres": movies["genres"],
                **_counts("item", item[events][part == 0], movies.num_rows),
            }
        ),
        advertiser=advertiser.astype(np.int64),
        quality_task="hide",
        quality_is_bad=True,
        schema=_schema(
            "hide",
            Field(name="gender", kind="categorical", side="user"),
            Field(name="age", kind="categorical", side="user"),
            Field(name="occupation", kind="categorical", side="user"),
            Field(name="zip", kind="categorical", side="user", min_count=3),
            Field(name="year", kind="categorical", side="item"),
            Field(name="genres", kind="sequence", side="item", separator="|", max_length=6),
            Field(name="item_events", kind="numeric", side="item", transform="log"),
        ),
    )


def retailrocket_multibehavior(folder: Path) -> Behaviours:
    """A shop: whatever a user did with an item is a click, buying converts, a cart is quality.

    Items are known by their number and by how often they were viewed and bought in the first part;
    users, all of them buyers, by how much they did there. Advertisers are drawn.

    Source:
        Retailrocket recommender system data set, Kaggle, in the preparation of SSLRec.

    Differs from the source:
        SSLRec recommends what a user buys; here events are clicks with their outcomes, and the
        advertisers are made up.
    """
    log = read_parquet(folder / "train.parquet")
    kind = log["behavior"].to_numpy(zero_copy_only=False).astype(np.str_)
    user, item = (log[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id"))
    unknown = sorted(set(kind.tolist()) - {"view", "cart", "buy"})
    if unknown:
        raise DataError(
            f"{folder}: behavior must be view, cart or buy, got {unknown[0]!r}. Mend the file."
        )
    num_users, num_items = int(user.max()) + 1, int(item.max()) + 1
    pair, of_pair = np.unique(user * num_items + item, return_inverse=True)
    first = np.full(len(pair), np.iinfo(np.int64).max)
    np.minimum.at(first, of_pair, log["timestamp"].to_numpy())
    order = np.argsort(first, kind="stable")
    bought, carted = (
        (np.bincount(of_pair[kind == name], minlength=len(pair)) > 0)[order]
        for name in ("buy", "cart")
    )
    user, item = np.divmod(pair[order], num_items)
    part = np.searchsorted(_PARTS, np.arange(len(order)) / len(order), side="right")
    early = part == 0
    numbers = np.random.default_rng(_SEED).integers(0, max(2, num_items // 100), num_items)
    return Behaviours(
        user=user,
        item=item,
        part=part.astype(np.int8),
        conversion=bought,
        quality=carted,
        users=pa.table({"user": np.arange(num_users), **_counts("user", user[early], num_users)}),
        items=pa.table(
            {
                "item": np.arange(num_items),
                **_counts("item", item[early], num_items),
                "item_buys": np.bincount(item[early & bought], minlength=num_items).astype(
                    np.float32
                ),
            }
        ),
        advertiser=numbers,
        quality_task="cart",
        quality_is_bad=False,
        schema=_schema(
            "cart",
            Field(name="user_events", kind="numeric", side="user", transform="log"),
            Field(name="item_events", kind="numeric", side="item", transform="log"),
            Field(name="item_buys", kind="numeric", side="item", transform="log"),
        ),
    )


BEHAVIOURS: dict[str, Callable[[Path], Behaviours]] = {
    "movielens_1m": movielens_1m,
    "retailrocket_multibehavior": retailrocket_multibehavior,
}
"""Reader of each set, from its folder, whose name is the set's."""


def _schema(quality_task: str, *fields: Field) -> Schema:
    return Schema(
        fields=(
            Field(name="user", kind="categorical", side="user"),
            Field(name="item", kind="categorical", side="item", min_count=2),
            *fields,
            Field(
                name="history",
                kind="sequence",
                side="user",
                shares="item",
                max_length=LONGEST_HISTORY,
            ),
        ),
        tasks=(
            Task(name="click"),
            Task(name="conversion", observed_when="click"),
            Task(name=quality_task),
        ),
        roles=Roles(user="user", item="item"),
    )


def _counts(side: str, of: NDArray[np.int64], size: int) -> dict[str, NDArray[np.float32]]:
    """Events of each user or item in the first part: later ones are not known to any stage."""
    return {f"{side}_events": np.bincount(of, minlength=size).astype(np.float32)}


def _events_before(
    of: NDArray[np.int64],
    events: NDArray[np.int64],
    wanted: NDArray[np.int64],
    event: NDArray[np.int64],
) -> NDArray[np.float32]:
    """How many of some events are of the wanted user or item, and came before another event."""
    keys = np.sort(of[events] * len(of) + events)
    first = wanted * len(of)
    count = np.searchsorted(keys, first + event) - np.searchsorted(keys, first)
    return count.astype(np.float32)


def _rows_of(known: pa.ChunkedArray, wanted: pa.ChunkedArray, folder: Path) -> NDArray[np.int64]:
    found = pc.index_in(pc.cast(wanted, known.type), known)
    if found.null_count:
        raise DataError(
            f"{folder}: every user and film that is rated must be in its table, got "
            f"{found.null_count} ratings of others. Mend the files."
        )
    rows: NDArray[np.int64] = found.to_numpy().astype(np.int64)
    return rows
