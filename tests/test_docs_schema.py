"""The schema of docs/schema.md is one, and a log of its columns is ingested with it."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis import config
from tamis.data.ingest import ingest
from tamis.data.schema import Field, Roles, Schema, schema_from_table

PAGE = (Path(__file__).parents[1] / "docs" / "schema.md").read_text()


def _example(*, vectors: bool = False) -> Schema:
    text, given = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.S)
    return schema_from_table(tomllib.loads(text + given if vectors else text))


def test_example_ingests_a_log(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    count = 300
    item, shop, click = (generator.integers(0, top, count) for top in (20, 5, 2))
    log = {
        "ts": 1_700_000_000 + np.arange(count),
        "user_id": generator.integers(0, 30, count),
        "item_id": item,
        "request_id": np.arange(count) // 4,
        "shop": shop,
        "hist_items": ["|".join(map(str, item[: k % 4])) for k in range(count)],
        "hist_shops": ["|".join(map(str, shop[: k % 4])) for k in range(count)],
        "price": generator.lognormal(1, 1, count),
        "hour": generator.integers(0, 24, count),
        "title": ["a red bag"] * count,
        "click": click,
        "purchase": click * generator.integers(0, 2, count),
        "revenue": click * 1.5,
    }
    pq.write_table(pa.table(log), tmp_path / "log.parquet")

    spec = ingest(tmp_path / "log.parquet", tmp_path / "d", schema=_example()).spec

    (history, title) = spec.sequences
    assert (history.name, history.tables, history.side) == ("history", ("item_id", "shop"), "user")
    assert title.name == "title"

    looks = {"key": np.arange(20), "value": generator.normal(size=(20, 64)).tolist()}
    pq.write_table(pa.table(looks), tmp_path / "looks.parquet")
    spec = ingest(
        tmp_path / "log.parquet",
        tmp_path / "with-looks",
        schema=_example(vectors=True),
        vectors={"look": tmp_path / "looks.parquet"},
    ).spec
    assert spec.sequences[0].tables == ("item_id", "shop", "look")


def test_page_names_every_key_of_fields_and_roles() -> None:
    keys = [*config.to_table(Field(name="x", kind="numeric")), *config.to_table(Roles())]

    assert not [key for key in keys if key not in ("name", "reason") and f"`{key}`" not in PAGE]
