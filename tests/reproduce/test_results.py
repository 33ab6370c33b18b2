"""What is printed of a finished table, and its page."""

from dataclasses import replace
from typing import Any

import pytest

from tamis.reproduce import results
from tamis.reproduce.result_table import Average, Comparison, Published, ResultTable
from tamis.reproduce.results import display_of, page_of
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
    values = {"auc": 0.7 + 0.01 * seed, "log_loss": 0.25, "ne": 0.5, "gauc": 0.6} | metrics
    return {
        "model": model,
        "seed": seed,
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
        "claims": [],
    }
    page = page_of(_TABLE, payload)

    head = "| model | AUC | published | log loss | NE | parameters | dense | MFLOP/row | rows/s |"
    assert head in page  # one of the rows has no GAUC
    assert (
        "| dhen | 0.70500 ± 0.00707 | 0.7123 | 0.25000 ± 0.00000 | 0.50000 ± 0.00000 | "
        "43,890,123 | 3,290,123 | 2.50 | 800,000 |"
    ) in page
    assert "| dhen | 0.7123 | 0.1 | a paper |" in page
    assert "| dhen | 0.71 |  | another |" in page


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
    assert results._three_digits(count) == shown


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
