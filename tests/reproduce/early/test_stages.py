"""Stages of a cascade: what they may see, how large they must be, and what an ad is worth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.market import market_schema
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import ConfigError, TamisError
from tamis.funnel.value import ValueFunction
from tamis.reproduce.early.stages import (
    QUALITY_SHARE,
    draw_ads,
    draw_bids,
    early_schema,
    open_stages,
    train_stages,
    value_weights,
)

from .conftest import RECIPE

RATES = {"click": 0.04, "conversion": 0.2, "hide": 0.01}
TASKS = ("click", "conversion", "hide")


def test_the_early_stage_sees_all_but_the_histories_of_users() -> None:
    whole, fewer = market_schema(), early_schema(market_schema())
    missing = {item.name for item in whole.fields} - {item.name for item in fewer.fields}
    assert missing == {"history_ads", "history_categories"}
    assert fewer.tasks == whole.tasks


def test_words_of_an_ad_are_no_history(early_schema_of_ads: Schema) -> None:
    assert early_schema(early_schema_of_ads) == early_schema_of_ads


def test_hides_cost_and_carts_earn_their_share_of_what_bids_are_worth() -> None:
    bid = np.array([1.0, 3.0])
    for is_bad in (True, False):
        weights = value_weights(TASKS, bid, RATES, is_bad=is_bad)
        events = {**RATES, "hide": 0.01}
        worth = ValueFunction(weights).score(events, bid, "click")
        # Bids are worth 2 * 0.04 = 0.08 on average, and quality 15 % of that.
        change = (worth - bid * 0.04).mean() / 0.08
        assert change == pytest.approx(-QUALITY_SHARE if is_bad else QUALITY_SHARE)


def test_ways_to_pay_are_worth_the_same_on_average() -> None:
    ads = draw_ads(np.array([2.0, 2.0]), np.array([4, 7]), RATES["conversion"])
    assert ads.billing.tolist() == ["click", "conversion"]
    value = ValueFunction(value_weights(TASKS, ads.bid, RATES, is_bad=True))
    by_click, by_conversion = ads.total_value(
        value, {name: np.full(2, rate) for name, rate in RATES.items()}, np.arange(2)
    )
    assert by_click == pytest.approx(by_conversion)


def test_ads_of_one_advertiser_bid_alike() -> None:
    bids = draw_bids(np.array([0, 1, 0, 5]), seed=0)
    assert bids[0] == bids[2] != bids[1]
    assert (bids > 0).all()


def _write_log(folder: Path) -> dict[str, Path]:
    generator = np.random.default_rng(0)
    files = {}
    for split, count in (("train", 400), ("valid", 100), ("test", 100)):
        click = generator.random(count) < 0.4
        files[split] = folder / f"{split}.parquet"
        pq.write_table(
            pa.table(
                {
                    "user": generator.integers(0, 9, count),
                    "ad": generator.integers(0, 7, count),
                    "history": [[int(k) for k in range(at % 3)] for at in range(count)],
                    "click": click.astype(np.int8),
                    "hide": (generator.random(count) < 0.2).astype(np.int8),
                }
            ),
            files[split],
        )
    return files


SCHEMA = Schema(
    fields=(
        Field(name="user", kind="categorical", side="user"),
        Field(name="ad", kind="categorical", side="item"),
        Field(name="history", kind="sequence", side="user", shares="ad"),
    ),
    tasks=(Task(name="click"), Task(name="hide")),
    roles=Roles(user="user"),
)


def _recipes(folder: Path, teacher_units: str) -> Path:
    (folder / "incumbent.toml").write_text(RECIPE)
    (folder / "teacher.toml").write_text(
        f'[model]\nname = "din"\nembedding_dim = 4\nhidden_units = {teacher_units}\n'
        f"[training]\nbatch_size = 200\nmax_epochs = 1\n"
    )
    return folder


def test_rates_are_those_of_the_training_rows(tmp_path: Path) -> None:
    files = _write_log(tmp_path)
    train_stages(
        files, SCHEMA, early_schema(SCHEMA), _recipes(tmp_path, "[64, 32]"), tmp_path / "work"
    )
    earlier = open_stages(tmp_path / "work")
    train = pq.read_table(files["train"])
    assert earlier.rates == {
        task: pytest.approx(train[task].to_numpy().mean()) for task in ("click", "hide")
    }
    assert set(earlier.notes["ne"]) == {"click", "hide"}
    assert set(earlier.notes["early_ne"]) == {"click"}


def test_after_a_signal_the_next_stage_is_not_trained(tmp_path: Path, stopped: list[str]) -> None:
    with pytest.raises(TamisError, match="final: training was stopped"):
        train_stages(
            _write_log(tmp_path),
            SCHEMA,
            early_schema(SCHEMA),
            _recipes(tmp_path, "[64, 32]"),
            tmp_path / "work",
        )
    assert stopped == ["final"]


def test_a_final_stage_of_the_same_size_is_refused(tmp_path: Path) -> None:
    recipes = _recipes(tmp_path, "[64, 32]")
    wide = RECIPE.replace("tower_units = [8]", "tower_units = [512]")
    (recipes / "incumbent.toml").write_text(wide)
    with pytest.raises(ConfigError, match="must have 2 times as many parameters"):
        train_stages(_write_log(tmp_path), SCHEMA, early_schema(SCHEMA), recipes, tmp_path / "work")
    # Before hours of training, not after.
    assert not (tmp_path / "work" / "final").exists()


def test_a_final_stage_that_sees_no_more_is_refused(tmp_path: Path) -> None:
    recipes, files = _recipes(tmp_path, "[64, 32]"), _write_log(tmp_path)
    with pytest.raises(ConfigError, match="must see more, got the same 3 features"):
        train_stages(files, SCHEMA, SCHEMA, recipes, tmp_path / "work")


def test_an_early_stage_that_sees_something_else_is_refused(tmp_path: Path) -> None:
    recipes, files = _recipes(tmp_path, "[64, 32]"), _write_log(tmp_path)
    without_users = replace(SCHEMA, fields=SCHEMA.fields[1:])
    with pytest.raises(ConfigError, match="must be among the final stage's, got user which"):
        train_stages(files, without_users, early_schema(SCHEMA), recipes, tmp_path / "work")
