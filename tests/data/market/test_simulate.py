"""The market keeps its rules: rates, truth, histories, lives of ads."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tamis.data.market import MarketRules, behaviour, simulate
from tamis.data.market.population import populate
from tamis.errors import DataError
from tamis.evaluation import auc

ROWS = 120_000


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("market") / "m"
    simulate(ROWS, out, seed=5)
    return out


@pytest.fixture(scope="module")
def log(market: Path) -> pa.Table:
    return pq.read_table(market / "logs")


@pytest.fixture(scope="module")
def truth(market: Path) -> pa.Table:
    return pq.read_table(market / "truth")


def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(3000, tmp_path / name, seed=seed)

    files = {name: (tmp_path / name / "logs/part-00000.parquet").read_bytes() for name in "abc"}
    assert files["a"] == files["b"] != files["c"]
    assert (tmp_path / "a/market.json").read_text() == (tmp_path / "b/market.json").read_text()


def test_log_has_as_many_rows_as_asked_for(tmp_path: Path) -> None:
    simulate(1003, tmp_path / "m")

    assert pq.read_metadata(tmp_path / "m/logs/part-00000.parquet").num_rows == 1003
    assert pq.read_metadata(tmp_path / "m/truth/part-00000.parquet").num_rows == 1003


def test_base_rates_are_those_of_the_rules(market: Path) -> None:
    rates = json.loads((market / "market.json").read_text())["base_rates"]

    assert rates["click"] == pytest.approx(0.03, rel=0.25)
    assert rates["conversion"] == pytest.approx(0.05, rel=0.4)
    assert rates["hide"] == pytest.approx(0.005, rel=0.25)


def test_conversions_follow_clicks_and_come_later(log: pa.Table) -> None:
    clicked = np.asarray(log["click"]) == 1
    assert log["conversion"].is_valid().to_numpy().tolist() == clicked.tolist()
    converted = log.filter(pc.equal(pc.fill_null(log["conversion"], 0), 1))
    assert converted.num_rows > 20
    later = pc.greater(converted["conversion_time"], converted["event_time"])
    assert pc.all(later).as_py()


@pytest.mark.parametrize("task", ["click", "hide"])
def test_labels_agree_with_the_truth_at_every_level(
    log: pa.Table, truth: pa.Table, task: str
) -> None:
    assert log["impression_id"].equals(truth["impression_id"])
    probability = truth[task].to_numpy()
    labels = log[task].to_numpy()
    for part in np.array_split(np.argsort(probability), 10):
        expected = probability[part].mean()
        error = np.sqrt((probability[part] * (1 - probability[part])).mean() / len(part))
        assert abs(labels[part].mean() - expected) < 4.5 * error


def test_true_probabilities_rank_well_but_not_perfectly(log: pa.Table, truth: pa.Table) -> None:
    reached = auc(log["click"].to_numpy(), truth["click"].to_numpy())

    assert 0.7 < reached < 0.85


def test_history_is_what_the_user_clicked_in_earlier_hours(log: pa.Table) -> None:
    hours = pc.cast(pc.floor_temporal(log["event_time"], unit="hour"), pa.int64()).to_numpy()
    users, ads = log["user_id"].to_numpy(), log["ad_id"].to_numpy()
    clicked = log["click"].to_numpy() == 1
    busiest = np.bincount(users[clicked]).argsort()[-5:]
    checked = 0
    for user in busiest.tolist():
        rows = np.flatnonzero(users == user)
        for row in rows[-40:].tolist():
            before = rows[clicked[rows] & (hours[rows] < hours[row])]
            expected = ads[before][-MarketRules().history :].tolist()
            assert log["history_ads"][row].as_py() == expected
            checked += len(expected)
    assert checked > 100


def test_ads_are_shown_while_they_live_and_once_in_a_slate(log: pa.Table) -> None:
    assert log["ad_age_days"].to_numpy().min() >= 0
    requests, ads = log["request_id"].to_numpy(), log["ad_id"].to_numpy()
    pairs = np.unique(requests.astype(np.int64) * 1_000_000 + ads)
    # A slate repeats an ad only where the draw held fewer than four different ones.
    assert len(pairs) > 0.9995 * len(ads)
    first_day = set(ads[: ROWS // 14].tolist())
    last_day = set(ads[-ROWS // 14 :].tolist())
    # Ads are born and leave: a good part of what the last day shows did not exist on the first.
    assert len(last_day - first_day) > 0.3 * len(last_day)


def test_few_ads_and_users_have_most_of_the_impressions(log: pa.Table) -> None:
    for column in ("ad_id", "user_id"):
        counts = np.sort(np.bincount(log[column].to_numpy()))[::-1]
        counts = counts[counts > 0]
        assert counts[: len(counts) // 10].sum() > 0.25 * counts.sum()


def test_click_rate_falls_with_the_position(log: pa.Table) -> None:
    position, click = log["position"].to_numpy(), log["click"].to_numpy()
    rates = [click[position == p].mean() for p in (1, 2, 4)]

    assert rates[0] > rates[1] > rates[2]


def test_taste_turns_over_the_log() -> None:
    rules = MarketRules()
    users = populate(100_000, rules, seed=0).users
    everyone = np.arange(len(users.age), dtype=np.int32)

    start, end = users.taste_at(everyone, 0.0), users.taste_at(everyone, 1.0)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float(((a * b).sum(1) / norms).mean())

    assert cosine(start, start) == pytest.approx(1.0, abs=1e-5)
    # The mean cosine of an angle of standard deviation 0.8 is exp(-0.32) = 0.73.
    assert cosine(start, end) == pytest.approx(0.73, abs=0.06)


def test_third_order_effects_are_more_than_sums_of_pairs() -> None:
    table = populate(1000, MarketRules(), seed=0).interactions.age_category_daypart.astype(float)
    parts = table - table.mean()
    for axis in range(3):
        parts = parts - parts.mean(axis=axis, keepdims=True)
    # What is left after removing the mean over each axis cannot be written as effects of pairs.
    assert parts.std() > 0.3


def test_intercept_reaches_the_rate() -> None:
    logits = np.random.default_rng(0).normal(0, 1.5, 10_000).astype(np.float32)

    intercept = behaviour.intercept_for(logits, 0.03)

    assert behaviour.sigmoid(logits + intercept).mean() == pytest.approx(0.03, abs=1e-6)


def test_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")

    with pytest.raises(DataError, match="must not exist or be empty"):
        simulate(1000, tmp_path)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows: must be at least 1000, got 10"):
        simulate(10, tmp_path / "m")
