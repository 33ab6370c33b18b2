"""Which table a sequence shares, and which sequences are of the same events."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.inference import infer_schema
from tamis.data.ingest import ingest
from tamis.data.schema import Field

COUNT, ITEMS = 600, 60
Infer = Callable[..., dict[str, Field]]


@pytest.fixture
def infer(tmp_path: Path) -> Infer:
    """Fields by name, inferred from a log of users, items, shops and the columns given."""

    def run(**columns: Any) -> dict[str, Field]:
        table = {**_log(), **columns}
        pq.write_table(pa.table(table), tmp_path / "log.parquet")
        fields = infer_schema(tmp_path / "log.parquet", ["click"]).schema.fields
        return {field.name: field for field in fields}

    return run


def _log() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    item = np.arange(COUNT) % ITEMS
    return {
        "user_id": generator.integers(0, 40, COUNT),
        "item_id": [f"i{k}" for k in item],
        "shop": [f"s{k % 7}" for k in item],
        "click": generator.integers(0, 2, COUNT),
    }


def _events(prefix: str = "", *, modulo: int = ITEMS, seed: int = 1) -> list[list[Any]]:
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(0, ITEMS, k % 5) % modulo for k in range(COUNT)]
    return [[f"{prefix}{k}" if prefix else int(k) for k in row] for row in drawn]


def test_history_shares_the_table_of_the_items_and_is_the_users(infer: Infer) -> None:
    past = infer(past=_events("i"))["past"]

    assert (past.shares, past.side) == ("item_id", "user")
    assert past.reason == "a list column; 100% of its events are values of 'item_id'"


def test_history_in_text_shares_too(infer: Infer) -> None:
    past = infer(past=["|".join(row) for row in _events("i")])["past"]

    assert (past.kind, past.shares, past.side) == ("sequence", "item_id", "user")


def test_history_with_blanks_between_its_events_shares_too(infer: Infer) -> None:
    past = infer(past=[" ".join(row) for row in _events("i")])["past"]

    assert (past.kind, past.separator, past.shares) == ("sequence", " ", "item_id")
    assert past.reason == (
        "strings of 60 different parts between blanks, as in 'item_id'; 100% of its events are "
        "values of 'item_id'"
    )


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["i900 i901 i902", "i901", "i903 i900", ""], "sequence"),
        (["s1 s2  s3", "s1  s2", "s3", "s1"], "categorical"),
        (["i900 boots", "i901", "red i902", ""], "categorical"),
        (["a7 a8 a9", "a8", "a8 a9", ""], "categorical"),
        (["3 5", "5 3", "7", "3"], "categorical"),
        (["3 5", "3 5", "3 5", "3 5"], None),
    ],
    ids=["written alike", "two blanks", "prose", "other letters", "small numbers", "constant"],
)
def test_texts_with_blanks_are_histories_by_another_column_only(
    infer: Infer, texts: list[str], kind: str | None
) -> None:
    fields = infer(it=texts * (COUNT // 4), rank=np.arange(COUNT) % 9)

    assert (fields["it"].kind if "it" in fields else None) == kind


def test_columns_of_the_same_events_are_one_group(infer: Infer, tmp_path: Path) -> None:
    items = _events("i")
    shops = [[f"s{int(event[1:]) % 7}" for event in row] for row in items]
    ages = [[f"{len(row) - k} d" for k in range(len(row))] for row in items]
    fields = infer(
        hist_items=items, hist_shops=shops, hist_ages=ages, other=[*_events("i")[1:], ["i3"]]
    )

    assert [fields[f"hist_{name}"].shares for name in ("items", "shops", "ages")] == [
        "item_id",
        "shop",
        "",
    ]
    assert {fields[f"hist_{name}"].group for name in ("items", "shops", "ages")} == {"hist_items"}
    assert {fields[f"hist_{name}"].side for name in ("items", "shops", "ages")} == {"user"}
    assert "as long as 'hist_items' in every row" in fields["hist_shops"].reason
    assert (fields["other"].group, fields["other"].shares) == ("", "item_id")
    schema = infer_schema(tmp_path / "log.parquet", ["click"]).schema
    groups = ingest(tmp_path / "log.parquet", tmp_path / "d", schema=schema).spec.sequences
    assert [group.name for group in groups] == ["hist_items", "other"]


def test_whole_numbers_share_where_name_or_number_speaks_for_it(infer: Infer) -> None:
    item = np.arange(COUNT) % ITEMS
    fields = infer(
        item_id=item,
        shop_id=item % 7,
        past=_events(),
        past_shops=_events(modulo=7, seed=2),
        few=_events(modulo=5, seed=3),
    )

    assert fields["past"].shares == "item_id"
    assert fields["past_shops"].shares == "shop_id"
    assert fields["few"].shares == ""


def test_history_of_more_than_the_sample_shows_shares_by_its_name(infer: Infer) -> None:
    events = [
        [f"i{int(event[1:]) + (k % 3 == 0) * 50}" for event in row]
        for k, row in enumerate(_events("i"))
    ]
    fields = infer(clicked_items=events, past=events)

    assert fields["clicked_items"].shares == "item_id"
    assert fields["past"].shares == ""


def test_histories_of_a_large_catalogue_share_and_are_sequences_in_text(infer: Infer) -> None:
    generator = np.random.default_rng(5)
    item = generator.integers(0, 9 * COUNT, COUNT)
    drawn = generator.integers(0, 9 * COUNT, (COUNT, 45)).tolist()
    fields = infer(item_id=item, items_seen=["|".join(map(str, row)) for row in drawn])

    assert fields["items_seen"].shares == "item_id"
    assert fields["items_seen"].reason.endswith(
        "of its events are values of 'item_id', named alike"
    )


@pytest.mark.parametrize("holds_own", [True, False], ids=["own value", "same for each item"])
def test_tags_of_the_item_are_no_history_of_the_user(infer: Infer, holds_own: bool) -> None:
    shops = [[f"s{(k % ITEMS + 1) % 7}"] * (k % ITEMS % 3) for k in range(COUNT)]
    if holds_own:
        shops = [[f"s{k % ITEMS % 7}", *row] for k, row in enumerate(_events("s", modulo=7))]
    tags = infer(tags=shops)["tags"]

    assert (tags.shares, tags.side) == ("shop", "context")


def test_lists_of_one_length_are_no_group_by_that_alone(infer: Infer) -> None:
    generator = np.random.default_rng(4)
    fields = infer(
        **{name: generator.integers(0, 9, (COUNT, 2)).tolist() for name in ("sizes", "colours")}
    )

    assert {fields[name].group for name in ("sizes", "colours")} == {""}


@pytest.mark.parametrize(("longest", "group"), [(60, "hist_items"), (80, "")])
def test_histories_longer_than_what_is_kept_are_a_group_where_they_are_as_long(
    infer: Infer, longest: int, group: str
) -> None:
    items = [[f"i{k}" for k in range(60 if k % 2 else 3)] for k in range(COUNT)]
    queries = [[f"q{k}" for k in range(longest if k % 2 else 3)] for k in range(COUNT)]
    fields = infer(hist_items=items, hist_queries=queries)

    assert {fields[name].group for name in ("hist_items", "hist_queries")} == {group}


def test_texts_of_which_few_hold_another_columns_values_are_no_histories(infer: Infer) -> None:
    brand = [f"b{k % ITEMS}" for k in range(COUNT)]
    note = [f"b{k % 3} b{k % 5}" if k % 9 == 0 else ["foo", "bar"][k % 2] for k in range(COUNT)]
    shift = [f"h{k % 3} h{k % 2}" for k in range(COUNT)]
    fields = infer(
        brand=brand, note=note, slot=[f"h{k % 3 + 5}" for k in range(COUNT)], shift=shift
    )

    assert {fields[name].kind for name in ("note", "shift")} == {"categorical"}


def test_number_whose_values_are_events_is_said_to_be_an_id_perhaps(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    campaigns = generator.integers(10_000, 90_000, 90)
    past = [generator.choice(campaigns, k % 5).tolist() for k in range(COUNT)]
    table = {**_log(), "campaign": campaigns[np.arange(COUNT) % 90], "past": past}
    path = tmp_path / "log.parquet"

    pq.write_table(pa.table(table), path)
    said = [text for text in infer_schema(path, ["click"]).warnings if "campaign" in text]
    pq.write_table(pa.table({**table, "past": _events()}), path)
    of_others = [text for text in infer_schema(path, ["click"]).warnings if "campaign" in text]

    assert said == [
        "campaign: taken as a number, but 100% of the events of 'past' are values of it; if these "
        "are ids, set kind = 'categorical' for it, and shares = 'campaign' for the history"
    ]
    assert of_others == []
