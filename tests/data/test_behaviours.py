"""What users of public sets did: order, labels, and nothing of the future in what is known."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.public_sets.behaviours import (
    BEHAVIOURS,
    LONGEST_HISTORY,
    Behaviours,
    movielens_1m,
    retailrocket_multibehavior,
)
from tamis.errors import DataError


@pytest.fixture
def films(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    users = np.repeat([10, 20, 30], 40)
    movies = np.concatenate([generator.permutation(60)[:40] + 1 for _ in range(3)])
    pq.write_table(
        pa.table(
            {
                "user_id": pa.array(users, pa.int32()),
                "movie_id": pa.array(movies, pa.int32()),
                "rating": pa.array(generator.integers(1, 6, 120), pa.int8()),
            }
        ),
        tmp_path / "ratings_no_time.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "user_id": [10, 20, 30],
                "gender": ["F", "M", "M"],
                "age": [1, 18, 25],
                "occupation": [0, 1, 2],
                "zip": ["1", "2", "3"],
            }
        ),
        tmp_path / "users.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "movie_id": np.arange(1, 61),
                "title": [f"Film {k} ({1980 + k % 30})" for k in range(60)],
                "genres": ["Drama|War" if k % 2 else "Comedy" for k in range(60)],
            }
        ),
        tmp_path / "movies.parquet",
    )
    return tmp_path


def _write_shop(folder: Path, rows: list[tuple[int, int, str, int]]) -> Path:
    columns = zip(*rows, strict=True)
    names = ("user_id", "item_id", "behavior", "timestamp")
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), folder / "train.parquet")
    return folder


SHOP = [
    (0, 2, "buy", 50),
    (0, 2, "view", 10),
    (0, 1, "view", 20),
    (1, 1, "cart", 15),
    (1, 0, "view", 40),
    (1, 2, "buy", 30),
]


def test_a_pair_is_one_event_at_its_first_contact_with_all_that_came_of_it(
    tmp_path: Path,
) -> None:
    found = retailrocket_multibehavior(_write_shop(tmp_path, SHOP))
    # By first contact: (0, 2) at 10, (1, 1) at 15, (0, 1) at 20, (1, 2) at 30, (1, 0) at 40.
    assert list(zip(found.user.tolist(), found.item.tolist(), strict=True)) == [
        *((0, 2), (1, 1), (0, 1), (1, 2), (1, 0)),
    ]
    assert found.conversion.tolist() == [True, False, False, True, False]
    assert found.quality.tolist() == [False, True, False, False, False]
    # Parts of 60, 20 and 20 % of five events.
    assert found.part.tolist() == [0, 0, 0, 1, 2]
    # Counts are of the first part alone.
    assert found.items["item_events"].to_pylist() == [0, 2, 1]
    assert found.items["item_buys"].to_pylist() == [0, 0, 1]
    assert found.users["user_events"].to_pylist() == [2, 1]


def test_what_is_known_does_not_change_with_the_future(tmp_path: Path) -> None:
    before = retailrocket_multibehavior(_write_shop(tmp_path, SHOP))
    poisoned = [(u, 0 if t == 40 else i, b, t) for u, i, b, t in SHOP]
    poisoned[5] = (1, 2, "cart", 30)
    after = retailrocket_multibehavior(_write_shop(tmp_path, poisoned))

    assert after.items.equals(before.items)
    assert after.users.equals(before.users)
    events = np.arange(3)
    assert after.histories(events).equals(before.histories(events))


def test_unknown_behaviour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be view, cart or buy, got 'wish'"):
        retailrocket_multibehavior(_write_shop(tmp_path, [*SHOP, (0, 0, "wish", 1)]))


def test_ratings_are_labels_and_every_user_has_all_three_parts(films: Path) -> None:
    found = movielens_1m(films)
    log = pq.read_table(films / "ratings_no_time.parquet")
    rating = {
        (user, movie): value
        for user, movie, value in zip(
            *(log[name].to_pylist() for name in log.column_names), strict=True
        )
    }
    users, items = found.users["user"].to_pylist(), found.items["item"].to_pylist()
    assert len(found.user) == len(rating) == 120
    for at in range(120):
        value = rating[users[found.user[at]], items[found.item[at]]]
        assert (found.conversion[at], found.quality[at]) == (value >= 4, value <= 2)
    for user in range(3):
        assert np.bincount(found.part[found.user == user]).tolist() == [24, 8, 8]
    assert (np.diff(found.part) >= 0).all()
    # One genre and decade, one advertiser: 2 genres, 3 decades from 1980.
    assert len(set(found.advertiser.tolist())) == 6


def test_a_rated_film_that_is_not_in_the_table_is_refused(films: Path) -> None:
    movies = pq.read_table(films / "movies.parquet")
    pq.write_table(movies.slice(0, 10), films / "movies.parquet")
    with pytest.raises(DataError, match="must be in its table"):
        movielens_1m(films)


def test_histories_are_those_of_a_loop(films: Path) -> None:
    found = movielens_1m(films)
    ids = found.items["item"].to_numpy()
    events = np.array([0, 5, 119, 70, 70])
    expected = [
        [
            int(ids[found.item[earlier]])
            for earlier in range(event)
            if found.user[earlier] == found.user[event]
        ][-LONGEST_HISTORY:]
        for event in events
    ]
    assert found.histories(events).to_pylist() == expected
    assert len(expected[2]) == LONGEST_HISTORY
    bounds, items = found.earlier(np.array([119]))
    assert bounds.tolist() == [0, 39]
    assert len(np.unique(items)) == 39


@pytest.mark.parametrize(
    ("name", "events", "conversions", "quality"),
    [
        # 348,971 ratings of 4, 226,310 of 5; 56,174 of 1 and 107,557 of 2.
        ("movielens_1m", 1_000_209, 348_971 + 226_310, 56_174 + 107_557),
        ("retailrocket_multibehavior", None, 9_551, 12_456),
    ],
)
def test_published_counts(name: str, events: int | None, conversions: int, quality: int) -> None:
    root = os.environ.get("TAMIS_DATA")
    if not root:
        pytest.skip("TAMIS_DATA is not set: the public sets are not at hand")
    found: Behaviours = BEHAVIOURS[name](Path(root) / name)
    assert events is None or len(found.user) == events
    assert found.conversion.sum() == conversions
    assert found.quality.sum() == quality
    pairs = found.user * found.items.num_rows + found.item
    assert len(np.unique(pairs)) == len(pairs)
