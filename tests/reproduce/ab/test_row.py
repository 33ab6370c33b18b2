"""Three funnels of one small log, tested in the market that it came from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis import artifacts
from tamis.funnel.bundle import read_bundle
from tamis.funnel.plans import EarlyStagePlan
from tamis.reproduce.ab import row
from tamis.reproduce.ab.funnels import RECIPES
from tamis.reproduce.ab.row import RowOrder, make_row, read_row, serve_own_days
from tamis.reproduce.ab.tables import AbMarket, AbTable, FunnelSizes
from tamis.reproduce.make import make_table
from tamis.reproduce.tables import TABLES
from tamis.training.runlog import processor_name

TABLE = AbTable(
    name="tiny-ab",
    market=AbMarket(
        rows=8000,
        train_days=2,
        test_days=1,
        rows_per_user=20,
        rows_per_ad=100,
        activity_exponent=2.5,
        click_rate=0.2,
        conversion_rate=0.4,
        hide_rate=0.1,
    ),
    sizes=FunnelSizes(
        retrieved=60, early=20, final=8, beams=(4,), cascade_requests=60, hide_cost=0.5
    ),
    judge_every=5,
    seeds=2,
)
_EARLY = """
name = "early_stage"
embedding_dim = 4
tower_units = [8]
tower_dim = 4
bottom_units = [8]
head_units = []
"""
_FINAL = 'name = "lr"'
_MODELS = {
    "index": """
name = "hsnn"
embedding_dim = 4
codebooks = [8]
item_dim = 4
cross_dim = 4
attention_units = 4
index_learning = "em"
cluster_steps = 4
levels = [
    { user_tokens = 2, dot_units = 8, head_units = [8] },
    { user_tokens = 2, dot_units = 8, head_units = [8], module_tokens = 2 },
]
""",
    "early": _EARLY,
    "final": _FINAL,
    "two_tower": """
name = "two_tower"
embedding_dim = 4
tower_dim = 4
""",
    "click_early": _EARLY,
    "baseline_final": _FINAL,
}


def _write_recipes(folder: Path) -> Path:
    for name in RECIPES:
        clicks = "task_weights = [1.0, 0.0, 0.0]\n" if name == "click_early" else ""
        artifacts.write_text(
            folder / f"{name}.toml",
            f"[model]\n{_MODELS[name]}\n[training]\nmax_epochs = 1\nbatch_size = 512\n{clicks}",
        )
    return folder


def _log(run: Path) -> pa.Table:
    return pq.read_table(run / "log.parquet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ab")
    run = folder / "run"
    RowOrder(table=TABLE, seed=1, recipes=str(_write_recipes(folder / "recipes"))).write(run)
    make_row(run)
    return run


@pytest.mark.slow
def test_row_holds_a_whole_test_of_each_rival(made: Path) -> None:
    whole = json.loads(json.dumps(read_row(made), allow_nan=False))
    tests = whole["tests"]

    assert whole["device"] == processor_name()
    assert list(tests) == ["baseline", "popularity"]
    for test in tests.values():
        found = test["differences"]["value_per_request"]
        assert found["difference"] == pytest.approx(
            found["treatment"]["value"] - found["control"]["value"]
        )
        assert found["lower"] < found["difference"] < found["upper"]
        for metric in ("click_rate", "conversion_rate", "hide_rate"):
            assert 0 < test["differences"][metric]["treatment"]["value"] < 1
        assert test["guarded"]["value_per_user"]["days"] == [1]
        for losses in test["losses"].values():
            lost = [stage["lost"]["value"] for stage in losses["stages"]]
            assert sum(lost) == pytest.approx(losses["regret"]["value"])
            assert losses["requests"] > 10
        names = [stage["stage"] for stage in test["losses"]["treatment"]["stages"]]
        assert names == ["known", "retrieval", "early", "final", "auction"]
    control = tests["popularity"]["losses"]["control"]
    assert [stage["stage"] for stage in control["stages"]] == ["known", "popularity", "auction"]
    # Popularity knows neither who asks nor what is bid.
    assert tests["popularity"]["differences"]["value_per_request"]["lower"] > 0
    assert tests["baseline"]["sample_ratio"] == tests["popularity"]["sample_ratio"]


@pytest.mark.slow
def test_funnels_differ_in_their_stages_and_in_nothing_else(made: Path) -> None:
    full, baseline, popularity = (
        read_bundle(made / "bundles" / name).blueprint
        for name in ("full", "baseline", "popularity")
    )

    assert [stage.plan.model_name for stage in full.stages] == ["hsnn", "early_stage", "lr"]
    assert [stage.plan.model_name for stage in baseline.stages] == [
        "two_tower", "early_stage", "lr"
    ]  # fmt: skip
    assert [stage.plan.kind for stage in popularity.stages] == ["popularity"]
    budgets = [stage.budget for stage in full.stages]
    assert [budget.keep for budget in budgets] == [60, 20, 8]
    assert [stage.budget for stage in baseline.stages] == budgets
    assert full.weights == baseline.weights == popularity.weights
    for funnel in (full, baseline):
        early, final = (stage.plan.model.spec for stage in funnel.stages[1:])
        assert replace(early, tables=(), tasks=()) == replace(
            final, sequences=(), tables=(), tasks=()
        )
        assert final.sequences
    assert np.array_equal(full.inventory.codes, baseline.inventory.codes)


@pytest.mark.slow
def test_only_clicks_and_bids_order_the_early_stage_of_the_baseline(made: Path) -> None:
    full, baseline = (
        read_bundle(made / "bundles" / name).blueprint.stages[1].plan
        for name in ("full", "baseline")
    )
    assert isinstance(full, EarlyStagePlan)
    assert isinstance(baseline, EarlyStagePlan)
    assert full.settings.head == "distilled"
    assert baseline.settings.head == "label"
    assert not full.calibration.by_task
    log = _log(made)
    predictions = {name: np.array([0.01, 0.4, 0.9]) for name in ("click", "conversion", "hide")}

    found = baseline.calibration.apply(predictions, np.full(3, "click"))

    assert found["click"].tolist() == [0.01, 0.4, 0.9]
    assert found["hide"] == pytest.approx(np.full(3, log["hide"].to_numpy().mean()))
    conversion = log["conversion"].drop_null().to_numpy()
    assert len(conversion) < log.num_rows
    assert found["conversion"] == pytest.approx(np.full(3, conversion.mean()))


@pytest.mark.slow
def test_funnels_learn_from_what_was_known_before_the_test(made: Path) -> None:
    market, hours = serve_own_days(TABLE.market, 1)
    whole = pa.concat_tables([hour.log for hour in hours])
    log = _log(made)

    assert log["impression_id"].equals(whole["impression_id"])
    latest = log["conversion_time"].cast(pa.int64()).drop_null().to_numpy().max()
    assert latest < market.now_micros
    # Some conversions came during the test, and nobody knew of them.
    assert log["conversion_time"].null_count > whole["conversion_time"].null_count


@pytest.mark.slow
def test_what_is_finished_of_a_row_is_not_made_again(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_row(made)
    trained = {path: path.stat().st_mtime_ns for path in made.glob("runs/*/metrics.json")}
    assert len(trained) == len(RECIPES)
    (made / "metrics.json").unlink()
    (made / "test-popularity.json").unlink()
    tested: list[str] = []
    run_test = row._test

    def told(order: RowOrder, rival: str, run: Path) -> Any:
        tested.append(rival)
        return run_test(order, rival, run)

    monkeypatch.setattr(row, "_test", told)
    make_row(made)

    assert tested == ["popularity"]
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    # The same days of the same market again, to the last bit.
    assert read_row(made)["tests"] == before["tests"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_table_is_made_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_recipes(tmp_path / "recipes" / "tiny-ab")
    seen: list[tuple[int, int]] = []

    def make(seeds: int) -> dict[str, Any]:
        monkeypatch.setitem(TABLES, "tiny-ab", replace(TABLE, seeds=seeds))
        made = make_table(
            "tiny-ab",
            data=None,
            recipes=tmp_path / "recipes",
            work=tmp_path / "work",
            out=tmp_path / "results",
            workers=1,
            progress=lambda done, total: seen.append((done, total)),
        )
        payload: dict[str, Any] = json.loads(made.path.read_text())
        return payload

    first = make(2)
    assert first["complete"]
    assert [row["seed"] for row in first["rows"]] == [0, 1]
    assert len(first["claims"]) == 4
    assert "Where the best ad was lost" in (tmp_path / "results" / "tiny-ab.md").read_text()
    seen.clear()
    again = make(3)
    # Two rows stood there; one was made.
    assert seen[0] == (2, 3)
    assert again["rows"][:2] == first["rows"]
    assert again["rows"][2]["tests"] != first["rows"][0]["tests"]
