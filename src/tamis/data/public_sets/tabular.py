"""Frappe, MovieLens-1M and the Criteo attribution sample: one row for each impression."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tamis.data.public_sets.files import SPLITS, read_parquet, split_rows
from tamis.data.schema import Field, Roles, Schema, Side, Task


def frappe(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
    """Frappe app usage in the published 7:2:1 split of libfm files (BARS ``frappe_x1``).

    Source:
        Baltrunas et al., Frappe: Understanding the Usage and Perception of Mobile App
        Recommendations In-The-Wild, arXiv:1505.03014; split of He and Chua, SIGIR 2017.

    Differs from the source:
        The published training rows were not at hand: of those read here the positives are the
        published ones, and the negatives were drawn anew in the same number.
    """
    names = {"train": "libfm_train_reconstructed", "valid": "libfm_valid", "test": "libfm_test"}
    tables = {split: read_parquet(folder / f"{names[split]}.parquet") for split in SPLITS}
    sides: dict[str, Side] = {"user": "user", "item": "item", "cost": "item"}
    fields = tuple(
        Field(name=column, kind="categorical", side=sides.get(column, "context"))
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

    Differs from the source:
        Ratings are cut into two classes, and the split is of this library.
    """
    ratings = read_parquet(folder / "ratings_no_time.parquet")
    users = read_parquet(folder / "users.parquet")
    movies = read_parquet(folder / "movies.parquet")
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
    return split_rows(table, {"train": 0.8, "valid": 0.1, "test": 0.1}), schema


def criteo_attribution_5cat(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
    """Five categories of the Criteo attribution log; the published validation part is the test.

    A tenth of the published training part, drawn with a fixed seed, selects models.

    Source:
        Diemert et al., Attribution Modeling Increases Efficiency of Bidding in Display
        Advertising, AdKDD 2017.

    Differs from the source:
        Clicks are predicted, from five of nine categories; conversions and costs are left out.
    """
    columns = ["click", "cat1", "cat4", "cat6", "cat8", "cat9"]
    tables = split_rows(
        read_parquet(folder / "train.parquet").select(columns), {"train": 0.9, "valid": 0.1}
    )
    tables["test"] = read_parquet(folder / "valid.parquet").select(columns)
    fields = tuple(Field(name=column, kind="categorical") for column in columns[1:])
    return tables, Schema(fields=fields, tasks=(Task(name="click"),))
