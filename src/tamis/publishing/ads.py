"""The inventory of a funnel: features from a log, bids from a table."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.columns import Origin, alone_where_missing, as_codes, as_floats, source_column
from tamis.data.dataset import Dataset
from tamis.data.ingest import MARKET_MANIFEST, numeric_columns
from tamis.data.readers import column_names, discover, read_chunks
from tamis.data.schema import Schema
from tamis.errors import DataError
from tamis.funnel.ads import AdTable
from tamis.funnel.inventory import Inventory
from tamis.funnel.log import LoggedAds, ads_of, logged_ads
from tamis.publishing.recipe import AdsRecipe


def make_inventory(recipe: AdsRecipe, dataset: Dataset) -> Inventory:
    """The ads that some splits of a dataset show; rows that do not say their ad are left out.

    Popularity is the number of positives of the first task.

    Raises:
        DataError: No row says which ad it shows, a split is missing, the table of ads
            cannot be read, lacks one of them or has it twice, or the log is another.
    """
    splits = [dataset.split(name) for name in recipe.splits]
    ads = logged_ads(splits, dataset.schema, dataset.spec)
    by_code = np.argsort(ads.codes)
    popularity = np.zeros(len(ads.codes))
    for split in splits:
        item = split.role("item")
        assert item is not None  # else there were no ads
        rows = ads_of(item, ads.codes, by_code)
        shown, is_positive = rows >= 0, split.labels()[:, 0] > 0
        popularity += np.bincount(rows[shown], is_positive[shown], minlength=len(ads.codes))
    return Inventory(
        codes=ads.codes,
        attributes=_attributes(recipe, ads.codes, dataset.schema.roles.item),
        rows=ads.rows,
        popularity=popularity,
        raw=_raw_columns(recipe.log, dataset.schema, ads) if recipe.log else None,
    )


def _raw_columns(log: str, schema: Schema, ads: LoggedAds) -> pa.Table:
    """The very rows of the log that the ads' features were encoded from, by ad row."""
    names = [schema.roles.item, *(item.source for item in schema.fields if item.side == "item")]
    path = Path(log)
    order, parts, first = np.argsort(ads.rows.row), [], 0
    wanted = ads.rows.row[order]
    for file in discover(path / "logs" if (path / MARKET_MANIFEST).exists() else path):
        for table in read_chunks(
            file, columns=list(dict.fromkeys(names)), numeric=numeric_columns(schema)
        ):
            low, high = np.searchsorted(wanted, [first, first + table.num_rows])
            parts.append(table.take(pa.array(wanted[low:high] - first)))
            first += table.num_rows
    found = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    origin = Origin(file=log)
    codes = as_codes(source_column(found, schema.roles.item, origin=origin))
    if not np.array_equal(codes, ads.codes[order]):
        raise DataError(
            f"{origin.of(schema.roles.item)}: must be the log that the dataset was made of, got "
            f"other ads in its rows. Name that log as ads.log."
        )
    return found.take(pa.array(np.argsort(order)))


def _attributes(recipe: AdsRecipe, codes: NDArray[np.int64], item: str) -> AdTable:
    count = len(codes)
    if not recipe.table:
        return AdTable(
            bid=np.ones(count),
            billing=np.full(count, recipe.pays_for),
            advertiser=np.arange(count),
            quality=np.zeros(count),
        )
    table = _Table.read(recipe, recipe.item or item)
    rows = _rows_of(table, codes)
    return AdTable(
        bid=table.bids(recipe.bid, rows) * recipe.bid_unit,
        billing=(
            table.texts(recipe.billing)[rows] if recipe.billing else np.full(count, recipe.pays_for)
        ),
        advertiser=(
            alone_where_missing(table.codes(recipe.advertiser)[rows], codes)
            if recipe.advertiser
            else np.arange(count)
        ),
        quality=table.floats(recipe.quality)[rows] if recipe.quality else np.zeros(count),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Table:
    """The table of ads as it was read."""

    rows: pa.Table
    item: str
    origin: Origin

    @staticmethod
    def read(recipe: AdsRecipe, item: str) -> "_Table":
        (file, *more) = discover(Path(recipe.table))
        if more:
            raise DataError(
                f"{recipe.table}: must be one file of ads, got {1 + len(more)}. Name the file."
            )
        names = (item, recipe.bid, recipe.advertiser, recipe.billing, recipe.quality)
        numeric = frozenset(name for name in (recipe.bid, recipe.quality) if name)
        columns = list(dict.fromkeys(name for name in names if name))
        origin, found = Origin(file=str(file.path)), column_names(file)
        for name in columns:
            if name not in found:
                raise DataError(
                    f"{origin}: must hold column {name!r}, got {', '.join(found)}. Name another "
                    f"column under [ads], or another file."
                )
        chunks = list(read_chunks(file, columns=columns, numeric=numeric))
        if not chunks:
            raise DataError(f"{origin}: must hold ads, got a header only. Name another file.")
        return _Table(rows=pa.concat_tables(chunks), item=item, origin=origin)

    def codes(self, name: str) -> NDArray[np.int64]:
        return as_codes(source_column(self.rows, name, origin=self.origin))

    def floats(self, name: str) -> NDArray[np.float64]:
        column = source_column(self.rows, name, origin=self.origin)
        return as_floats(column, origin=self.origin.of(name))

    def bids(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bids of some rows.

        Raises:
            DataError: One is missing, infinite or negative; file, column and row are named.
        """
        found = self.floats(name)[rows]
        is_wrong = ~(np.isfinite(found) & (found >= 0))
        if is_wrong.any():
            at = int(np.argmax(is_wrong))
            raise DataError(
                f"{self.origin.of(name).row(int(rows[at]))}: a bid must be finite and not "
                f"negative, got {found[at]:g}. Mend it, or leave the ad out of log and table."
            )
        return found

    def texts(self, name: str) -> NDArray[np.str_]:
        column = source_column(self.rows, name, origin=self.origin)
        return np.array([str(value) for value in column.to_pylist()])


def _rows_of(table: _Table, codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of the table of each ad."""
    known = table.codes(table.item)
    order = np.argsort(known, kind="stable")
    ordered = known[order]
    twice = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0))
    if len(twice):
        row = int(order[twice[0] + 1])
        raise DataError(
            f"{table.origin.of(table.item).row(row)}: every ad must stand in one row, got it a "
            f"second time. Keep the row that holds."
        )
    at = np.minimum(np.searchsorted(ordered, codes), len(ordered) - 1)
    missing = int(np.count_nonzero(ordered[at] != codes))
    if missing:
        raise DataError(
            f"{table.origin.of(table.item)}: must hold every ad that the log shows, got none for "
            f"{missing:,} of {len(codes):,}. Add them, or name another column of ids as ads.item."
        )
    rows: NDArray[np.int64] = order[at]
    return rows
