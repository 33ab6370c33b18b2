"""Candidates of a live funnel as rows that an early stage learns from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tamis.data.cascade_log import CascadeLog, cascade_schema, write_cascade_log
from tamis.data.ingest import ingest
from tamis.data.market import (
    LiveMarket,
    LiveRequests,
    MarketRules,
    Policy,
    RandomPolicy,
    Slates,
    market_schema,
)
from tamis.errors import ConfigError, DataError
from tamis.funnel.candidates import Candidates
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.live import FunnelPolicy, ServedFunnel, ad_table
from tamis.funnel.live_cascade import cascade_of
from tamis.funnel.request import Request
from tamis.funnel.rounds import KnownLog, run_rounds
from tamis.funnel.stage import Scored
from tamis.funnel.stages import ScoredBy
from tamis.funnel.value import ValueFunction, ValueWeights

VALUE = ValueFunction(ValueWeights(penalties={"hide": 0.1}))
RULES = MarketRules(days=3, click_rate=0.2)


class _Final:
    """Predicts by request and ad, except for one request in seven, where it fails."""

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        if request.request_id % 7 == 0:
            raise RuntimeError("broken")
        ads = candidates.ads
        click = (1 + (request.request_id + ads) % 50) / 100
        predictions = {"click": click, "hide": click / 10}
        return Scored(candidates=Candidates(ads=ads, scores=click, predictions=predictions))


def _funnel(requests: LiveRequests) -> ServedFunnel:
    ads = ad_table(requests.ad_features)
    early = ScoredBy(lambda request, rows: (rows * 31 + request.request_id * 17) % 101 * 1.0)
    steps = [
        Step(name="early", stage=early, keep=30),
        Step(name="final", stage=_Final(), keep=8),
    ]
    return ServedFunnel(funnel=Funnel(steps, ads, VALUE), ad=requests.ad.astype(np.int64))


class _Silent:
    """A funnel that shows nothing to one request in eleven and tells no candidates of it."""

    def __init__(self) -> None:
        self.inner = FunnelPolicy(_funnel, judge_every=5)

    def __call__(self, requests: LiveRequests) -> Slates:
        slates = self.inner(requests)
        silent = requests.request_id % 11 == 0
        ads = np.where(silent[:, None], np.int32(-1), slates.ads)
        (part,) = slates.candidates
        # What is not shown has not survived the auction.
        unseen = silent[part.request]
        survived = np.where(unseen, np.minimum(part.survived, 3), part.survived).astype(np.int8)
        return replace(slates, ads=ads, candidates=(replace(part, survived=survived),))


@pytest.fixture(scope="module")
def known() -> KnownLog:
    """A day of chance and a day of a funnel."""
    market = LiveMarket(9000, seed=6, rules=RULES, judge_every=10)
    told: list[KnownLog] = []
    policies: list[Policy] = [_Silent(), RandomPolicy(seed=0)]

    def retrain(known: KnownLog) -> Policy:
        told.append(known)
        return policies[len(told) - 1]

    run_rounds(
        market,
        RandomPolicy(seed=0),
        retrain,
        rounds=3,
        days=1,
        ads=ad_table(market.ads()),
        value=VALUE,
    )
    return told[-1]


@pytest.fixture(scope="module")
def cascade(known: KnownLog) -> tuple[CascadeLog, pa.Table]:
    return cascade_of(known, rejected_rate=1.0, seed=0)


def test_pools_labels_and_predictions_are_those_of_a_loop(
    known: KnownLog, cascade: tuple[CascadeLog, pa.Table]
) -> None:
    log, inputs = cascade
    shown = {(row["request_id"], row["ad_id"]): row for row in known.log.to_pylist()}
    answered = {request for request, _ in shown}
    expected = []
    for row in known.candidates.to_pylist():
        if row["stages"] == "answer" or row["request_id"] not in answered:
            continue
        pair = (row["request_id"], row["ad_id"])
        predicted = row["predicted_click"], row["predicted_hide"]
        logged = shown.get(pair, {})
        pool = 0 if logged else 1 if predicted[0] is not None else 2
        labels = [logged.get(task) for task in ("click", "conversion", "hide")]
        expected.append((*pair, pool, *labels, *(predicted if pool < 2 else (None, None))))
    columns = [
        *(log.request, log.candidate, log.pool),
        *(log.labels[task] for task in ("click", "conversion", "hide")),
        *(log.final[task] for task in ("click", "hide")),
    ]
    found = list(zip(*(column.tolist() for column in columns), strict=True))

    assert len(found) == inputs.num_rows > 10_000
    as_numbers = np.array(expected, np.float64)
    np.testing.assert_allclose(np.array(found, np.float64), as_numbers, rtol=1e-6)
    counts = log.counts()
    # 30 candidates of each request came to the final stage, unless it failed; 4 were shown.
    failed = log.request[log.pool == 0] % 7 == 0
    assert 0 < failed.sum() < counts["impressed"].rows
    assert counts["scored"].rows == 26 * len(np.unique(log.request[log.pool == 1]))
    assert counts["rejected"].rows > counts["scored"].rows
    assert len(np.unique(log.request)) < len(
        {row["request_id"] for row in known.candidates.to_pylist() if row["stages"] != "answer"}
    )


def test_inputs_are_those_of_the_log_where_there_is_one(
    known: KnownLog, cascade: tuple[CascadeLog, pa.Table]
) -> None:
    log, inputs = cascade
    shown = {(row["request_id"], row["ad_id"]): row for row in known.log.to_pylist()}
    ads = {(row["market_hour"], row["ad_id"]): row for row in known.ads.to_pylist()}
    compared = 0
    for at in range(0, log.num_rows, 13):
        row = {name: inputs[name][at].as_py() for name in inputs.column_names}
        pair = (int(log.request[at]), int(log.candidate[at]))
        day, hour = divmod(int(row["event_time"].timestamp() - 1_704_067_200) // 3600, 24)
        of_ad = ads[24 * day + hour, pair[1]]
        assert row["hour"] == hour
        assert {name: row[name] for name in of_ad if name != "market_hour"} == {
            name: value for name, value in of_ad.items() if name != "market_hour"
        }
        if pair in shown:
            assert row == {name: shown[pair][name] for name in row}
            compared += 1
        else:
            assert row["position"] == 1
    assert compared > 10


def test_rejected_candidates_are_sampled_and_weighted(
    known: KnownLog, cascade: tuple[CascadeLog, pa.Table]
) -> None:
    whole = cascade[0].counts()
    log, inputs = cascade_of(known, rejected_rate=0.2, seed=1)
    counts = log.counts()

    assert inputs.num_rows == log.num_rows
    assert counts["impressed"] == whole["impressed"]
    assert counts["scored"] == whole["scored"]
    rejected = whole["rejected"].rows
    deviation = np.sqrt(0.2 * 0.8 * rejected)
    assert abs(counts["rejected"].rows - 0.2 * rejected) < 4 * deviation
    assert counts["rejected"].candidates == pytest.approx(5 * counts["rejected"].rows)
    again, _ = cascade_of(known, rejected_rate=0.2, seed=1)
    other, _ = cascade_of(known, rejected_rate=0.2, seed=2)
    assert np.array_equal(again.candidate, log.candidate)
    assert not np.array_equal(other.candidate[:500], log.candidate[:500])


def test_cascade_is_ingested_for_training(
    tmp_path: Path, cascade: tuple[CascadeLog, pa.Table]
) -> None:
    log, inputs = cascade
    path = tmp_path / "cascade.parquet"
    write_cascade_log(path, log, inputs, user_column="user_id", weight_cap=10.0)

    schema = cascade_schema(market_schema(), final=("click", "hide"))
    ignored = tuple(item for item in schema.ignored if item.column in {"pool", "sampling_rate"})
    dataset = ingest(path, tmp_path / "d", schema=replace(schema, ignored=ignored))

    assert sum(dataset.manifest["rows"].values()) == log.num_rows
    labels = dataset.split("train").labels()
    names = [task.name for task in dataset.schema.tasks]
    known_final = ~np.isnan(labels[:, names.index("final_click")])
    assert 0 < np.isfinite(labels[:, names.index("click")]).sum() < known_final.sum()


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_rate_that_is_none_is_refused(known: KnownLog, rate: float) -> None:
    with pytest.raises(ConfigError, match=r"rejected_rate: must be in \(0, 1\]"):
        cascade_of(known, rejected_rate=rate, seed=0)


def test_log_without_a_funnel_is_refused(known: KnownLog) -> None:
    is_answer = np.array(known.candidates["stages"].to_pylist()) == "answer"
    without: list[Any] = [known.candidates.filter(is_answer), pa.table({})]

    for candidates in without:
        with pytest.raises(DataError, match="a funnel must have told its candidates, got none"):
            cascade_of(replace(known, candidates=candidates), rejected_rate=1.0, seed=0)
