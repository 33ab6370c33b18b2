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
from tamis.data.schema import Roles, Schema
from tamis.errors import DataError
from tamis.funnel.ads import AdTable
from tamis.funnel.inventory import Inventory
from tamis.funnel.log import LoggedAds, ads_of, logged_ads
from tamis.funnel.value import BILLING
from tamis.publishing.recipe import AdsRecipe


def make_inventory(recipe: AdsRecipe, dataset: Dataset) -> Inventory:
    """The ads that some splits of a dataset show; rows that do not say their ad are left out.

    Popularity is the number of positives of the first task.

    Raises:
        DataError: No row says which ad it shows, a split is missing, the table of ads
            cannot be read, lacks one of them, unless these are left out, or has it twice, or the
            log is another.
    """
    splits = [dataset.split(name) for name in recipe.splits]
    ads = logged_ads(splits, dataset.schema, dataset.spec)
    table = _Table.read(recipe, dataset.schema.roles.item) if recipe.table else None
    if table is not None and recipe.without_bid == "leave_out":
        ads = _with_bids(ads, table, recipe)
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
        attributes=_attributes(recipe, ads, table),
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


def count_unshown(recipe: AdsRecipe, codes: NDArray[np.int64], roles: Roles) -> int:
    """Ads of the table that are none of the inventory's, whose codes are given."""
    if not recipe.table:
        return 0
    table = _Table.read(recipe, roles.item)
    named = table.codes(table.item)
    is_unshown = (named >= 0) & ~np.isin(named, codes) & table.has_bid(recipe.bid)
    return int(np.count_nonzero(is_unshown))


def _with_bids(ads: LoggedAds, table: "_Table", recipe: AdsRecipe) -> LoggedAds:
    """The ads that the table gives a bid.

    Raises:
        DataError: It gives none of them one.
    """
    named = table.codes(table.item)
    kept = np.isin(ads.codes, named[table.has_bid(recipe.bid)])
    if not kept.any():
        are_there = np.isin(ads.codes, named).any()
        column, what = (recipe.bid, "a bid for") if are_there else (table.item, "the id of")
        raise DataError(
            f"{table.origin.of(column)}: must hold {what} some ad that the log shows, got none of "
            f"{len(kept):,}. Name another column as ads.{'bid' if are_there else 'item'}."
        )
    return LoggedAds(codes=ads.codes[kept], rows=ads.rows.select(kept))


def _attributes(recipe: AdsRecipe, ads: LoggedAds, table: "_Table | None") -> AdTable:
    codes = ads.codes
    count = len(codes)
    if table is None:
        return AdTable(
            bid=np.ones(count),
            billing=np.full(count, recipe.pays_for),
            advertiser=np.arange(count),
            quality=np.zeros(count),
        )
    rows = _rows_of(table, ads)
    return AdTable(
        bid=table.bids(recipe.bid, rows) * recipe.bid_unit,
        billing=(
            table.billing(recipe.billing, rows, otherwise=recipe.pays_for)
            if recipe.billing
            else np.full(count, recipe.pays_for)
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
    def read(recipe: AdsRecipe, of_log: str) -> "_Table":
        """Read it; the column of ids has the log's name unless the recipe says another."""
        item = recipe.item or of_log
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

    def has_bid(self, name: str) -> NDArray[np.bool_]:
        """Which rows have one, whatever it is."""
        found: NDArray[np.bool_] = ~np.isnan(self.floats(name))
        return found

    def bids(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bids of some rows.

        Raises:
            DataError: One is missing, infinite or negative; file, column and row are named.
        """
        found = self.floats(name)[rows]
        is_wrong = ~(np.isfinite(found) & (found >= 0))
        if is_wrong.any():
            at = int(np.argmax(is_wrong))
            got = "none" if np.isnan(found[at]) else f"{found[at]:g}"
            raise DataError(
                f"{self.origin.of(name).row(int(rows[at]))}: a bid must be finite and not "
                f"negative, got {got}. Mend it; where the ad is shown no more, remove its bid and "
                f"set ads.without_bid = 'leave_out'."
            )
        return found

    def billing(self, name: str, rows: NDArray[np.int64], *, otherwise: str) -> NDArray[np.str_]:
        """What the ads of some rows pay for.

        Raises:
            DataError: A word is another; file, column and row are named.
        """
        values = source_column(self.rows, name, origin=self.origin).to_pylist()
        words = np.array([otherwise if word is None else str(word) for word in values])
        is_wrong = ~np.isin(words[rows], BILLING)
        if is_wrong.any():
            row = int(rows[int(np.argmax(is_wrong))])
            raise DataError(
                f"{self.origin.of(name).row(row)}: must be 'click' or 'conversion', got "
                f"{words[row].item()!r}. Say what the ad pays for."
            )
        return words[rows]


def _rows_of(table: _Table, ads: LoggedAds) -> NDArray[np.int64]:
    """Row of the table of each ad."""
    codes, known = ads.codes, table.codes(table.item)
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
    is_missing = ordered[at] != codes
    if is_missing.any():
        shown = int(ads.rows.row[int(np.argmax(is_missing))])
        count = np.count_nonzero(is_missing)
        raise DataError(
            f"{table.origin.of(table.item)}: must hold every ad that the log shows, got none for "
            f"{count:,} of {len(codes):,}, such as that of row {shown + 1:,} of the log. Add them; "
            f"name another column of ids as ads.item; or, where they are shown no more, set "
            f"ads.without_bid = 'leave_out'."
        )
    rows: NDArray[np.int64] = order[at]
    return rows
