"""What is printed of a finished table, and its page."""

from dataclasses import replace
from typing import Any

import pytest

from tamis.reproduce import results
from tamis.reproduce.result_table import Average, Comparison, Published, ResultTable
from tamis.reproduce.results import claims_of, display_of, figure_of, page_of
from tamis.reproduce.tables import TABLES

_TABLE = ResultTable(
    name="tiny",
    dataset="market:10",
    models=("lr", "dhen"),
    tasks=("click",),
    comparisons=(Comparison(better="dhen", worse="lr"),),
    seeds=2,
    published=(
        Published(model="dhen", auc=0.7123, log_loss=0.1, protocol="a paper"),
        Published(model="dhen", auc=0.71, log_loss=None, protocol="another"),
    ),
)


def _row(model: str, seed: int, tasks: tuple[str, ...], **metrics: float) -> dict[str, Any]:
    values = {"auc": 0.7 + 0.01 * seed, "log_loss": 0.25, "ne": 0.5, "gauc": 0.6}
    values |= {"calibration": 0.96 + 0.02 * seed, "ece": 0.03} | metrics
    return {
        "model": model,
        "seed": seed,
        "split": "test",
        "metrics": values,
        "other_tasks": dict.fromkeys(tasks[1:], values),
        "parameters": 43_890_123,
        "dense_parameters": 3_290_123,
        "forward_flops_per_row": 2.5e6,
        "samples_per_second": 800_000,
        "commit": "c0ffee",
    }


def _rows(table: ResultTable) -> list[dict[str, Any]]:
    names = (*table.models, *(average.name for average in table.averages))
    return [_row(name, seed, table.tasks) for seed in range(2) for name in names]


def test_published_auc_and_all_parameters_stand_beside_ours() -> None:
    columns, lines = display_of(_TABLE, _rows(_TABLE))

    assert columns == [
        *("model", "AUC", "publ.", "log loss", "NE", "GAUC", "params", "dense", "rows/s")
    ]
    # Means of 0.70 and 0.71, whose standard deviation is 0.01 / sqrt(2); of two published AUCs
    # the first, and of LR none.
    figures = ["0.25000", "0.50000", "0.60000", "43.9M", "3.29M", "800,000"]
    assert lines == [
        ["lr", "0.70500±0.00707", "", *figures],
        ["dhen", "0.70500±0.00707", "0.7123", *figures],
    ]


def test_a_page_has_every_spread_and_every_published_figure() -> None:
    rows = _rows(_TABLE)
    rows[0]["metrics"] |= {"gauc": None}
    figures = [
        {"model": p.model, "auc": p.auc, "log_loss": p.log_loss, "protocol": p.protocol}
        for p in _TABLE.published
    ]
    payload = {
        "table": "tiny",
        "command": "tamis reproduce tiny",
        "rows": rows,
        "published": figures,
        "settings": {},
        "claims": [],
    }
    page = page_of(_TABLE, payload)

    assert (  # one of the rows has no GAUC
        "| model | AUC | published | log loss | NE | calibration | ECE | parameters | dense | "
        "MFLOP/row |"
    ) in page
    assert (
        "| dhen | 0.70500 ± 0.00707 | 0.7123 | 0.25000 ± 0.00000 | 0.50000 ± 0.00000 | "
        "0.97000 ± 0.01414 | 0.03000 ± 0.00000 | 43,890,123 | 3,290,123 | 2.50 |"
    ) in page
    assert "| dhen | 0.7123 | 0.1 | a paper |" in page
    assert "| dhen | 0.71 |  | another |" in page


def _claim(comparison: Comparison, rows: list[dict[str, Any]]) -> dict[str, Any]:
    (claim,) = claims_of(replace(_TABLE, published=(), comparisons=(comparison,)), rows)
    return claim


def test_calibration_is_compared_by_its_distance_from_1() -> None:
    rows = [
        *(_row("lr", seed, _TABLE.tasks, calibration=1.05) for seed in range(3)),
        # Lower than that of LR, and further from 1: by 0.05, 0.06 and 0.07.
        *(_row("dhen", seed, _TABLE.tasks, calibration=0.9 - 0.01 * seed) for seed in range(3)),
    ]
    claim = _claim(Comparison(better="dhen", worse="lr", metric="calibration"), rows)

    assert claim["claim"] == "dhen has a lower distance of calibration from 1 than lr"
    assert claim["estimate"] == pytest.approx(0.06)
    assert claim["interval"][0] > 0
    assert not claim["holds"]
    assert _claim(Comparison(better="lr", worse="dhen", metric="calibration"), rows)["holds"]


@pytest.mark.parametrize(
    ("above", "holds"),
    [
        ((-0.02, -0.021, -0.022), True),
        ((0.002, 0.0021, 0.0022), True),
        # The mean is within the margin, and the interval is not.
        ((0.0, 0.004, 0.008), False),
        ((0.006, 0.0061, 0.0062), False),
    ],
)
def test_no_worse_is_claimed_of_the_whole_interval(above: tuple[float, ...], holds: bool) -> None:
    rows = [
        *(_row("lr", seed, _TABLE.tasks, ece=0.03) for seed in range(3)),
        *(_row("dhen", seed, _TABLE.tasks, ece=0.03 + by) for seed, by in enumerate(above)),
    ]
    claim = _claim(Comparison(better="dhen", worse="lr", metric="ece", margin=-0.005), rows)

    assert claim["claim"] == "dhen: ECE less than 0.005 above that of lr"
    assert claim["holds"] is holds


def test_a_higher_auc_may_be_asked_for_up_to_a_margin() -> None:
    rows = [
        *(_row("lr", seed, _TABLE.tasks, auc=0.7) for seed in range(3)),
        *(_row("dhen", seed, _TABLE.tasks, auc=0.699 - 0.0001 * seed) for seed in range(3)),
    ]
    claim = _claim(Comparison(better="dhen", worse="lr", metric="auc", margin=-0.005), rows)

    assert claim["claim"] == "dhen: AUC less than 0.005 below that of lr"
    assert claim["holds"]


def test_a_higher_gauc_may_be_claimed() -> None:
    rows = [
        *(_row("lr", seed, _TABLE.tasks) for seed in range(3)),
        *(_row("dhen", seed, _TABLE.tasks, gauc=0.61 + 0.001 * seed) for seed in range(3)),
    ]
    claim = _claim(Comparison(better="dhen", worse="lr", metric="gauc"), rows)

    assert claim["claim"] == "dhen has a higher GAUC than lr"
    assert claim["estimate"] == pytest.approx(0.011)
    assert claim["holds"]


@pytest.mark.parametrize("name", ["ensemble-rees46", "ensemble-market"])
def test_calibration_of_an_ensemble_is_compared_with_the_averages(name: str) -> None:
    table = TABLES[name]
    assert isinstance(table, ResultTable)

    claims = [claim["claim"] for claim in claims_of(table, _rows(table))]

    assert claims[-2:] == [
        "cetnet: ECE less than 0.005 above that of average",
        "cetnet: distance of calibration from 1 less than 0.02 above that of average",
    ]


def test_a_published_gauc_stands_beside_ours_too() -> None:
    figure = Published(model="dhen", auc=0.7123, gauc=0.61, log_loss=0.1, protocol="a paper")
    columns, lines = display_of(replace(_TABLE, published=(figure,)), _rows(_TABLE))

    assert columns[5:8] == ["GAUC", "publ.", "params"]
    assert [line[6] for line in lines] == ["", "0.61"]


@pytest.mark.parametrize(
    ("dataset", "chosen_on"), [("market:10", "validation"), ("kuai_video_x1_bars", "test")]
)
def test_a_page_says_which_split_chose_the_weights(dataset: str, chosen_on: str) -> None:
    payload = {
        "table": "tiny",
        "command": "tamis reproduce tiny",
        "rows": _rows(_TABLE),
        "published": [],
        "settings": {},
        "claims": [],
    }

    page = page_of(replace(_TABLE, dataset=dataset), payload)

    assert f"test split, weights chosen on the {chosen_on} split." in page


def test_each_task_has_its_published_figure() -> None:
    table = replace(
        _TABLE,
        tasks=("click", "buy"),
        published=(
            Published(model="lr", auc=0.8, log_loss=None, protocol="", task="buy"),
            Published(model="lr", auc=0.7, log_loss=None, protocol=""),
        ),
        averages=(Average(name="average", of=("lr", "dhen")),),
    )
    columns, lines = display_of(table, _rows(table))

    assert columns[:5] == ["model", "AUC click", "publ.", "AUC buy", "publ."]
    assert lines[0][:5] == ["lr", "0.7050±0.0071", "0.7", "0.7050±0.0071", "0.8"]
    assert lines[2][:5] == ["average", "0.7050±0.0071", "", "0.7050±0.0071", ""]


@pytest.mark.parametrize(
    ("count", "shown"),
    [(1, "1"), (999, "999"), (5390, "5.39k"), (452_901, "453k"), (999_600, "1M"), (3e9, "3G")],
)
def test_counts_are_printed_with_three_digits(count: int, shown: str) -> None:
    assert results.three_digits(count) == shown


@pytest.mark.parametrize(
    "table",
    [table for table in TABLES.values() if isinstance(table, ResultTable)],
    ids=lambda table: table.name,
)
def test_printed_tables_fit_100_columns(table: ResultTable) -> None:
    columns, lines = display_of(table, _rows(table))

    widths = [max(map(len, cells)) for cells in zip(columns, *lines, strict=True)]
    # One blank beside every column.
    assert sum(widths) + len(widths) + 1 <= 100, widths


@pytest.mark.parametrize(
    ("name", "panels"),
    [
        ("frappe", ["NE, less is better"]),
        ("sequence-rees46", ["AUC"]),
        ("census", ["AUC, education", "AUC, income", "AUC, marital"]),
        ("ensemble-rees46", ["AUC"]),
    ],
)
def test_a_figure_has_all_rows_and_a_panel_for_each_task(name: str, panels: list[str]) -> None:
    table = TABLES[name]
    assert isinstance(table, ResultTable)

    figure = figure_of(table, _rows(table))

    shown = (*table.models, *(average.name for average in table.averages), *panels)
    assert all(f">{word}<" in figure for word in shown)


@pytest.mark.parametrize(
    ("name", "metric"), [("frappe", "ne"), ("sequence-rees46", "auc"), ("census", "auc")]
)
def test_a_figure_is_of_the_seeds_of_what_is_compared(
    monkeypatch: pytest.MonkeyPatch, name: str, metric: str
) -> None:
    table = TABLES[name]
    assert isinstance(table, ResultTable)
    rows = _rows(table)
    for place, row in enumerate(rows):
        nothing = dict.fromkeys(row["metrics"], -1.0)
        row["metrics"], *others = (
            nothing | {metric: place + 100.0 * at} for at in range(len(table.tasks))
        )
        row["other_tasks"] = dict(zip(table.tasks[1:], others, strict=True))
    drawn: list[Any] = []
    monkeypatch.setattr(results, "seed_dots", lambda *given, **_: drawn.extend(given))

    figure_of(table, rows)

    models, panels = drawn
    count = len(models)
    assert [panel.values for panel in panels] == [
        [[place + 100.0 * at, place + count + 100.0 * at] for place in range(count)]
        for at in range(len(table.tasks))
    ]


@pytest.mark.parametrize(
    ("name", "model"),
    [("sequence-rees46", "interformer"), ("dhen-ablations", "dhen"), ("census", "adatt")],
)
def test_a_line_marks_what_most_comparisons_are_about(name: str, model: str) -> None:
    table = TABLES[name]
    assert isinstance(table, ResultTable)

    assert results._mostly_claimed(table) == model


def test_no_line_is_drawn_where_half_of_the_comparisons_are_about_each_of_two() -> None:
    table = TABLES["census"]
    assert isinstance(table, ResultTable)
    halves = tuple(c for c in table.comparisons if (c.better, c.worse) != ("adatt", "ple"))

    assert results._mostly_claimed(replace(table, comparisons=halves)) is None
