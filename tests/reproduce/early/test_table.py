"""Claims and pages of early stages, and a whole table from the harness, processes and all."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamis.errors import ConfigError
from tamis.reports.figures import Curve
from tamis.reproduce import make
from tamis.reproduce.early import rounds_table, table
from tamis.reproduce.early import table as early_table
from tamis.reproduce.early.rounds_table import RoundsRows
from tamis.reproduce.early.study import Study
from tamis.reproduce.early.table import EarlyRows, cascade_folder, mean_and_sd
from tamis.reproduce.early.variants import (
    VARIANTS,
    CalibrationClaim,
    CascadeSizes,
    EarlyClaim,
    EarlyTable,
    Given,
    MarketCascade,
    OneModel,
    OneModelEach,
    PublicCascade,
    RoundsTable,
    recipes_of,
)
from tamis.reproduce.make import make_table
from tamis.training.runlog import processor_name

from .conftest import RECIPE
from .test_market import TEACHER

CASCADE = MarketCascade(
    sizes=CascadeSizes(keep=20, slots=4, train_requests=200, test_requests=30),
    rows=8000,
    rows_per_ad=500,
    conversion_rate=0.3,
    days=(5, 2, 1),
)
TABLE = EarlyTable(
    name="tiny",
    cascade=CASCADE,
    variants={"incumbent": Given(order="incumbent"), "full": OneModel(tasks=3)},
    claims=(EarlyClaim(better="full", worse="incumbent", at_least=0.03),),
    seeds=2,
)
PUBLIC = PublicCascade(
    sizes=CascadeSizes(keep=12, slots=4, train_requests=150, test_requests=30),
    dataset="retailrocket_multibehavior",
    candidates=40,
    teacher_events=1500,
    negatives=2,
    quality_task="cart",
)
ROUNDS = RoundsTable(name="tiny-rounds", cascade=CASCADE, rounds=3, days=1, seeds=2)


def _row(model: str, seed: int, soft: float) -> dict[str, Any]:
    return {"model": model, "seed": seed, "metrics": {"soft_recall": soft}}


@pytest.mark.parametrize(("gain", "holds"), [(0.05, True), (0.02, False)])
def test_a_claim_asks_for_an_interval_above_0_and_for_its_points(gain: float, holds: bool) -> None:
    rows = [
        row
        for seed in range(3)
        for row in (
            _row("incumbent", seed, 0.8 + 0.01 * seed),
            _row("full", seed, 0.8 + gain + 0.011 * seed),
        )
    ]
    (claim,) = EarlyRows(TABLE).claims(rows)
    # Differences are gain, gain + 0.001 and gain + 0.002: their mean, and 4.303 times 0.00058.
    assert claim["estimate"] == pytest.approx(gain + 0.001)
    assert claim["interval"][0] == pytest.approx(gain + 0.001 - 0.00248, abs=1e-5)
    assert claim["interval"][0] > 0
    assert claim["holds"] == holds
    assert claim["claim"] == "full has a higher soft recall than incumbent by at least 0.03"


def test_a_page_tells_the_share_of_drawn_labels_where_a_set_does_not_tell_all() -> None:
    rows = [{"commit": None, "simulated_labels": 0.875}]
    payload = {"table": "tiny", "command": "make it", "rows": rows, "settings": {}, "claims": []}
    public, market = (
        EarlyRows(replace(TABLE, cascade=cascade)).markdown(payload, [], [])
        for cascade in (PUBLIC, CASCADE)
    )
    assert "drawn by an oracle: 87.5% of the labels of judged impressions" in public
    assert "oracle" not in market


def test_a_page_tells_what_one_model_saves_beside_one_for_each_task() -> None:
    def row(model: str, seed: int, times: float) -> dict[str, Any]:
        cost = {
            "flops": 13e6,
            "dense_parameters": 40_000,
            "table_bytes": 190_784,
            "activation_bytes": 408_469.12,
            "features_fetched": 42.8,
            "vectors_fetched": 348.0,
        }
        return {
            "model": model,
            "seed": seed,
            "commit": None,
            "request_cost": {
                "source": "modelled",
                **{key: times * value for key, value in cost.items()},
            },
        }

    each = "one model each, equal size"
    rows = [{"model": "incumbent", "seed": 0, "commit": None}]
    for seed in range(3):
        rows += [row("full", seed, 1), row(each, seed, 3)]
    variants = {**TABLE.variants, each: OneModelEach(equal_cost=False)}
    payload = {"table": "tiny", "command": "make it", "rows": rows, "settings": {}, "claims": []}

    page = EarlyRows(replace(TABLE, variants=variants)).markdown(payload, [], [])

    lines = page.splitlines()
    head = lines.index(f"| a request | full | {each} |")
    assert lines[head + 2 : head + 9] == [
        "| MFLOP | 13.0 | 39.0 (3.00) |",
        "| parameters outside tables | 40,000 | 120,000 (3.00) |",
        "| tables, kB | 191 | 572 (3.00) |",
        "| activations, kB | 408 | 1,225 (3.00) |",
        "| columns fetched | 42.8 | 128.4 (3.00) |",
        "| vectors of ads fetched | 348 | 1,044 (3.00) |",
        "",
    ]
    # Without models for each task there is nothing to compare.
    assert "a request |" not in EarlyRows(TABLE).markdown(payload, [], [])


def test_what_is_not_known_is_left_empty() -> None:
    assert mean_and_sd([0.5, 0.7]) == "0.6000 ± 0.1414"
    assert mean_and_sd([0.5, None]) == mean_and_sd([0.5, float("nan")]) == mean_and_sd([]) == ""


def test_figure_has_every_early_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [_row(model, seed, 0.8 + 0.1 * seed) for model in TABLE.models for seed in range(2)]
    for row in rows:
        row["metrics"]["true_value"] = 0.9 + row["seed"]
    drawn: list[Any] = []
    monkeypatch.setattr(table, "seed_dots", lambda *given, **_: drawn.extend(given))

    EarlyRows(TABLE).figure(rows)

    models, (recall, value) = drawn
    assert models == TABLE.models
    assert [recall.xlabel, value.xlabel] == ["soft recall", "true value, times the final stage's"]
    assert recall.values == [[0.8, 0.9]] * 2
    assert value.values == [[0.9, 1.9]] * 2


def _rounds_row(pools: str, seed: int, recalls: list[float]) -> dict[str, Any]:
    rounds = [{"soft_recall": value + 0.001 * seed} for value in recalls]
    return {"model": pools, "seed": seed, "rounds": rounds}


def test_figure_of_rounds_has_a_line_for_each_set_of_pools(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        _rounds_row(pools, seed, [0.8, 0.9, 0.7]) for pools in ROUNDS.models for seed in range(2)
    ]
    drawn: list[Curve] = []
    monkeypatch.setattr(rounds_table, "lines", lambda curves, **_: drawn.extend(curves))

    RoundsRows(ROUNDS).figure(rows)

    assert [curve.name for curve in drawn] == [f"up to {pools}" for pools in ROUNDS.models]
    for curve in drawn:
        assert list(curve.x) == [0, 1, 2]
        # Of seeds 0 and 1, which differ by 0.001 after each round.
        assert curve.y == pytest.approx([0.8005, 0.9005, 0.7005])
        assert curve.spread == pytest.approx([0.001 / math.sqrt(2)] * 3)


def test_claims_of_rounds_compare_the_last_round() -> None:
    rows = [
        _rounds_row(pools, seed, recalls)
        for seed in range(2)
        for pools, recalls in (
            ("impressed", [0.8, 0.9, 0.7]),
            ("scored", [0.8, 0.9, 0.8]),
            ("rejected", [0.8, 0.9, 0.95]),
        )
    ]
    claims = RoundsRows(ROUNDS).claims(rows)
    assert [claim["estimate"] for claim in claims] == pytest.approx([0.1, 0.15, 0.05])
    assert all(claim["holds"] for claim in claims)


def test_another_recipe_or_variant_is_another_row(tmp_path: Path) -> None:
    (tmp_path / "early_stage.toml").write_text(RECIPE)
    first = EarlyRows(TABLE).recipes(tmp_path)
    other = {**TABLE.variants, "full": OneModel(tasks=2)}
    second = EarlyRows(replace(TABLE, variants=other)).recipes(tmp_path)
    (tmp_path / "early_stage.toml").write_text(RECIPE.replace("max_epochs = 2", "max_epochs = 3"))
    third = EarlyRows(TABLE).recipes(tmp_path)
    assert len({first["full"], second["full"], third["full"]}) == 3
    # The incumbent's order needs no recipe of the row.
    assert first["incumbent"] == second["incumbent"] == third["incumbent"]


@pytest.mark.parametrize(
    "name", ["early_stage", "one_model_each", "labels_alone", "lightgbm", "lightgbm_parts"]
)
def test_a_recipe_decides_the_rows_that_are_trained_by_it(
    tmp_path: Path, recipes: Path, name: str
) -> None:
    folder = recipes / "tiny"
    table = replace(TABLE, variants=VARIANTS, claims=())
    for each in ("one_model_each", "labels_alone", "lightgbm", "lightgbm_parts"):
        (folder / f"{each}.toml").write_text(RECIPE)
    before, cascade = EarlyRows(table).recipes(folder), cascade_folder(CASCADE, tmp_path, folder)
    text = (folder / f"{name}.toml").read_text()
    (folder / f"{name}.toml").write_text(text + "\n[distillation]\nweight = 3.0\n")
    after = EarlyRows(table).recipes(folder)
    changed = {row for row in VARIANTS if after[row] != before[row]}
    assert changed == {row for row, variant in VARIANTS.items() if name in recipes_of(variant)}
    # The log is the incumbent's, whatever learns from it.
    assert cascade_folder(CASCADE, tmp_path, folder) == cascade
    (folder / "incumbent.toml").write_text(RECIPE.replace("max_epochs = 2", "max_epochs = 3"))
    assert cascade_folder(CASCADE, tmp_path, folder) != cascade


def test_rows_that_say_something_else_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "early_stage.toml").write_text(RECIPE)
    now = EarlyRows(TABLE).recipes(tmp_path)
    monkeypatch.setattr(early_table, "ROW_VERSION", 0)
    before = EarlyRows(TABLE).recipes(tmp_path)
    assert all(now[name] != before[name] for name in TABLE.models)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"early_stage\.toml: must exist"):
        EarlyRows(TABLE).recipes(tmp_path)


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    for name in ("tiny", "tiny-rounds"):
        folder = tmp_path / "recipes" / name
        folder.mkdir(parents=True)
        (folder / "teacher.toml").write_text(TEACHER)
        for stage in ("incumbent", "early_stage"):
            (folder / f"{stage}.toml").write_text(RECIPE)
        (folder / "oracle.toml").write_text(
            '[model]\nname = "dcn_v2"\nembedding_dim = 4\nhidden_units = [16]\n'
            "[training]\nmax_epochs = 1\nbatch_size = 512\n"
        )
    return tmp_path / "recipes"


def _make(name: str, tmp_path: Path, data: Path | None = None) -> dict[str, Any]:
    made = make_table(
        name,
        data=data,
        recipes=tmp_path / "recipes",
        work=tmp_path / "work",
        out=tmp_path / "results",
        workers=1,
        progress=lambda done, total: None,
    )
    payload: dict[str, Any] = json.loads(made.path.read_text())
    return payload


@pytest.mark.slow
def test_a_table_is_made_by_processes_and_resumed(
    tmp_path: Path, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "TABLES", {"tiny": TABLE})
    payload = _make("tiny", tmp_path)

    assert payload["complete"]
    assert [(row["model"], row["seed"]) for row in payload["rows"]] == [
        *(("incumbent", 0), ("full", 0), ("incumbent", 1), ("full", 1)),
    ]
    assert payload["rows"][0]["metrics"] == payload["rows"][2]["metrics"]
    assert payload["rows"][1]["metrics"] != payload["rows"][3]["metrics"]
    assert {row["device"] for row in payload["rows"]} == {processor_name()}
    page = (tmp_path / "results" / "tiny.md").read_text()
    assert "| model | soft recall | hard recall |" in page
    assert "The early stage keeps 20 of a request's candidates" in page

    def refuse(*args: object, **options: object) -> None:
        assert not args[0], "nothing is left to make"

    monkeypatch.setattr(make, "run_cells", refuse)
    assert _make("tiny", tmp_path) == payload


@pytest.mark.slow
def test_rounds_are_made_by_processes(
    tmp_path: Path, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "TABLES", {"tiny-rounds": ROUNDS})
    payload = _make("tiny-rounds", tmp_path)
    assert len(payload["rows"]) == 6
    assert {row["device"] for row in payload["rows"]} == {processor_name()}
    first = {row["rounds"][0]["soft_recall"] for row in payload["rows"]}
    assert len(first) == 1
    page = (tmp_path / "results" / "tiny-rounds.md").read_text()
    assert "| learns from | figure | round 0 | round 1 | round 2 |" in page
    assert len(payload["claims"]) == 3


@pytest.mark.slow
def test_a_cascade_over_a_public_set_has_real_and_drawn_labels(
    tmp_path: Path, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(0)
    count = 6000
    folder = tmp_path / "data" / "retailrocket_multibehavior"
    folder.mkdir(parents=True)
    user, item = generator.integers(0, 80, count), generator.integers(0, 120, count)
    pq.write_table(
        pa.table(
            {
                "user_id": user,
                "item_id": item,
                "behavior": np.where(
                    (user + item) % 4 == 0,
                    "buy",
                    np.where((user * item) % 3 == 0, "cart", "view"),
                ),
                "timestamp": np.sort(generator.integers(0, 10**6, count)),
            }
        ),
        folder / "train.parquet",
    )
    claims = (CalibrationClaim(model="full", head="served", by="bid decile"),)
    table = replace(TABLE, cascade=PUBLIC, claims=claims)
    monkeypatch.setattr(make, "TABLES", {"tiny": table})
    payload = _make("tiny", tmp_path, tmp_path / "data")

    assert payload["complete"]
    (study,) = (tmp_path / "work" / "cascades").glob("*/study/cascade.json")
    record = json.loads(study.read_text())
    assert record["tasks"] == ["click", "conversion", "cart"]
    assert record["value"]["quality"] == "cart"
    share = record["notes"]["simulated_labels"]
    assert 0.1 < share < 1.0
    assert share != record["notes"]["simulated_labels_of_log"]
    assert {row["simulated_labels"] for row in payload["rows"]} == {share}
    assert record["candidates"] == 40
    page = (tmp_path / "results" / "tiny.md").read_text()
    assert "| full: what its served head predicts of cart is 0.97 to 1.03 of its targets in" in page
    assert [claim["claim"].split()[7] for claim in payload["claims"]] == record["tasks"]
    assert f"is drawn by an oracle: {share:.1%} of the labels of judged impressions" in page

    # What recipes are chosen on: the last events of the log, on all candidates.
    chosen_on = Study(
        EarlyRows(table).study(
            tmp_path / "data", tmp_path / "work", recipes / "tiny", judges="valid"
        )
    )
    events = pq.read_table(chosen_on.folder / "judged.parquet")["request_id"].to_numpy()
    valid = chosen_on.log("rejected", "valid")
    assert set(events) == set(valid.request)
    assert np.diff(chosen_on.judged().offsets).tolist() == [40] * 15
    before = Study(study.parent).log("rejected", "valid")
    np.testing.assert_array_equal(valid.candidate, before.candidate)
    notes = chosen_on.record["notes"]
    assert notes["simulated_labels_of_log"] == record["notes"]["simulated_labels_of_log"]
    assert notes["simulated_labels"] not in (share, notes["simulated_labels_of_log"])
