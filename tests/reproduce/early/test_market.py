"""A market that both stages serve, against its own log; and rounds of retraining on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.market import LiveMarket, ServedHour
from tamis.reproduce.early.market import (
    TASKS,
    CascadePolicy,
    make_market_study,
    market_ads,
    serve_first_days,
    told_every,
    train_on,
)
from tamis.reproduce.early.rounds import make_rounds
from tamis.reproduce.early.stages import Earlier
from tamis.reproduce.early.study import Study
from tamis.reproduce.early.variants import CascadeSizes, Judges, MarketCascade

from .conftest import RECIPE

pytestmark = pytest.mark.slow
TEACHER = """
[model]
name = "din"
embedding_dim = 4
hidden_units = [64, 32]

[training]
batch_size = 1024
max_epochs = 1
precision = "float32"
"""
CASCADE = MarketCascade(
    sizes=CascadeSizes(keep=20, slots=4, train_requests=200, test_requests=30),
    rows=8000,
    rows_per_ad=500,
    conversion_rate=0.3,
    days=(5, 2, 1),
)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "teacher.toml").write_text(TEACHER)
    for name in ("incumbent", "early_stage"):
        (folder / f"{name}.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def opened(
    recipes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LiveMarket, Earlier, Path]:
    work = tmp_path_factory.mktemp("stages")
    market, log = serve_first_days(CASCADE)
    return market, train_on(log, recipes, work), work


@pytest.fixture(scope="module")
def hours(
    opened: tuple[LiveMarket, Earlier, Path],
) -> tuple[CascadePolicy, list[ServedHour]]:
    market, earlier, _ = opened
    ads, value = market_ads(market, earlier)
    policy = CascadePolicy(
        market,
        earlier.early,
        earlier,
        ads,
        value,
        CASCADE.sizes,
        known=TASKS[:1],
        learn_every=3,
        judge_every=10,
    )
    return policy, list(market.serve(policy, days=1))


@pytest.fixture(scope="module")
def served(hours: tuple[CascadePolicy, list[ServedHour]]) -> tuple[CascadePolicy, pa.Table]:
    policy, made = hours
    return policy, pa.concat_tables([hour.log for hour in made])


def _by_pair(log: pa.Table) -> dict[tuple[int, int], Mapping[str, Any]]:
    return {(row["request_id"], row["ad_id"]): row for row in log.to_pylist()}


def test_what_is_learned_from_has_the_labels_of_the_market_s_log(
    served: tuple[CascadePolicy, pa.Table],
) -> None:
    policy, log = served
    shown = _by_pair(log)
    met = 0
    for part in policy.learned(log):
        rows = part.log
        for at in range(rows.num_rows):
            pair = (int(rows.request[at]), int(rows.candidate[at]))
            assert (rows.pool[at] == 0) == (pair in shown)
            for task in TASKS:
                label = rows.labels[task][at]
                logged = shown.get(pair, {}).get(task)
                assert (np.isnan(label) and logged is None) or label == logged
            assert part.inputs["ad_id"][at].as_py() == pair[1]
            met += pair in shown
    requests = np.unique(log["request_id"].to_numpy())
    assert met == 4 * np.count_nonzero(requests % 3 == 0)


def test_the_early_stage_sees_no_history_position_weekday_or_anything_of_the_cascade(
    served: tuple[CascadePolicy, pa.Table],
) -> None:
    policy, log = served
    columns = set(policy.learned(log)[0].inputs.column_names)
    assert not columns & {"history_ads", "history_categories", "position", "weekday"}
    assert not columns & {"pool", "click", "conversion", "hide", "request_id"}


def test_judged_requests_tell_every_living_ad_with_the_truth(
    hours: tuple[CascadePolicy, list[ServedHour]], served: tuple[CascadePolicy, pa.Table]
) -> None:
    policy, log = served
    living = {
        request: hour.living for hour in hours[1] for request in hour.log["request_id"].to_pylist()
    }
    for part in policy.judged(log):
        for request in np.unique(part.log.request).tolist():
            own = part.log.request == request
            assert np.count_nonzero(part.log.pool[own] == 0) == CASCADE.sizes.slots
            np.testing.assert_array_equal(np.sort(part.log.candidate[own]), living[request])
        assert set(part.truth) == set(TASKS)
        assert len(part.incumbent) == part.log.num_rows


def test_requests_that_validate_judge_whatever_is_chosen(
    opened: tuple[LiveMarket, Earlier, Path], recipes: Path, tmp_path: Path
) -> None:
    _, _, work = opened
    studies, judged = {}, {}
    for judges in get_args(Judges):
        make_market_study(CASCADE, recipes, work, tmp_path / judges, judges=judges)
        studies[judges] = Study(tmp_path / judges)
        table = pq.read_table(tmp_path / judges / "judged.parquet", columns=["request_id"])
        judged[judges] = np.unique(table["request_id"].to_numpy())
    logs = [study.log("rejected", "valid").request for study in studies.values()]
    np.testing.assert_array_equal(*logs)
    assert set(judged["valid"]) <= set(range(logs[0].min(), judged["test"].min()))
    for study, requests in zip(studies.values(), judged.values(), strict=True):
        # One request in a whole number of them.
        assert 1 <= len(requests) / CASCADE.sizes.test_requests < 2
        assert np.diff(study.judged().offsets).min() > 2 * CASCADE.sizes.keep


def test_rounds_judge_each_early_stage_on_what_it_served(
    opened: tuple[LiveMarket, Earlier, Path], recipes: Path, tmp_path: Path
) -> None:
    _, _, work = opened
    made = {
        pools: make_rounds(
            CASCADE,
            pools=pools,
            rounds=2,
            days=1,
            seed=0,
            stages=work,
            recipe=recipes / "early_stage.toml",
            run=tmp_path / pools,
        )["rounds"]
        for pools in ("impressed", "rejected")
    }
    for rounds in made.values():
        assert [found["number"] for found in rounds] == [0, 1]
        for found in rounds:
            assert 0 < found["soft_recall"] <= 1
            assert set(found["lost"]) == {"early", "final"}
            assert found["regret"] == pytest.approx(sum(found["lost"].values()))
    # The incumbent's round is one and the same; then what they learned from parts them.
    first, second = made.values()
    assert first[0] == second[0]
    assert first[1]["soft_recall"] != second[1]["soft_recall"]
    # Nothing is trained again, and nothing else comes out.
    again = make_rounds(
        CASCADE,
        pools="rejected",
        rounds=2,
        days=1,
        seed=0,
        stages=work,
        recipe=recipes / "early_stage.toml",
        run=tmp_path / "rejected",
    )
    assert again["rounds"] == second


def test_one_request_in_so_many_makes_the_wanted_number() -> None:
    market = LiveMarket(8000, rules=None)
    # 2000 requests in 14 days, 285 in two of them.
    assert told_every(market, CASCADE, days=2, wanted=100) == 2
    assert told_every(market, CASCADE, days=2, wanted=1000) == 1
