"""A market as a retrieval task: what is kept of the log, who asks, and what is truly worth what."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from tamis import api
from tamis.data.loader import Loader
from tamis.data.market import retrieval
from tamis.data.market.behaviour import Impressions, true_probabilities
from tamis.data.market.retrieval import market_retrieval
from tamis.data.market.running import RunningMarket
from tamis.data.public_sets.retrieval import RetrievalSet
from tamis.errors import DataError
from tamis.models.in_batch_pairs import InBatchPairs

ADS = 300


@pytest.fixture(scope="module")
def task() -> RetrievalSet:
    return market_retrieval(ADS, seed=3, requests=8)


@pytest.fixture(scope="module")
def market() -> RunningMarket:
    """The same market, up to the hour at which everybody asks."""
    market = RunningMarket(retrieval.ROWS_PER_AD * ADS, retrieval._RULES, 3)
    busy = np.flatnonzero(np.diff(market.traffic(), prepend=0) > 0)
    hours = market.hours()
    for _ in range(int((busy < retrieval._ASKED_AT).sum())):
        next(hours)
    return market


def test_rows_keep_all_clicks_and_weigh_as_much_as_the_log(task: RetrievalSet) -> None:
    total = 0.0
    for table in task.tables.values():
        known = table.filter(pc.is_valid(table["click"]))
        click, weight = known["click"].to_numpy(), known["weight"].to_numpy()
        assert set(weight[click == 1]) == {1.0}
        assert set(weight[click == 0]) == {8.0}
        total += float(weight.sum())
    # One impression in eight without a click is kept: 4500 rows have a deviation of some 180.
    assert total == pytest.approx(retrieval.ROWS_PER_AD * ADS, rel=0.15)
    clicks = pc.sum(task.tables["train"]["click"]).as_py()
    assert clicks >= task.positives.sum() > 0.7 * clicks  # those of dead ads are not in the corpus


def test_rows_without_a_label_train_alone_and_are_spread_over_the_living(
    task: RetrievalSet,
) -> None:
    unseen = task.tables["train"].filter(pc.is_null(task.tables["train"]["click"]))
    labelled = task.tables["train"].num_rows - unseen.num_rows

    assert unseen.num_rows == pytest.approx(labelled / 2, rel=0.1)
    assert all(task.tables[split]["click"].null_count == 0 for split in ("valid", "test"))
    # 15 impressions for each ad follow popularity, these do not: many more ads have one.
    drawn = np.bincount(unseen["item"].to_numpy(), minlength=ADS)
    assert drawn.max() < 0.05 * drawn.sum()


def test_true_values_are_the_chances_of_a_click_at_that_hour(
    task: RetrievalSet, market: RunningMarket
) -> None:
    goal = task.goals["test"]
    living = market.living(retrieval._ASKED_AT)
    assert goal.values is not None
    assert task.corpus["item"].to_pylist() == living.tolist()
    for place, user in enumerate(goal.requests["user"].to_pylist()):
        for column in range(0, len(living), 37):
            one = np.array([living[column]], np.int32)
            pair = Impressions(
                user=np.array([user], np.int32),
                ad=one,
                device=market.population.users.device[[user]],
                placement=np.zeros(1, np.int32),
                position=np.ones(1, np.int32),
                daypart=2,  # 8 o'clock is in the third part of four hours
                time=(24 * 13 + 8) / (24 * 14),
                history=market._history[[user]],
            )
            chance = true_probabilities(market.population, pair, market.intercepts, market.rules)
            assert goal.values[place, column] == pytest.approx(chance.click[0], rel=1e-5)


def test_corpus_and_requests_show_what_was_known_then_and_nothing_later(
    task: RetrievalSet, market: RunningMarket
) -> None:
    living = market.living(retrieval._ASKED_AT)
    known = market.ad_columns(living, retrieval._ASKED_AT)
    for name in ("ad_click_rate", "ad_age_days", "price"):
        np.testing.assert_array_equal(task.corpus[name].to_numpy(), known[name])
    goal = task.goals["test"]
    assert set(goal.requests["hour"].to_pylist()) == {8}
    for user, history in zip(
        goal.requests["user"].to_pylist(), goal.requests["history_item"].to_pylist(), strict=True
    ):
        newest_first = market._history[user]
        assert history == newest_first[newest_first >= 0][::-1].tolist()


def test_relevant_items_are_what_was_clicked_later_that_day(task: RetrievalSet) -> None:
    goal, rows = task.goals["test"], task.tables["test"]
    later = rows.filter(pc.and_(pc.equal(rows["click"], 1), pc.greater_equal(rows["hour"], 8)))
    items = task.corpus["item"].to_numpy()
    for user, relevant in zip(
        goal.requests["user"].to_pylist(), goal.relevant.lists(), strict=True
    ):
        clicked = later.filter(pc.equal(later["user"], user))["item"].to_numpy()
        assert set(items[relevant]) == set(clicked) & set(items)
        assert len(relevant)
    assert not goal.masked.ids.size


def test_users_of_both_goals_ask_at_one_hour_and_differ(task: RetrievalSet) -> None:
    goals = task.goals
    users = {split: set(goal.requests["user"].to_pylist()) for split, goal in goals.items()}

    assert len(users["valid"]) == len(users["test"]) > 1
    assert not users["valid"] & users["test"]
    for goal in goals.values():
        assert set(goal.requests["hour"].to_pylist()) == {8}
        assert goal.values is not None
        assert goal.values.shape == (goal.requests.num_rows, task.num_items)
        assert goal.relevant.lengths.all()


def test_ads_are_cold_if_nobody_saw_them_before_everybody_asks(task: RetrievalSet) -> None:
    market = RunningMarket(retrieval.ROWS_PER_AD * ADS, retrieval._RULES, 3)
    busy = np.flatnonzero(np.diff(market.traffic(), prepend=0) > 0)
    shown = np.zeros(ADS, np.int64)
    for hour, (log, _) in zip(busy, market.hours(), strict=False):
        if hour >= retrieval._ASKED_AT:
            break
        shown += np.bincount(log["ad_id"].to_numpy(), minlength=ADS)

    np.testing.assert_array_equal(task.impressions, shown[task.corpus["item"].to_numpy()])


def test_feature_of_pairs_counts_the_history_in_the_category(task: RetrievalSet) -> None:
    for row in task.tables["test"].slice(0, 200).to_pylist():
        count = row["history_category"].count(row["category"])
        assert row["same_category"] == pytest.approx(np.log1p(count), rel=1e-6)


def test_models_can_count_it_for_any_pair(task: RetrievalSet, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    task.write_rows("test", path)
    logs = dict.fromkeys(("train", "valid", "test"), path)
    dataset = api.ingest(logs, tmp_path / "dataset", schema=task.schema)
    column = dataset.spec.numeric.index("same_category")
    loader = Loader(dataset.split("test"), dataset.spec, batch_size=256, shuffle=False)
    for batch in loader.epoch(0):
        rows = torch.arange(batch.num_rows)
        counted = InBatchPairs(dataset.spec).batch(batch, rows, rows)
        torch.testing.assert_close(counted.numeric[:, column], batch.numeric[:, column])
        assert batch.numeric[:, column].any()


def test_same_seed_gives_the_same_task_and_another_one_another(task: RetrievalSet) -> None:
    again, other = (market_retrieval(ADS, seed=seed, requests=8) for seed in (3, 4))
    for split, table in task.tables.items():
        assert table.equals(again.tables[split])
    assert not task.tables["train"].equals(other.tables["train"])


def test_too_few_ads_are_refused() -> None:
    with pytest.raises(DataError, match="num_ads must be at least 100, got 99"):
        market_retrieval(99)
