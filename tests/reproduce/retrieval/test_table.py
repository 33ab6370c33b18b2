"""A table of retrieval from a tiny market and from a tiny public set, trained and searched."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis import artifacts
from tamis.errors import ConfigError, DataError
from tamis.reproduce.make import MadeTable
from tamis.reproduce.retrieval import searchers
from tamis.reproduce.retrieval.beams import CHOICES, measured_shares
from tamis.reproduce.retrieval.row import RowOrder, make_row
from tamis.reproduce.retrieval.scores import Measurer
from tamis.reproduce.retrieval.tables import RetrievalTable, SearchRow
from tamis.retrieval.search import BeamSearcher, Retriever

MakeTiny = Callable[[RetrievalTable], MadeTable]

pytestmark = pytest.mark.slow


@pytest.mark.slow(seconds=100)
def test_market_goes_through_the_whole_table(
    make_tiny: MakeTiny, tiny_table: RetrievalTable
) -> None:
    made = make_tiny(tiny_table)
    payload = artifacts.read_json(made.path)

    assert payload["complete"]
    assert [(row["model"], row["seed"]) for row in payload["rows"]] == [
        (row.name, seed) for seed in range(2) for row in tiny_table.rows
    ]
    rows = {row["model"]: row for row in payload["rows"] if row["seed"] == 0}
    for row in rows.values():
        assert 0 <= row["metrics"]["value_recall@100"] <= 1
        assert 0 <= row["metrics"]["recall@20"] <= row["metrics"]["recall@50"]
        assert row["metrics"]["p50_ms"] > 0
        assert sum(point["is_main"] for point in row["points"]) == 1
    # Everything is scored where there is no index, and less under one.
    num_items = rows["two_tower"]["metrics"]["pairs"]
    assert rows["alone"]["metrics"]["pairs"] == num_items
    assert rows["joint"]["metrics"]["pairs"] < num_items
    pairs = [point["pairs"] for point in rows["joint"]["points"]]
    assert pairs == sorted(pairs)
    assert rows["joint"]["metrics"]["index_loss"] == pytest.approx(
        1
        - rows["joint"]["metrics"]["value_recall@100"]
        / rows["joint"]["exhaustive"]["value_recall@100"]
    )
    # The narrowest beams that lose little on other users stand for the row.
    tried = rows["joint"]["validation"]
    assert [one["share"] for one in tried] == list(CHOICES[: len(tried)])
    assert [one["index_loss"] <= 0.015 for one in tried[:-1]] == [False] * (len(tried) - 1)
    assert rows["joint"]["points"][len(tried)]["is_main"]
    assert rows["joint"]["weights"] != rows["apart"]["weights"]
    assert rows["joint"]["weights"] != rows["taught"]["weights"]
    assert rows["taught"]["recipe"] != rows["joint"]["recipe"]
    assert len(rows["deep"]["levels"]) == 2
    said = {check["check"] for check in rows["deep"]["checks"]}
    assert "shuffled codes of the second level leave more over" in said
    assert "permuted features of pairs raise the NE" in said
    assert set(rows["joint"]["forward"]) == {"soft", "hard", "representative"}
    assert [len(rows["deep"][name]) for name in ("served", "traffic")] == [3, 2]
    # The same networks, and another index of as many levels and no more nodes.
    assert rows["kmeans"]["weights"] == rows["deep"]["weights"]
    assert rows["kmeans"]["exhaustive"] != rows["deep"]["exhaustive"]
    shares = [len(point["setting"].split("-")) for point in rows["kmeans"]["points"]]
    chosen = rows["kmeans"]["validation"][-1]["share"]
    assert shares == [2] * len(measured_shares(chosen, whole_curve=False))
    # Its nodes are scored by what recalls more of validation users' lists.
    nodes = rows["kmeans"]["nodes"]
    assert nodes[nodes["chosen"]] == rows["kmeans"]["validation"]
    last = min(len(nodes[name]) for name in ("mean", "member")) - 1
    recalls = {name: nodes[name][last]["recall"] for name in ("mean", "member")}
    assert recalls[nodes["chosen"]] == max(recalls.values())
    assert "nodes" not in rows["joint"]
    # A checked row has beams of every width; that of the bars looks for items never shown.
    assert len(rows["deep"]["points"]) == 5
    assert [name for name, row in rows.items() if "by_content" in row] == ["joint"]
    assert 0 <= rows["joint"]["by_content"]["cold"] <= 1
    assert 0 < rows["joint"]["by_content"]["warm"] <= 1
    assert rows["kmeans"]["metrics"]["ne"] is None
    assert rows["kmeans"]["metrics"]["pairs"] < num_items + 4 + 4 * 3
    page = made.path.with_suffix(".md").read_text()
    assert "| row | value@100 | recall@20 | recall@50 |" in page
    assert "| deep | items |" in page
    assert made.levels is not None
    assert ["deep", "1"] in [line[:2] for line in made.levels[1]]
    assert "joint takes at most 15% of the operations of alone" in page


def test_a_finished_table_is_not_made_again_and_a_missing_row_alone(
    make_tiny: MakeTiny, tiny_table: RetrievalTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny(tiny_table).path
    before = path.read_bytes()
    payload = artifacts.read_json(path)
    gone = [row for row in payload["rows"] if (row["model"], row["seed"]) != ("popularity", 1)]
    artifacts.write_json(path, {**payload, "rows": gone})
    asked = []
    write = RowOrder.write

    def noted(self: RowOrder, folder: Path) -> None:
        asked.append((self.method, self.seed))
        write(self, folder)

    monkeypatch.setattr(RowOrder, "write", noted)
    make_tiny(tiny_table)

    assert asked == [("popularity", 1)]
    assert path.read_bytes() == before


def test_items_never_shown_are_looked_for_where_their_content_puts_them(
    place: Path,
    make_tiny: MakeTiny,
    tiny_table: RetrievalTable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_tiny(tiny_table)
    (row,) = (place / "work" / "tiny" / "joint").glob("*-seed0")
    (row / "metrics.json").unlink()
    placed: list[Retriever] = []
    searched: list[Retriever] = []
    by_content, among_unseen = searchers.placed_by_content, Measurer.among_unseen

    def place_and_note(*arguments: Any) -> Retriever:
        placed.append(by_content(*arguments))
        return placed[-1]

    def search_and_note(self: Measurer, searcher: BeamSearcher) -> dict[str, float] | None:
        searched.append(searcher.retriever)
        return among_unseen(self, searcher)

    monkeypatch.setattr(searchers, "placed_by_content", place_and_note)
    monkeypatch.setattr(Measurer, "among_unseen", search_and_note)
    make_row(row)

    assert len(searched) == 1
    assert searched[0] is placed[0]


def test_process_of_a_row_makes_it_and_prints_how_far_it_is(
    place: Path, make_tiny: MakeTiny, tiny_table: RetrievalTable
) -> None:
    make_tiny(tiny_table)
    (row,) = (place / "work" / "tiny" / "joint").glob("*-seed0")
    before = artifacts.read_json(row / "metrics.json")
    (row / "metrics.json").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "tamis.reproduce.retrieval", str(row)],
        capture_output=True,
        text=True,
        check=True,
    )

    again = artifacts.read_json(row / "metrics.json")
    assert again["weights"] == before["weights"]
    assert again["exhaustive"] == before["exhaustive"]
    assert again["points"]
    assert all(point["setting"] in done.stdout for point in again["points"])


def test_public_set_goes_through_the_whole_table(
    place: Path, make_tiny: MakeTiny, tiny_table: RetrievalTable
) -> None:
    _write_published(place / "published" / "gowalla")
    few = ("popularity", "two_tower", "ann", "alone", "joint", "apart")
    lightgcn = SearchRow(name="lightgcn", model="lightgcn", method="lightgcn")
    table = replace(
        tiny_table,
        name="public",
        dataset="gowalla",
        rows=(*(row for row in tiny_table.rows if row.name in few), lightgcn),
        indexed=("joint",),
        rivals=("ann",),
    )
    payload = artifacts.read_json(make_tiny(table).path)

    assert payload["complete"]
    row = next(row for row in payload["rows"] if row["model"] == "joint")
    assert "value_recall@100" not in row["metrics"]
    assert 0 <= row["metrics"]["recall@100"] <= 1
    # Nothing is known of pairs here, so nothing is claimed of it.
    assert "permuted features of pairs raise the NE" not in {
        check["check"] for check in row["checks"]
    }
    row = next(row for row in payload["rows"] if row["model"] == "lightgcn")
    # 8 dimensions of 60 users and 120 places.
    assert (row["parameters"], row["dense_parameters"]) == (8 * 180, 0)
    assert row["metrics"]["ne"] is None
    assert row["metrics"]["pairs"] == 120
    assert row["curve"][0][0] == 4


def test_missing_recipe_and_missing_data_are_told(
    place: Path, make_tiny: MakeTiny, tiny_table: RetrievalTable
) -> None:
    with pytest.raises(ConfigError, match=r"two_tower\.toml: must exist"):
        make_tiny(replace(tiny_table, name="elsewhere", recipes="nowhere"))
    with pytest.raises(DataError, match=r"sequences\.parquet: must exist"):
        make_tiny(replace(tiny_table, name="absent", dataset="amazon_sports_retrieval"))


def _write_published(folder: Path) -> None:
    """Users go to one half of 120 places, by their own number."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for user in range(60):
        places = 2 * generator.permutation(60)[:12] + user % 2
        splits = ["train"] * 8 + ["valid"] * 2 + ["test"] * 2
        rows += [(user, int(place), split) for place, split in zip(places, splits, strict=True)]
    users, items, splits = zip(*rows, strict=True)
    table = {
        "user_id": pa.array(users, pa.int32()),
        "item_id": pa.array(items, pa.int32()),
        "split": pa.array(splits),
    }
    pq.write_table(pa.table(table), folder / "interactions.parquet")
