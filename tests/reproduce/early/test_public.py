"""Rows and candidates of a simulated cascade over events that are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.public_sets.behaviours import Behaviours, retailrocket_multibehavior
from tamis.data.public_sets.files import SPLITS
from tamis.errors import DataError
from tamis.reproduce.early.cascade import Rows
from tamis.reproduce.early.public import _Simulator, _World, make_public_study
from tamis.reproduce.early.variants import CascadeSizes, PublicCascade

CASCADE = PublicCascade(
    sizes=CascadeSizes(keep=8, slots=3, train_requests=20, test_requests=10),
    dataset="retailrocket_multibehavior",
    candidates=12,
    teacher_events=60,
    negatives=3,
    quality_task="cart",
)
NUM_ITEMS = 40


@pytest.fixture
def found(tmp_path: Path) -> Behaviours:
    generator = np.random.default_rng(0)
    count = 400
    # The last item is never met, so that there is always another one to draw.
    item = np.minimum(generator.integers(0, NUM_ITEMS, count) ** 2 // NUM_ITEMS, NUM_ITEMS - 1)
    item[0] = NUM_ITEMS - 1
    pq.write_table(
        pa.table(
            {
                "user_id": generator.integers(0, 15, count),
                "item_id": item,
                "behavior": generator.choice(["view", "cart", "buy"], count),
                "timestamp": np.arange(count),
            }
        ),
        tmp_path / "train.parquet",
    )
    return retailrocket_multibehavior(tmp_path)


def test_rows_are_events_beside_items_that_their_users_had_not_met(
    found: Behaviours, tmp_path: Path
) -> None:
    world = _World(found, CASCADE)
    files = world.write_rows(tmp_path, world.events_of(0), num_splits=3)

    first = found.part == 0
    met = set(zip(found.user[first].tolist(), found.item[first].tolist(), strict=True))
    by_pair = {pair: at for at, pair in enumerate(zip(found.user, found.item, strict=True))}
    positives = 0
    for split in SPLITS:
        for row in pq.read_table(files[split]).to_pylist():
            pair = (row["user"], row["item"])
            assert (row["click"] == 1) == (pair in met)
            if row["click"]:
                event = by_pair[pair]
                assert found.part[event] == 0
                assert row["conversion"] == found.conversion[event]
                assert row["cart"] == found.quality[event]
                positives += 1
            else:
                assert (row["conversion"], row["cart"]) == (None, 0.0)
    assert positives == CASCADE.teacher_events


def test_rows_to_learn_from_do_not_depend_on_what_comes_later(
    found: Behaviours, tmp_path: Path
) -> None:
    later = np.flatnonzero(found.part > 0)
    # Other items in the future, as long as no user meets an item twice.
    pairs = found.user * NUM_ITEMS + found.item
    other = NUM_ITEMS - 1 - found.item
    is_free = ~np.isin(found.user * NUM_ITEMS + other, pairs) & (found.part > 0)
    item = np.where(is_free, other, found.item)
    assert is_free.sum() > len(later) / 2
    poisoned = replace(
        found,
        item=item,
        conversion=np.where(found.part > 0, ~found.conversion, found.conversion),
        quality=np.where(found.part > 0, ~found.quality, found.quality),
    )
    rows = []
    for name, behaviours in (("as-is", found), ("poisoned", poisoned)):
        world = _World(behaviours, CASCADE)
        files = world.write_rows(tmp_path / name, world.events_of(0), num_splits=3)
        rows.append([pq.read_table(files[split]) for split in SPLITS])

    assert all(one.equals(other) for one, other in zip(*rows, strict=True))
    # And what they meet later on does stand among the others.
    drawn = pa.concat_tables(rows[0])
    keys = drawn["user"].to_numpy() * NUM_ITEMS + drawn["item"].to_numpy()
    assert np.isin(keys, pairs[later]).sum() > 5


@pytest.mark.parametrize("parts", [(0,), (0, 1, 2)])
def test_counts_of_a_row_are_those_before_its_event(
    found: Behaviours, tmp_path: Path, parts: tuple[int, ...]
) -> None:
    world = _World(found, CASCADE)
    events = world.events_of(*parts)
    files = world.write_rows(tmp_path, events, num_splits=2)
    rows = pa.concat_tables([pq.read_table(file) for file in files.values()]).to_pylist()
    by_pair = {pair: at for at, pair in enumerate(zip(found.user, found.item, strict=True))}
    event = -1
    for row in rows:
        if row["click"]:  # the rows after it are of the same event
            event = by_pair[row["user"], row["item"]]
        earlier = [at for at in range(event) if found.part[at] == 0]
        of_item = [at for at in earlier if found.item[at] == row["item"]]
        assert row["item_events"] == len(of_item)
        assert row["item_buys"] == sum(found.conversion[at] for at in of_item)
        assert row["user_events"] == sum(found.user[at] == row["user"] for at in earlier)


def test_counts_of_requests_are_those_of_the_whole_first_part(found: Behaviours) -> None:
    later = np.flatnonzero(found.part > 0)
    counts = found.counts_before(later, found.item[later])

    for name in ("item_events", "item_buys"):
        np.testing.assert_array_equal(counts[name], found.items[name].to_numpy()[found.item[later]])
    np.testing.assert_array_equal(
        counts["user_events"], found.users["user_events"].to_numpy()[found.user[later]]
    )


def test_splits_are_in_order_of_time(found: Behaviours, tmp_path: Path) -> None:
    world = _World(found, CASCADE)
    files = world.write_rows(tmp_path, world.events_of(0), num_splits=3)
    counts = [np.count_nonzero(pq.read_table(files[split])["click"].to_numpy()) for split in SPLITS]
    assert counts == [48, 6, 6]


def test_candidates_are_the_event_s_item_and_others_that_the_user_has_not_met(
    found: Behaviours,
) -> None:
    world = _World(found, CASCADE)
    simulator = object.__new__(_Simulator)
    simulator._world, simulator._cascade = world, CASCADE
    events = np.flatnonzero(found.part == 1)
    drawn = simulator._candidates(events, np.random.default_rng(1))

    assert drawn.shape == (len(events), CASCADE.candidates)
    for row, event in enumerate(events):
        earlier = {
            int(found.item[at]) for at in range(event) if found.user[at] == found.user[event]
        }
        own = drawn[row].tolist()
        assert found.item[event] in own
        assert len(set(own)) == CASCADE.candidates
        left = NUM_ITEMS - len(earlier)
        # Where fewer are left than candidates are asked for, met ones fill the list.
        if left >= CASCADE.candidates:
            assert not earlier & set(own)


def test_popular_items_are_drawn_more_often(found: Behaviours) -> None:
    world = _World(found, CASCADE)
    simulator = object.__new__(_Simulator)
    simulator._world, simulator._cascade = world, CASCADE
    events = np.flatnonzero(found.part == 1)[:1].repeat(2000)
    drawn = simulator._candidates(events, np.random.default_rng(1))
    _, met = found.earlier(events[:1])
    free = np.setdiff1d(np.arange(NUM_ITEMS), [*met, found.item[events[0]]])
    times = np.bincount(drawn.ravel(), minlength=NUM_ITEMS)[free]
    popularity = world.log_popularity[free]
    assert np.corrcoef(times, np.exp(popularity))[0, 1] > 0.9


def test_drawn_labels_are_counted_among_impressions_of_the_log_and_of_those_that_judge(
    found: Behaviours,
) -> None:
    world = _World(found, CASCADE)
    simulator = _Simulator(world, CASCADE, *[cast(Any, None)] * 4)
    never_met = NUM_ITEMS - 1
    generator = np.random.default_rng(0)
    for part, shown in ((1, [0, 1, 2]), (2, [0])):
        events = np.flatnonzero(found.part == part)[:3]
        # The item of each event, and one that nobody meets then, of which some are not shown.
        rows = Rows(
            row=np.tile(np.arange(3), 2),
            place=np.zeros(6, np.int64),
            pool=np.array([0, 0, 0, *(0 if at in shown else 1 for at in range(3))], np.int8),
            sampling_rate=np.ones(6),
            final={},
        )
        candidate = np.concatenate([found.item[events], np.full(3, never_met)])
        chances = {task: np.full(6, 0.5) for task in found.tasks}
        simulator._labels(events, rows, candidate, chances, generator, judged=part == 2)

    # Three of six impressions of the log, one of four of those that judge.
    assert simulator.simulated_share(judged=False) == 0.5
    assert simulator.simulated_share(judged=True) == 0.25


def test_a_set_that_is_not_at_hand_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Set TAMIS_DATA or --data"):
        make_public_study(CASCADE, None, tmp_path, tmp_path, tmp_path)
