"""Sets in the layout of reczoo (BARS): CSV files that somebody fetched, split as published.

Criteo and Avazu come as train, valid and test; ``x1`` are used as they are, ``x4`` pass the
published preprocessing on the way to Parquet, block by block. Amazon electronics, Taobao's ads and
Kuaishou's videos have no validation file: BARS picks epochs on the test file, so published figures
are of that protocol (``_bars``), while the plain names hold out a twentieth of the training file.
"""

import csv
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tamis import artifacts
from tamis.data.schema import Field, Roles, Schema, Side, Task
from tamis.errors import DataError

Files = dict[str, Path]
Convert = Callable[[pa.Table], pa.Table]
HeldOut = Callable[[int, pa.Table], pa.Array]
"""Which rows of a block of the training file are for validation; the block's first row is n-th."""

_CRITEO_NUMBERS = tuple(f"I{number}" for number in range(1, 14))
_CRITEO_CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
_AVAZU = (
    *("C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain"),
    *("app_category", "device_id", "device_ip", "device_model", "device_type"),
    *("device_conn_type", *(f"C{number}" for number in range(14, 22))),
)
_TAOBAO_USER = (
    *("userid", "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level"),
    *("shopping_level", "occupation", "new_user_class_level"),
)
_TAOBAO_ITEM = ("adgroup_id", "cate_id", "campaign_id", "customer", "brand")


def criteo_x1(folder: Path, out: Path) -> tuple[Files, Schema]:
    """Criteo's display ads, 7:2:1, as prepared for AFN: numbers scaled, rare categories merged."""
    del out
    fields = (
        *(Field(name=name, kind="numeric", transform="none") for name in _CRITEO_NUMBERS),
        *(Field(name=name, kind="categorical") for name in _CRITEO_CATEGORIES),
    )
    return _three(folder), Schema(fields=fields, tasks=(Task(name="label"),))


def criteo_x4(folder: Path, out: Path) -> tuple[Files, Schema]:
    """Criteo's display ads, 8:1:1: numbers above 2 become ``floor(ln(v) ** 2)``, all categories.

    A missing number is the bucket of 0, as in BARS. Categories seen in fewer than ten training rows
    share a row (``x4_001``).
    """
    files = _converted(_three(folder), out, _criteo_buckets)
    names = (*_CRITEO_NUMBERS, *_CRITEO_CATEGORIES)
    fields = tuple(Field(name=name, kind="categorical", min_count=10) for name in names)
    return files, Schema(fields=fields, tasks=(Task(name="Label"),))


def avazu_x1(folder: Path, out: Path) -> tuple[Files, Schema]:
    """Avazu's mobile ads, 7:1:2, as prepared for AFN."""
    del out
    fields = tuple(Field(name=f"feat_{n}", kind="categorical") for n in range(1, 23))
    return _three(folder), Schema(fields=fields, tasks=(Task(name="label"),))


def avazu_x4(folder: Path, out: Path) -> tuple[Files, Schema]:
    """Avazu's mobile ads, 8:1:1: the hour as hour, weekday and weekend; no id of the row.

    Categories seen once in training share a row (``x4_001``).
    """
    files = _converted(_three(folder), out, _avazu_hours)
    names = ("hour", "weekday", "is_weekend", *_AVAZU)
    fields = tuple(Field(name=name, kind="categorical", min_count=2) for name in names)
    return files, Schema(fields=fields, tasks=(Task(name="click"),))


def amazon_electronics_x1(folder: Path, out: Path, *, bars: bool) -> tuple[Files, Schema]:
    """Amazon electronics as DIN made it; the user groups rows and is no input, as in BARS.

    Whole users are held out for validation: a model knows none of them but by the history.
    """
    fields = (
        *(Field(name=name, kind="categorical", side="item") for name in ("item_id", "cate_id")),
        _history("item_history", "item_id", 100, "history"),
        _history("cate_history", "cate_id", 100, "history"),
    )
    roles = Roles(user="user_id", item="item_id")
    schema = Schema(fields=fields, tasks=(Task(name="label"),), roles=roles)
    return _two(folder, out, lambda _: partial(_users, "user_id"), bars=bars), schema


def taobao_ad_x1(folder: Path, out: Path, *, bars: bool) -> tuple[Files, Schema]:
    """Taobao's display ads: eight days, the last one tested; histories of categories and brands.

    The user is an input, so rows are held out for validation, not users: these would have ids that
    training never saw, unlike most of the test file. No column says when a row was.

    Differs from the source:
        The price is standardised.
    """
    sides: tuple[tuple[tuple[str, ...], Side], ...] = (
        (_TAOBAO_USER, "user"),
        (_TAOBAO_ITEM, "item"),
        (("pid", "btag"), "context"),
    )
    fields = (
        *(
            Field(name=name, kind="categorical", side=side, min_count=10)
            for names, side in sides
            for name in names
        ),
        Field(name="price", kind="numeric", side="item", transform="standardise"),
        _history("cate_his", "cate_id", 50, "history"),
        _history("brand_his", "brand", 50, "history"),
        _history("btag_his", "btag", 50, "history"),
    )
    roles = Roles(user="userid", item="adgroup_id")
    schema = Schema(fields=fields, tasks=(Task(name="clk"),), roles=roles)
    return _two(folder, out, lambda _: _rows, bars=bars), schema


def kuai_video_x1(folder: Path, out: Path, *, bars: bool) -> tuple[Files, Schema]:
    """Kuaishou's videos: what a user clicked, and what not, as two histories that are not aligned.

    The user is an input, so the last rows by time are held out for validation, not users: these
    would have ids that training never saw, unlike most of the test file.

    The files keep the first 100 events of a user's history: its last ones need not be recent.

    Every item has a visual vector, the rare ones and those of the test file too.
    """
    fields = (
        Field(name="user_id", kind="categorical", side="user", min_count=10),
        Field(name="item_id", kind="categorical", side="item", min_count=10),
        Field(name="item_visual", kind="categorical", column="item_id", side="item", vectors=64),
        _history("pos_items", "item_id", 100, "pos_items"),
        _history("pos_visual", "item_visual", 100, "pos_items", column="pos_items"),
        _history("neg_items", "item_id", 100, "neg_items"),
        _history("neg_visual", "item_visual", 100, "neg_items", column="neg_items"),
    )
    roles = Roles(user="user_id", item="item_id")
    schema = Schema(fields=fields, tasks=(Task(name="is_click"),), roles=roles)
    return _two(folder, out, partial(_latest, "timestamp"), bars=bars), schema


def _history(name: str, shares: str, longest: int, group: str, *, column: str = "") -> Field:
    return Field(
        name=name,
        column=column,
        kind="sequence",
        side="user",
        shares=shares,
        separator="^",
        max_length=longest,
        group=group,
    )


def _three(folder: Path) -> Files:
    return {split: existing(folder / f"{split}.csv") for split in ("train", "valid", "test")}


def _two(folder: Path, out: Path, hold_out: Callable[[Path], HeldOut], *, bars: bool) -> Files:
    """Train and test, and for validation the test file or what is held out of the training file."""
    train, test = (existing(folder / f"{split}.csv") for split in ("train", "test"))
    if bars:
        return {"train": train, "valid": test, "test": test}
    is_held_out = hold_out(train)
    valid = _write(_part(train, is_held_out), out / "valid.parquet")
    rest = _part(train, lambda first, table: pc.invert(is_held_out(first, table)))
    return {"train": _write(rest, out / "train.parquet"), "valid": valid, "test": test}


def _part(train: Path, is_wanted: HeldOut) -> Iterator[pa.Table]:
    """Rows of the training file; histories stay text."""
    first = 0
    for block in _blocks(train):
        yield block.filter(is_wanted(first, block))
        first += block.num_rows


def _users(user: str, first: int, table: pa.Table) -> pa.Array:
    """The rows of every twentieth user: those whose number ends so."""
    del first
    column = _column(table, user)
    are_numbers = pc.match_substring_regex(column, r"^\d+$")
    wrong = column.filter(pc.invert(pc.fill_null(are_numbers, False)))
    if len(wrong):
        raise DataError(f"{user}: must be a whole number in every row, got {wrong[0].as_py()!r}.")
    digits = pc.cast(pc.utf8_slice_codeunits(pc.cast(column, pa.string()), -2), pa.int64())
    return pc.equal(pc.subtract(digits, pc.multiply(pc.divide(digits, 20), 20)), 7)


def _rows(first: int, table: pa.Table) -> pa.Array:
    """Every twentieth row."""
    return pa.array(np.arange(first, first + table.num_rows) % 20 == 7)


def _latest(time: str, train: Path) -> HeldOut:
    """The last twentieth of the rows by time; rows of one time stay together."""
    times = np.concatenate([_times(time, block) for block in _blocks(train)])
    start = np.quantile(times, 0.95, method="higher")
    if start == times.min():
        raise DataError(
            f"{train}: {time} must tell the last twentieth of the rows from the rest, got "
            f"{start:g} in at least 95 % of them. Fetch the set anew."
        )
    return lambda _, table: pa.array(_times(time, table) >= start)


def _times(name: str, table: pa.Table) -> np.ndarray:
    try:
        numbers: np.ndarray = pc.cast(_column(table, name), pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(f"{name}: must be a number in every row, got {error}.") from error
    if np.isnan(numbers).any():
        raise DataError(f"{name}: must be a number in every row, got none in one of them.")
    return numbers


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise DataError(
            f"{name}: must be a column of the training file, got {', '.join(table.column_names)}."
        )
    return table[name]


def _criteo_buckets(table: pa.Table) -> pa.Table:
    for name in _CRITEO_NUMBERS:
        values = pc.fill_null(pc.cast(table[name], pa.float64()), 0.0).to_numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            buckets = np.where(values > 2, np.floor(np.log(values) ** 2), np.trunc(values))
        column = pc.cast(pa.array(buckets), pa.int64())
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _avazu_hours(table: pa.Table) -> pa.Table:
    """``hour`` is YYMMDDHH."""
    text = pc.cast(table["hour"], pa.string())
    day = pc.strptime(pc.utf8_slice_codeunits(text, 0, 6), "%y%m%d", "s")
    weekday = pc.day_of_week(day)
    place = table.column_names.index("hour")
    table = table.set_column(place, "hour", pc.utf8_slice_codeunits(text, 6, 8))
    table = table.append_column("weekday", weekday)
    weekend = pc.cast(pc.greater_equal(weekday, 5), pa.int8())
    return table.append_column("is_weekend", weekend)


def _converted(files: Files, out: Path, convert: Convert) -> Files:
    """CSV files as Parquet, converted block by block, so that none is ever held whole."""
    return {
        split: _write(map(convert, _blocks(source)), out / f"{split}.parquet")
        for split, source in files.items()
    }


def _write(tables: Iterator[pa.Table], path: Path) -> Path:
    first = next(tables)
    with (
        artifacts.atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, first.schema, compression="zstd") as writer,
    ):
        for table in itertools.chain([first], tables):
            writer.write_table(table)
    return path


def _blocks(path: Path) -> Iterator[pa.Table]:
    """Blocks of a CSV file, at least one; every column is text until it is converted or encoded."""
    is_empty = True
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
        reading = pyarrow.csv.ReadOptions(block_size=64 << 20)
        converting = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        )
        with pyarrow.csv.open_csv(path, reading, convert_options=converting) as reader:
            for batch in reader:
                if batch.num_rows:
                    is_empty = False
                    yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise DataError(f"{path}: must be a CSV file of UTF-8 text, got {error}") from error
    if is_empty:
        raise DataError(f"{path}: must hold rows, got none.")


def existing(path: Path) -> Path:
    """The path of a published file.

    Raises:
        DataError: It is not there.
    """
    if not path.exists():
        raise DataError(
            f"{path}: must exist, got no such file. Fetch the set from reczoo, unpack it, and set "
            f"TAMIS_DATA to the folder that holds its folder."
        )
    return path
