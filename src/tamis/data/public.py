"""Readers of public data sets: from the published files to split logs with a schema.

Each reader writes ``train.parquet``, ``valid.parquet`` and ``test.parquet`` into a folder of the
caller's, with every published column that a model may see, so that tamis and any rival read the
very same rows. The published files themselves are never part of tamis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tamis import artifacts
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import DataError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicSet:
    """A public data set, split and ready for ingest."""

    name: str
    """Name of the set."""
    files: dict[str, Path]
    """Parquet file of each split."""
    schema: Schema
    """What the columns mean."""


def prepare(name: str, root: Path, out: Path) -> PublicSet:
    """Read a public set and write its splits to ``out``.

    The same files give the same bytes. Splits that are not published are drawn with a fixed seed
    that is part of the reader.

    Args:
        name: One of ``PUBLIC_SETS``.
        root: Folder that holds one folder per public set.
        out: Where the three Parquet files go.

    Returns:
        The files and their schema.

    Raises:
        DataError: The name is unknown or a published file is missing.
    """
    if name not in PUBLIC_SETS:
        known = ", ".join(PUBLIC_SETS)
        raise DataError(f"public set: must be one of {known}, got {name!r}.")
    tables, schema = PUBLIC_SETS[name](root / name)
    files = {split: out / f"{split}.parquet" for split in SPLITS}
    for split, file in files.items():
        with artifacts.atomic_path(file) as temporary:
            pq.write_table(tables[split], temporary, compression="zstd")
    artifacts.write_text(out / "schema.toml", schema.to_toml())
    return PublicSet(name=name, files=files, schema=schema)


def frappe(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
    """Frappe app usage in the published 7:2:1 split of libfm files (BARS ``frappe_x1``).

    Source:
        Baltrunas et al., Frappe: Understanding the Usage and Perception of Mobile App
        Recommendations In-The-Wild, arXiv:1505.03014; split of He and Chua, SIGIR 2017.
    """
    names = {"train": "libfm_train_reconstructed", "valid": "libfm_valid", "test": "libfm_test"}
    tables = {split: _read(folder / f"{names[split]}.parquet") for split in SPLITS}
    sides = {"user": "user", "item": "item", "cost": "item"}
    fields = tuple(
        Field(name=column, kind="categorical", side=_side(sides.get(column)))
        for column in tables["train"].column_names
        if column != "label"
    )
    roles = Roles(user="user", item="item")
    return tables, Schema(fields=fields, tasks=(Task(name="label"),), roles=roles)


def movielens_1m(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
    """MovieLens-1M as click prediction: rating of at least 4, with side features.

    Rows are split 8:1:1 at random with a fixed seed: the ratings at hand have no time stamps.

    Source:
        Harper and Konstan, The MovieLens Datasets: History and Context, TiiS 2015.
    """
    ratings = _read(folder / "ratings_no_time.parquet")
    users = _read(folder / "users.parquet")
    movies = _read(folder / "movies.parquet")
    seen_by = users.take(pc.index_in(pc.cast(ratings["user_id"], pa.int64()), users["user_id"]))
    shown = movies.take(pc.index_in(pc.cast(ratings["movie_id"], pa.int64()), movies["movie_id"]))
    year = pc.struct_field(pc.extract_regex(shown["title"], r"\((?P<year>\d{4})\)\s*$"), "year")
    table = pa.table(
        {
            "click": pc.cast(pc.greater_equal(ratings["rating"], 4), pa.int8()),
            **{
                column: seen_by[column]
                for column in ("user_id", "gender", "age", "occupation", "zip")
            },
            "movie_id": shown["movie_id"],
            "year": year,
            "genres": shown["genres"],
        }
    )
    fields = (
        *(
            Field(name=column, kind="categorical", side="user")
            for column in ("user_id", "gender", "age", "occupation", "zip")
        ),
        Field(name="movie_id", kind="categorical", side="item"),
        Field(name="year", kind="categorical", side="item"),
        Field(name="genres", kind="sequence", side="item", separator="|", max_length=6),
    )
    schema = Schema(
        fields=fields,
        tasks=(Task(name="click"),),
        roles=Roles(user="user_id", item="movie_id"),
    )
    return _split_rows(table, {"train": 0.8, "valid": 0.1, "test": 0.1}), schema


def criteo_attribution_5cat(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
    """Five categories of the Criteo attribution log; the published validation part is the test.

    A tenth of the published training part, drawn with a fixed seed, selects models.

    Source:
        Diemert et al., Attribution Modeling Increases Efficiency of Bidding in Display
        Advertising, AdKDD 2017.
    """
    columns = ["click", "cat1", "cat4", "cat6", "cat8", "cat9"]
    tables = _split_rows(
        _read(folder / "train.parquet").select(columns), {"train": 0.9, "valid": 0.1}
    )
    tables["test"] = _read(folder / "valid.parquet").select(columns)
    fields = tuple(Field(name=column, kind="categorical") for column in columns[1:])
    return tables, Schema(fields=fields, tasks=(Task(name="click"),))


PUBLIC_SETS: dict[str, Callable[[Path], tuple[dict[str, pa.Table], Schema]]] = {
    "frappe": frappe,
    "movielens_1m": movielens_1m,
    "criteo_attribution_5cat": criteo_attribution_5cat,
}
"""Reader of each public set by name."""


def _read(path: Path) -> pa.Table:
    if not path.exists():
        raise DataError(
            f"{path}: must exist, got no such file. Set TAMIS_DATA to the folder that holds "
            f"the public sets."
        )
    return pq.read_table(path)


def _side(side: str | None) -> Any:  # noqa: ANN401  (a Literal of Field.side)
    return side or "context"


def _split_rows(table: pa.Table, shares: dict[str, float]) -> dict[str, pa.Table]:
    order = np.random.default_rng(2024).permutation(table.num_rows)
    bounds = np.cumsum([0, *(round(share * table.num_rows) for share in shares.values())])
    bounds[-1] = table.num_rows
    return {
        split: table.take(pa.array(np.sort(order[start:stop])))
        for split, start, stop in zip(shares, bounds[:-1], bounds[1:], strict=True)
    }
