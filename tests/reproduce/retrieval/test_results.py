"""Claims of tables of retrieval, on rows that are made up here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tamis import artifacts, config
from tamis.reports.figures import Curve
from tamis.reproduce.retrieval import results
from tamis.reproduce.retrieval.results import (
    claims_of,
    display_of,
    figure_of,
    levels_of,
    search_row_of,
)
from tamis.reproduce.retrieval.table import RetrievalRows
from tamis.reproduce.retrieval.tables import (
    Better,
    RetrievalTable,
    SearchRow,
    retrieval_tables,
)

RECIPES = Path(__file__).parents[3] / "recipes"
SIL = "hsnn-2-sil"
_SETTINGS = {
    SIL: ("index_learning", "sil"),
    "hsnn-2-em": ("index_learning", "em"),
    "hsnn-2-no-schedule": ("alpha_exponent", 0.0),
    "hsnn-2-no-balance": ("balance_weight", 0.0),
    "hsnn-2-no-warmup": ("warmup_steps", 1),
    "hsnn-2-short-queue": ("queue_batches", 1),
}
TABLE = RetrievalTable(
    name="made-up",
    dataset="market_ads:100",
    recipes="none",
    rows=(
        SearchRow(name="base", model="base", method="exact"),
        SearchRow(name="ann", model="base", method="ann"),
        SearchRow(name="large", model="large", method="network"),
        SearchRow(name="joint", model="joint", method="network", is_checked=True),
        SearchRow(name="apart", model="apart", method="network"),
        SearchRow(name="uneven", model="uneven", method="network"),
    ),
    reference="base",
    approximate="ann",
    large="large",
    indexed=("joint",),
    separate="apart",
    rivals=("ann",),
    comparisons=(
        Better(better="joint", worse="base"),
        Better(better="joint", worse="base", metric="ne"),
    ),
    balance_removed="uneven",
    short_queue="uneven",
    seeds=2,
)
# By row: recall, NE, operations, latency, loss of the index, perplexity.
NUMBERS = {
    "base": (0.20, 0.95, 10.0, 1.0, None, None),
    "ann": (0.19, 0.95, 2.0, 0.5, None, None),
    "large": (0.30, 0.90, 1000.0, 90.0, None, None),
    "joint": (0.29, 0.92, 140.0, 2.0, 0.02, 40.0),
    "apart": (0.27, 0.93, 140.0, 2.0, 0.05, 50.0),
    "uneven": (0.25, 0.93, 140.0, 2.0, 0.10, 30.0),
}


UNSEEN = {"cold": 0.2, "warm": 0.25}


def _rows(
    unseen: dict[str, float] | None = UNSEEN, **changes: dict[str, Any]
) -> list[dict[str, Any]]:
    rows = []
    for seed in range(2):
        for name, (recall, ne, flops, latency, loss, perplexity) in NUMBERS.items():
            metrics = {
                "value_recall@100": recall + 0.001 * seed,
                **{f"recall@{k}": 0.01 for k in (20, 50, 100, 500)},
                "ndcg@20": 0.01,
                "ne": ne + 0.001 * seed,
                "flops": flops,
                "pairs": 10.0,
                "latency": latency,
                "cpu_ms": latency,
                "cold_recall@100": unseen and 1.05 * unseen["cold"],
                "warm_recall@100": unseen and unseen["warm"],
            }
            if loss is not None:
                metrics["index_loss"] = loss
            metrics |= changes.get(name, {})
            of_value = metrics["value_recall@100"]
            point = {"latency": latency, "value_recall@100": of_value, "recall@100": 0.01}
            points = [
                {**point, "kept": kept, "is_main": kept == 0.9, "flops": more * metrics["flops"]}
                for kept, more in ((0.7, 0.5), (0.9, 1.0), (1.0, 2.0))
            ]
            if name == "ann":  # a width that is better, and slower than the index
                slow = {"latency": 2.5, "value_recall@100": 0.28, "recall@100": 0.01}
                points = [*points, {**slow, "latency": 1.9, "value_recall@100": 0.25}, slow]
            rows.append(
                {
                    "model": name,
                    "seed": seed,
                    "metrics": metrics,
                    "points": points,
                    "levels": [{"perplexity": perplexity}],
                    "by_content": unseen,
                    "weights": f"{name}, seed {seed}",
                    "checks": [{"check": "even", "value": 0.3, "holds": name != "uneven"}],
                }
            )
    return rows


def _claim(rows: list[dict[str, Any]], words: str) -> dict[str, Any]:
    (claim,) = [claim for claim in claims_of(TABLE, rows) if words in claim["claim"]]
    return claim


@pytest.mark.parametrize(
    ("words", "estimate"),
    [
        ("higher recall than base", 0.09),
        ("lower NE than base", -0.03),
        ("recalls no less than apart", 0.02),
        # Of means over two seeds: 0.2905 keeps nine tenths of the way from 0.2005 to 0.3005.
        ("keeps at least 80%", 0.9),
        ("at most 15% of the operations", 0.14),
        ("loses at most 3%", 0.02),
        # Against 0.25, the best width that takes no more than 2.0: 0.29 / 0.25 - 1 and 0.291 / ...
        ("at equal latency", 0.162),
        ("never shown at least 80% as well among themselves", 0.8),
        ("never shown at least 80% as well in lists of all items", 0.84),
        ("without balance", 0.75),
        ("end at different weights", 1.0),
        ("with half the beams", 0.2),
        ("judged by one batch", -10.0),
    ],
)
def test_each_claim_holds_with_the_number_that_it_should_have(words: str, estimate: float) -> None:
    claim = _claim(_rows(), words)
    assert claim["estimate"] == pytest.approx(estimate, abs=1e-9)
    assert claim["holds"]


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("higher recall than base", {"joint": {"value_recall@100": 0.2}}),
        ("lower NE than base", {"joint": {"ne": 0.96}}),
        ("recalls no less than apart", {"apart": {"value_recall@100": 0.3}}),
        ("keeps at least 80%", {"joint": {"value_recall@100": 0.279}}),
        ("keeps at least 80%", {"large": {"value_recall@100": 0.1}}),
        # No beams are as narrow.
        ("keeps at least 80%", {"joint": {"flops": 301.0}}),
        ("at most 15% of the operations", {"joint": {"flops": 151.0}}),
        ("loses at most 3%", {"joint": {"index_loss": 0.031}}),
        ("at equal latency", {"joint": {"value_recall@100": 0.26}}),
        # Faster than every width of the rival: compared with its fastest, of 0.19 recall.
        ("at equal latency", {"joint": {"value_recall@100": 0.2, "latency": 0.4}}),
        ("as well among themselves", {"unseen": {"cold": 0.19, "warm": 0.25}}),
        ("as well in lists of all", {"unseen": {"cold": 0.19, "warm": 0.25}}),
    ],
)
def test_each_claim_fails_just_below_its_bar(words: str, changes: dict[str, Any]) -> None:
    assert not _claim(_rows(**changes), words)["holds"]


@pytest.mark.parametrize(
    ("recall", "flops", "holds"),
    [
        (0.196, 2.0, True),
        (0.196, 10.0, False),
        (0.19, 2.0, False),
        (0.21, 2.0, False),  # more than what it approximates
    ],
)
def test_approximate_search_finds_about_as_much_for_less(
    recall: float, flops: float, holds: bool
) -> None:
    rows = _rows(ann={"value_recall@100": recall, "flops": flops})
    claim = _claim(rows, "ann recalls what base does to within 3%, for fewer operations")

    # The exact one has 0.2 with one seed and 0.201 with the other.
    assert claim["estimate"] == pytest.approx((recall / 0.2 + recall / 0.201) / 2 - 1)
    assert claim["holds"] == holds
    assert claim["how"] == f"mean of 2 seeds; {flops / 10:.1%} of the operations"


@pytest.mark.parametrize(
    ("words", "metric", "gain"),
    [
        ("higher recall than base", "value_recall@100", 0.01),
        ("lower NE than base", "ne", -0.01),
    ],
)
def test_comparison_holds_by_its_interval_and_not_by_its_mean(
    words: str, metric: str, gain: float
) -> None:
    rows = _rows()
    base = {row["seed"]: row["metrics"][metric] for row in rows if row["model"] == "base"}
    for row in rows:
        if row["model"] == "joint":  # better by twice as much with one seed, alike with the other
            row["metrics"][metric] = base[row["seed"]] + 2 * gain * row["seed"]

    claim = _claim(rows, words)

    assert claim["estimate"] == pytest.approx(gain)
    assert claim["interval"][0] < 0 < claim["interval"][1]
    assert not claim["holds"]


def test_checks_are_told_from_bars_and_directions() -> None:
    claims = claims_of(TABLE, _rows())
    checks = {claim["claim"] for claim in claims if claim.get("is_check")}

    assert checks == {
        "joint and apart end at different weights",
        "joint keeps less of what scoring everything finds with half the beams",
        "balance judged by one batch gives another perplexity of codes",
        "joint: even",
    }


def test_gain_is_kept_by_the_widest_beams_that_are_allowed() -> None:
    rows = _rows()
    for row in rows:
        for point in row["points"]:
            # Half, once and twice the operations of the row: 70, 140 and 280 of 150.
            point["value_recall@100"] = {0.7: 0.21, 0.9: 0.26, 1.0: 0.3}.get(point.get("kept"), 0)

    assert _claim(rows, "keeps at least 80%")["estimate"] == pytest.approx(0.595)


def test_no_gain_is_kept_where_seeds_do_not_agree_that_there_is_one() -> None:
    rows = _rows()
    for row in rows:
        if row["model"] == "large":  # 0.2005 are the two towers': better with one seed alone
            row["metrics"]["value_recall@100"] = (0.4, 0.19)[row["seed"]]
    claim = _claim(rows, "keeps at least 80%")

    assert claim["estimate"] == pytest.approx((0.2905 - 0.2005) / (0.295 - 0.2005))
    assert not claim["holds"]
    assert "the gain is +0.0945, -" in claim["how"]


def test_learning_that_changes_nothing_and_beams_that_prune_nothing_are_told() -> None:
    rows = _rows()
    for row in rows:
        row["weights"] = f"seed {row['seed']}"
        for point in row["points"]:
            point["kept"] = 1.0
        row["levels"] = [{"perplexity": 9.0}]
    for words in ("end at different weights", "with half the beams", "judged by one batch"):
        assert not _claim(rows, words)["holds"]


def test_another_perplexity_is_one_that_seeds_do_not_make() -> None:
    rows = _rows()
    for row in rows:
        if row["model"] == "uneven":  # each seed has another than the index, none in one direction
            row["levels"] = [{"perplexity": (41.0, 38.9)[row["seed"]]}]
    claim = _claim(rows, "judged by one batch")

    assert claim["estimate"] == pytest.approx(-0.05)
    assert claim["interval"][0] < 0 < claim["interval"][1]
    assert not claim["holds"]
    assert claim["is_check"]


def test_check_that_some_seeds_were_not_asked_for_is_one_of_the_others() -> None:
    rows = _rows()
    joint = [row for row in rows if row["model"] == "joint"]
    joint[1]["checks"] = [{"check": "odd", "value": 0.5, "holds": False}, *joint[1]["checks"]]

    assert _claim(rows, "joint: even")["holds"]
    assert not _claim(rows, "joint: odd")["holds"]
    assert _claim(rows, "joint: odd")["how"] == "each of 1 seeds"


def _with_curves(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of both indexes, whose recall rises with their beams."""
    indexes = [row for row in rows if row["model"] in ("joint", "apart")]
    for row in indexes:
        row["validation"] = []
        for place, point in enumerate(row["points"]):
            point["value_recall@100"] = (0.2, 0.28, 0.3)[place]
    return indexes


def test_two_indexes_are_compared_at_the_beams_of_the_better_one() -> None:
    rows = _rows()
    for row in _with_curves(rows):
        if row["model"] == "apart":  # it keeps more nodes, and so finds more
            row["metrics"]["value_recall@100"] = 0.3
            for place, point in enumerate(row["points"]):
                point["is_main"] = place == 2
        else:
            row["points"][1]["value_recall@100"] = row["metrics"]["value_recall@100"]

    claim = _claim(rows, "recalls no less than apart")

    # 0.29 and 0.291 less 0.28.
    assert claim["estimate"] == pytest.approx(0.0105)
    assert claim["holds"]
    # What scores everything has no beams.
    assert _claim(rows, "higher recall than base")["estimate"] == pytest.approx(0.09)


def test_two_indexes_are_compared_at_the_widest_beams_that_both_were_measured_at() -> None:
    rows = _rows()
    for row in _with_curves(rows):
        for place, point in enumerate(row["points"]):
            point["is_main"] = row["model"] == "joint" and place == 2
        if row["model"] == "apart":
            row["points"] = row["points"][:2]
            row["points"][1] |= {"is_main": True, "value_recall@100": 0.27}

    # 0.28 less 0.27: with its own beams the better one would have 0.3.
    assert _claim(rows, "recalls no less than apart")["estimate"] == pytest.approx(0.01)


def test_recall_is_of_clicks_where_no_true_value_is_known() -> None:
    rows = _rows()
    for row in rows:
        del row["metrics"]["value_recall@100"]
        for point in row["points"]:
            del point["value_recall@100"]
    assert _claim(rows, "higher recall than base")["estimate"] == 0.0


def test_nothing_is_said_of_cold_items_where_there_are_none() -> None:
    rows = _rows(unseen=None)
    assert not [claim for claim in claims_of(TABLE, rows) if "never shown" in claim["claim"]]


def test_checks_are_claimed_of_the_rows_that_say_so_and_of_no_ablation() -> None:
    rows = _rows()
    assert [claim["claim"] for claim in claims_of(TABLE, rows) if "even" in claim["claim"]] == [
        "joint: even"
    ]
    assert _claim(rows, "joint: even")["holds"]
    joint = [row for row in rows if row["model"] == "joint"]
    joint[1]["checks"][0] |= {"holds": False, "value": 0.1}
    claim = _claim(rows, "joint: even")
    assert not claim["holds"]
    assert claim["estimate"] == pytest.approx(0.2)


def test_figure_has_a_line_for_each_way_to_search_and_none_for_variants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = replace(
        TABLE, rows=(*TABLE.rows, SearchRow(name="joint-em", model="joint-em", method="network"))
    )
    rows = _rows()
    settings = {
        "ann": ["ivf, 1 of 9 lists", "ivf, 4 of 9 lists", "ivf, 9 of 9 lists", "hnsw, width 9"],
        "joint": ["beams 2", "beams 4", "beams 8"],
    }
    for row in rows:
        chosen = settings.get(row["model"], ["all"])
        points = row["points"][: len(chosen)]
        row["points"] = [
            {**point, "setting": setting} for point, setting in zip(points, chosen, strict=True)
        ]

    for row in rows:  # times of the two seeds, whose geometric mean is twice the first
        for point in row["points"]:
            point["latency"] *= 4.0 ** row["seed"]
    drawn: list[Curve] = []
    labels: dict[str, str] = {}

    def capture(curves: list[Curve], **given: str) -> str:
        drawn.extend(curves)
        labels.update(given)
        return ""

    monkeypatch.setattr(results, "lines", capture)

    figure_of(table, rows)

    names = [curve.name for curve in drawn]
    assert names == ["joint", "base", "ann, ivf", "ann, hnsw", "large", "apart", "uneven"]
    assert labels["ylabel"] == "recall at 100 of true value"
    of = dict(zip(names, drawn, strict=True))
    assert of["base"].x == pytest.approx([2.0])
    assert of["base"].y == pytest.approx([0.2005])
    assert of["joint"].y == pytest.approx([0.2905] * 3)
    assert of["ann, hnsw"].x == pytest.approx([3.8])
    assert of["ann, hnsw"].y == pytest.approx([0.25])


def test_widths_that_find_less_than_half_are_not_drawn() -> None:
    rows = [
        {**row, "points": [{**row["points"][0], "setting": "all"}]}
        for row in _rows(base={"value_recall@100": 0.1})
    ]

    figure = figure_of(TABLE, rows)

    assert ">large<" in figure
    assert ">base<" not in figure


def test_display_gives_mean_and_deviation_and_leaves_out_what_a_row_has_not() -> None:
    columns, display = display_of(TABLE, _rows(), is_page=True)
    cells = dict(zip(columns, display[0], strict=True))
    assert cells["value@100"] == "0.2005 ± 0.0007"
    assert cells["index loss"] == ""
    assert dict(zip(columns, display[3], strict=True))["index loss"] == "0.020 ± 0.000"


def test_rows_from_before_a_metric_stay_and_their_cell_of_it_is_blank() -> None:
    rows = _rows()
    for row in rows:
        # Both of one row, and one seed of another.
        if row["model"] == "base" or (row["model"], row["seed"]) == ("ann", 1):
            del row["metrics"]["recall@20"]
    columns, display = display_of(TABLE, rows, is_page=True)
    base, ann, large = (dict(zip(columns, cells, strict=True)) for cells in display[:3])

    assert all(RetrievalRows(TABLE).is_current(row) for row in rows)
    assert [cells["recall@20"] for cells in (base, ann, large)] == ["", "", "0.0100 ± 0.0000"]
    assert base["recall@50"] == ann["recall@50"] == "0.0100 ± 0.0000"


def _with_levels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row ``joint`` has two index levels; seed 1 has a little more of everything."""
    for row in rows:
        more = 0.01 * row["seed"]
        spread = {"perplexity": 40.0 + 2 * more, "largest_to_mean": 2.0 + 2 * more}
        if row["model"] != "joint":
            row["levels"] = []
            continue
        row["forward"] = {
            name: [ne + more, ne + 0.1 + more, ne + 0.2 + more]
            for name, ne in (("soft", 0.5), ("hard", 0.51), ("representative", 0.53))
        }
        row["served"] = [0.9 + more, 1.0 + more, 1.1 + more]
        row["levels"] = [spread, {**spread, "perplexity": 9.0}]
        row["traffic"] = [{"perplexity": 20.0, "largest_to_mean": 5.0 + 2 * more}] * 2
    return rows


def test_levels_show_what_nodes_cost_how_they_are_calibrated_and_how_even_they_are() -> None:
    heads, lines = levels_of(TABLE, _with_levels(_rows()), is_page=True)
    first, second, items = (dict(zip(heads, cells, strict=True)) for cells in lines)

    assert [(line["row"], line["level"]) for line in (first, second, items)] == [
        ("joint", "1"),
        ("joint", "2"),
        ("joint", "items"),
    ]
    assert first["NE soft"] == "0.5050 ± 0.0071"
    assert (first["NE hard"], items["NE hard"]) == ("0.5150 ± 0.0071", "0.7150 ± 0.0071")
    assert first["NE representative"] == "0.5350 ± 0.0071"
    assert items["calibration on test rows"] == "1.105 ± 0.007"
    assert first["perplexity of items"] == "40.01 ± 0.01"
    assert second["perplexity of items"] == "9.00 ± 0.00"
    assert second["of traffic"] == "20.00 ± 0.00"
    assert (first["largest node by items"], first["by traffic"]) == ("2.01 ± 0.01", "5.01 ± 0.01")
    # Items are under no node.
    assert [items[name] for name in ("perplexity of items", "by traffic")] == ["", ""]


def test_what_a_row_from_before_lacks_of_a_level_is_a_dash() -> None:
    rows = _with_levels(_rows())
    for row in rows:
        if row["model"] == "joint":
            row.pop("served")
            if row["seed"] == 1:
                row.pop("traffic")
    heads, lines = levels_of(TABLE, rows, is_page=True)
    first = dict(zip(heads, lines[0], strict=True))

    assert all(RetrievalRows(TABLE).is_current(row) for row in rows)
    lacking = ("calibration on test rows", "of traffic", "by traffic")
    assert [first[name] for name in lacking] == ["-", "-", "-"]
    assert first["NE soft"] == "0.5050 ± 0.0071"


def test_what_is_printed_fits_a_terminal_of_100_columns() -> None:
    longest = max((row.name for row in retrieval_tables()[0].rows), key=len)
    table = replace(
        TABLE,
        rows=tuple(
            replace(row, name=longest if row.name == "joint" else row.name) for row in TABLE.rows
        ),
        indexed=(longest,),
        comparisons=(),
    )
    rows = _with_levels(_rows())
    for row in rows:
        row["model"] = longest if row["model"] == "joint" else row["model"]
        # Of the large network on a million ads.
        row["metrics"] |= {"pairs": 1e6, "flops": 123.4e9, "cpu_ms": 9876.54, "latency": 2345.67}
    for head, lines in (
        display_of(table, rows, is_page=False),
        levels_of(table, rows, is_page=False),
    ):
        widths = [max(map(len, cells)) for cells in zip(head, *lines, strict=True)]
        assert sum(widths) + len(widths) + 1 <= 100, widths
    heads, lines = display_of(table, rows, is_page=False)
    assert dict(zip(heads, lines[0], strict=True)) == {
        "row": "base",
        "value@100": "0.2005±0.0007",
        "recall@100": "0.0100",
        "NDCG@20": "0.0100",
        "NE": "0.9505",
        "loss": "",
        "pairs": "1M",
        "FLOP": "123G",
        "cpu ms": "9876.54",
        "x towers": "2345.67",
    }


def test_page_has_levels_below_the_table_and_none_where_there_is_no_index() -> None:
    payload = {"table": "made-up", "command": "made", "published": [], "settings": {}, "claims": []}
    kind = RetrievalRows(TABLE)
    rows = [{**row, "commit": "abc", "split": "test"} for row in _with_levels(_rows())]
    page = kind.markdown({**payload, "rows": rows}, [], [])

    assert "| row | value@100 | recall@20 | recall@50 |" in page
    assert page.index("| base | 0.2005 ± 0.0007 |") < page.index("Levels of each index. NE of")
    assert "| joint | items | 0.7050 ± 0.0071 | 0.7150 ± 0.0071 |" in page
    without = [{**row, "levels": []} for row in rows]
    assert "Levels of each" not in kind.markdown({**payload, "rows": without}, [], [])
    assert kind.display_levels(rows)[1][0][:2] == ["joint", "1"]


def test_published_figures_of_gowalla_stand_beside_ours_with_what_differs() -> None:
    published = {table.name: RetrievalRows(table).published() for table in retrieval_tables()}
    figures = published.pop("hsnn-gowalla")
    light = next(figure for figure in figures if figure["model"] == "LightGCN")

    assert (light["recall@20"], light["ndcg@20"]) == (0.1830, 0.1554)
    assert "trained without the fifth of them that validates" in light["protocol"]
    assert "tested on 500 of the users" in light["protocol"]
    assert not any(published.values())


def test_page_shows_published_figures_by_their_own_metrics() -> None:
    figure = {"model": "LightGCN", "recall@20": 0.183, "ndcg@20": 0.1554, "protocol": "theirs"}
    payload = {
        "table": "made-up",
        "command": "tamis reproduce made-up",
        "rows": [],
        "published": [figure],
        "settings": {},
        "claims": [],
    }
    page = RetrievalRows(TABLE).markdown(payload, ["row"], [["base"]]).splitlines()

    assert "| published | recall@20 | NDCG@20 | protocol |" in page
    assert "| LightGCN | 0.183 | 0.1554 | theirs |" in page


def test_tables_cover_the_ladder_the_ways_to_learn_and_the_removals() -> None:
    tables = {table.name: table for table in retrieval_tables()}
    assert [*tables] == ["hsnn-market", "hsnn-million", "hsnn-sports", "hsnn-gowalla"]
    for table in tables.values():
        assert table.seeds >= 3
        assert [row.name for row in table.rows if row.is_checked] == [*table.indexed]
    # A million ads are for the bar of latency.
    million = tables.pop("hsnn-million")
    assert million.rivals == ("two_tower", "ebr", "rerank")
    assert million.models == ("two_tower", "monn-medium", "hsnn-2")
    for table in tables.values():
        assert table.balance_removed == "hsnn-2-no-balance"


@pytest.mark.parametrize("name", ["hsnn-market", "hsnn-sports", "hsnn-gowalla"])
def test_every_row_of_the_papers_tables_is_made_and_claimed(name: str) -> None:
    (table,) = (table for table in retrieval_tables() if table.name == name)
    # Of tables 1 to 3; nothing here is as large as MoNN XL.
    papers = {
        *("two_tower", "monn-small", "monn-medium", "monn-large", "ebr", "hsnn-2", "hsnn-3"),
        *("hsnn-2-sil", "hsnn-2-em"),
        *("hsnn-2-no-schedule", "hsnn-2-no-balance", "hsnn-2-no-warmup"),
    }
    claimed = {table.approximate}
    claimed |= {name for claim in table.comparisons for name in (claim.better, claim.worse)}

    assert papers <= {row.name for row in table.rows}
    assert papers <= claimed


def test_what_only_a_log_of_impressions_tells_is_claimed_of_markets_alone() -> None:
    for table in retrieval_tables():
        beside_towers = {
            claim.metric for claim in table.comparisons if claim.worse == table.reference
        }
        is_market = table.dataset.startswith("market_ads:")
        assert table.tells_shown == is_market
        assert beside_towers == ({"recall", "ne"} if is_market else {"recall"})


def test_rivals_that_need_ids_or_an_index_are_where_these_are() -> None:
    rows = {table.name: {row.name: row for row in table.rows} for table in retrieval_tables()}

    assert [name for name in rows if "lightgcn" in rows[name]] == ["hsnn-gowalla"]
    trees = {name: rows[name].get("kmeans_tree") for name in rows}
    # It searches a run that is there already.
    assert {name: tree and tree.model for name, tree in trees.items()} == {
        "hsnn-market": "hsnn-3",
        "hsnn-million": None,
        "hsnn-sports": "hsnn-3",
        "hsnn-gowalla": "hsnn-3",
    }
    for table in retrieval_tables():
        beside = {claim.better for claim in table.comparisons if claim.worse == "kmeans_tree"}
        tree = rows[table.name].get("kmeans_tree")
        # By the networks of the index that it is compared with, and with a hierarchy.
        assert {rows[table.name][name].model for name in beside} == (
            {tree.model} if tree else set()
        )
        if tree:
            recipe = config.read_toml(RECIPES / table.recipes / f"{tree.model}.toml")
            assert len(recipe["model"]["codebooks"]) > 1


def test_a_teacher_labels_where_what_was_shown_is_known() -> None:
    taught = {
        table.name: {row.name: row.teacher for row in table.rows if row.teacher}
        for table in retrieval_tables()
    }
    rows = {"hsnn-2-taught": "monn-large", "two_tower-taught": "monn-large"}
    assert {name: found for name, found in taught.items() if found} == {"hsnn-market": rows}


def test_table_without_the_large_network_and_the_separate_index_has_the_other_bars() -> None:
    few = replace(TABLE, large="", separate="", comparisons=())

    said = [claim["claim"] for claim in claims_of(few, _rows())]

    assert any("at equal latency" in claim for claim in said)
    assert any("loses at most 3%" in claim for claim in said)
    assert not any("apart" in claim or "large" in claim for claim in said)


def test_row_whose_run_predicted_something_else_has_no_ne(tmp_path: Path) -> None:
    run = {"parameters": {"total": 6, "dense": 0}, "samples_per_second": 2.6, "commit": "abc"}
    run |= {"environment": {"device_name": "a CPU"}, "precision": "float32", "curve": [[4, 0.1]]}
    artifacts.write_json(tmp_path / "run.json", run)
    task = {"ne": 0.9, "calibration": 1.0}
    artifacts.write_json(tmp_path / "metrics.json", {"metrics": {"test": {"click": task}}})
    found = {"points": [{"setting": "all", "is_main": True, "recall@100": 0.2}]}
    with_ne, without = (
        search_row_of("made-up", 0, found, tmp_path, has_ne=has_ne) for has_ne in (True, False)
    )

    assert with_ne["metrics"] == {"recall@100": 0.2, **task}
    assert without["metrics"] == {"recall@100": 0.2, "ne": None}
    assert without["curve"] == [[4, 0.1]]
    assert (without["parameters"], without["samples_per_second"]) == (6, 3)


@pytest.mark.parametrize("folder", sorted({table.recipes for table in retrieval_tables()}))
@pytest.mark.parametrize("variant", [*_SETTINGS])
def test_recipes_of_tables_2_and_3_differ_from_the_joint_one_in_one_setting(
    variant: str, folder: str
) -> None:
    joint, other = (
        config.read_toml(RECIPES / folder / f"{name}.toml") for name in ("hsnn-2", variant)
    )
    key, value = _SETTINGS[variant]
    # What is clustered once is clustered at a time of its own: joint learning has none.
    clustered = {"cluster_steps": other["model"]["cluster_steps"]} if variant == SIL else {}

    assert joint["model"].get(key) != value
    assert other == {**joint, "model": {**joint["model"], key: value, **clustered}}


@pytest.mark.parametrize("folder", sorted({table.recipes for table in retrieval_tables()}))
def test_two_towers_are_trained_as_every_network_that_is_compared_with_them(folder: str) -> None:
    recipes = {path.stem: config.read_toml(path) for path in (RECIPES / folder).glob("*.toml")}
    two_tower = recipes.pop("two_tower")
    networks = {name for name, one in recipes.items() if one["model"].get("name") == "hsnn"}
    used = {
        model for table in retrieval_tables() if table.recipes == folder for model in table.models
    }

    # LightGCN, which has a trainer of its own, is no network of the catalog.
    assert networks == used - {"two_tower", "lightgcn"}
    for name in networks:
        for section in ("training", "optimizer"):
            assert recipes[name][section] == two_tower[section], (name, section)
        assert set(recipes[name]) == set(two_tower), name
