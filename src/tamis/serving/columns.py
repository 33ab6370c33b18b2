"""Columns of a log that come as JSON: what each may hold, and many rows of them as one table.

A row that went through here means to the encoders what the same row of a log file would: texts,
whole numbers and booleans of a category are one category each, as ``as_categories`` has it. A text
that a schema splits at a separator is split here, and kept as a list: an item of one may hold the
separator.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.data.columns import (
    Origin,
    as_categories,
    as_floats,
    combined,
    decoded,
    is_list,
    source_column,
    split_items,
)
from tamis.data.encoders import split_words
from tamis.data.schema import Field, Schema, Side
from tamis.errors import DataError
from tamis.serving.records import RawRow, RawValue
from tamis.serving.refused import RefusedError

MAX_CHARACTERS, MAX_TEXT_CHARACTERS, MAX_ITEMS = 256, 10_000, 1_000
"""Most characters of a category and of a text, and most items of a list."""

Kind = Literal["number", "category", "categories", "text"]
_TYPES: Mapping[Kind, pa.DataType] = {
    "number": pa.float64(),
    "category": pa.string(),
    "categories": pa.list_(pa.string()),
    "text": pa.string(),
}
_CELLS: Mapping[Kind, type | tuple[type, ...]] = {
    "number": (int, float),
    "category": str,
    "categories": list,
    "text": str,
}
"""What a cell is, as JSON has it."""
_MUST_BE: Mapping[Kind, str] = {
    "number": "a number",
    "category": "one category",
    "categories": "a list of categories",
    "text": "a text",
}
_KINDS: Mapping[str, Kind] = {
    "numeric": "number",
    "categorical": "category",
    "sequence": "categories",
    "text": "text",
}
"""By the kind of a field."""


class Columns:
    """The columns that the fields of a schema are read from, or those of some sides."""

    def __init__(
        self,
        schema: Schema,
        sides: Iterable[Side] = ("user", "item", "context"),
        *,
        without: Iterable[str] = (),
    ) -> None:
        """Find out what each column holds.

        Args:
            schema: The fields.
            sides: Whose columns.
            without: Columns that are left out.
        """
        self._roles = schema.roles
        readers: dict[str, list[Field]] = {}
        for item in schema.fields:
            readers.setdefault(item.source, []).append(item)
        wanted, left_out = set(sides), set(without)
        # All of a column's readers count: it is one column, whatever sides they describe.
        self._kinds = {
            name: _kind_of(items)
            for name, items in readers.items()
            if name not in left_out and any(item.side in wanted for item in items)
        }
        self._separators = {
            name: max(item.separator for item in readers[name])
            for name, kind in self._kinds.items()
            if kind == "categories"
        }
        self._also_numbers = {
            name
            for name, kind in self._kinds.items()
            if kind == "category" and any(item.kind == "numeric" for item in readers[name])
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self._kinds)

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """What each column holds."""
        return dict(self._kinds)

    def is_id(self, name: str) -> bool:
        """Whether a column, if it is one of these, can hold an id."""
        return self._kinds.get(name, "category") == "category"

    def is_plain(self, item: Field) -> bool:
        """Whether a field's column holds its values as they are, with nothing left to split."""
        kind = self._kinds[item.source]
        return kind != "text" and kind == _kind_of([item])

    def check(self, values: Mapping[str, Any], *, where: str) -> RawRow:
        """Values as a log would hold them.

        Args:
            values: By column; what is left out is missing.
            where: Path of ``values`` in the request.

        Raises:
            RefusedError: A column is none of these, or a value is of another kind or too large.
        """
        row = {}
        for name, value in values.items():
            if name not in self._kinds:
                raise RefusedError(
                    422,
                    where,
                    f"must hold no columns but {', '.join(self._kinds) or 'none at all'}; there is "
                    f"another. Remove it.",
                )
            place, separator = f"{where}.{name}", self._separators.get(name, "")
            row[name] = _checked(self._kinds[name], value, place, separator)
            if name in self._also_numbers and not _says_number(row[name]):
                raise RefusedError(
                    422, place, "must be a number, a text that says one, or null. Send a number."
                )
        return row

    def table(self, rows: Sequence[RawRow]) -> pa.Table:
        """Rows as the encoders take them; columns that a row lacks are missing.

        Raises:
            DataError: A row was kept under another schema, and says nothing that this one can read.
        """
        return pa.table({name: self._array(name, rows) for name in self._kinds})

    def converted(self, row: RawRow) -> RawRow:
        """What a row says of these columns that was checked against another schema.

        Raises:
            DataError: It says nothing that this schema can read.
        """
        return {name: self._converted(name, row) for name in self._kinds if name in row}

    def of_log(self, table: pa.Table, *, where: str) -> pa.Table:
        """These columns of a table of a log, each of the type that :meth:`table` gives it.

        Raises:
            DataError: A column is missing, or has a value or type that no row of JSON could have.
        """
        origin = Origin(file=where)
        found = {}
        for name, kind in self._kinds.items():
            column = source_column(table, name, origin=origin, may_be_list=True)
            separator = self._separators.get(name, "")
            found[name] = _canonical(decoded(column), kind, origin.of(name), separator)
        return pa.table(found)

    def _array(self, name: str, rows: Sequence[RawRow]) -> pa.Array:
        kind, cells = self._kinds[name], [row.get(name) for row in rows]
        # Arrow would take a text for the list of its characters.
        if kind != "categories" or not any(isinstance(cell, str) for cell in cells):
            try:
                return pa.array(cells, _TYPES[kind])
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                pass
        return pa.array([self._converted(name, row) for row in rows], _TYPES[kind])

    def _converted(self, name: str, row: RawRow) -> RawValue:
        """A cell as the schema has it, whatever another one had it for."""
        kind, value = self._kinds[name], row.get(name)
        if value is None or isinstance(value, _CELLS[kind]):
            return value
        try:
            origin, separator = Origin(file=""), self._separators.get(name, "")
            column = _canonical(pa.array([value]), kind, origin, separator)
        except DataError as error:
            roles = {"request": self._roles.request, "ad": self._roles.item}
            ids = [f" of {what} {row[role]!r}" for what, role in roles.items() if row.get(role)]
            raise DataError(
                f"column {name!r}{''.join(ids)}: must be {_MUST_BE[kind]}, got {value!r}. It was "
                f"kept when the schema had the column as another kind: give it that kind again, "
                f"or give the field another column."
            ) from error
        found: RawValue = column[0].as_py()
        return found


def text_of(column: pa.Array) -> pa.Array:
    """Categories of a column as texts, such as ids; null where one is missing."""
    categories = as_categories(column)
    codes = pa.array(categories.codes, mask=categories.codes < 0)
    return categories.values.take(codes).cast(pa.string())


def category_of(value: str | float | None) -> str | None:
    """The text that stands for a category; None where it is missing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):  # booleans are, too
        return str(int(value))
    found: str | None = text_of(pa.array([value]))[0].as_py()
    return found


def _kind_of(readers: Sequence[Field]) -> Kind:
    """What a column holds that some fields are read from."""
    kinds = {_KINDS[item.kind] for item in readers}
    if kinds <= {"categories", "text"}:
        separators = {item.separator for item in readers if item.kind == "sequence"}
        # A list is the same to all of them; a text that they split in different ways stays one.
        is_list = "" in separators or (kinds == {"categories"} and len(separators) == 1)
        return "categories" if is_list else "text"
    # A column that is read as a number and as a category holds texts that say numbers.
    return kinds.pop() if len(kinds) == 1 else "category"


def _canonical(column: pa.Array, kind: Kind, origin: Origin, separator: str) -> pa.Array:
    """A column of any type as the one type of its kind.

    Raises:
        DataError: Its type or a value can be none of that kind.
    """
    if kind == "number":
        # JSON has no infinities; to the encoders the largest number is one.
        numbers = np.nan_to_num(as_floats(column, origin=origin), nan=np.nan)
        return pa.array(numbers, from_pandas=True)
    if kind == "category" and not is_list(column.type):
        return text_of(column)
    if kind == "text":
        return _one_text(column, origin) if is_list(column.type) else column.cast(pa.string())
    if kind == "categories":
        if column.null_count == len(column):
            return _lists(pa.nulls(len(column), pa.list_(pa.string())))
        if separator and not is_list(column.type):
            column = split_items(column.cast(pa.string()), separator)
        if is_list(column.type):
            return _lists(column)
    raise DataError(f"{origin}: must be {_MUST_BE[kind]}, got type {column.type}. Mend the schema.")


def _lists(column: pa.Array) -> pa.Array:
    """Lists of any type as lists of texts; a missing one is empty."""
    items = text_of(combined(column.flatten()))
    lengths = column.value_lengths().fill_null(0)
    ends = pc.cumulative_sum(lengths).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    return pa.ListArray.from_arrays(offsets, items)


def _one_text(column: pa.Array, origin: Origin) -> pa.Array:
    """A text for each list of words, of which a text field makes the same words again."""
    lists = _lists(column)
    texts = pc.binary_join(lists, " ")
    for row, (words, found) in enumerate(
        zip(lists.to_pylist(), split_words(texts).to_pylist(), strict=True)
    ):
        if words != found:
            raise DataError(
                f"{origin.row(row)}: a list for a text must hold single words in lower case to be "
                f"served, got {words!r}. Make the field a sequence, and ingest and train anew."
            )
    return texts


def _checked(
    kind: Kind,
    value: Any,  # noqa: ANN401  (from JSON)
    where: str,
    separator: str,
) -> RawValue:
    if value is None:
        return None
    if kind == "number":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RefusedError(422, where, "must be a number or null. Send it without quotes.")
        return _finite(value, where)
    if kind == "category":
        return _category(value, where)
    if kind == "text":
        return _checked_text(value, where, MAX_TEXT_CHARACTERS)
    if separator and isinstance(value, str):
        text = _checked_text(value, where, MAX_TEXT_CHARACTERS)
        value = split_items(pa.array([text]), separator)[0].as_py()
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        or_text = f", a text with {separator!r} between them" if separator else ""
        raise RefusedError(
            422, where, f"must be a list of at most {MAX_ITEMS} values{or_text}, or null."
        )
    return [_category(item, where) or "" for item in value]


def _category(value: Any, where: str) -> str | None:  # noqa: ANN401
    """The text that stands for a category, as ``as_categories`` gives it."""
    if value is None:
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RefusedError(422, where, "must be a whole number of 64 bits, or a text.")
    if isinstance(value, (int, float)):
        return category_of(_finite(value, where) if isinstance(value, float) else value)
    return _checked_text(value, where, MAX_CHARACTERS)


def _says_number(text: RawValue) -> bool:
    try:
        as_floats(pa.array([text], pa.string()), origin=Origin(file=""))
    except DataError:
        return False
    return True


def _checked_text(value: Any, where: str, most: int) -> str:  # noqa: ANN401
    if not isinstance(value, str) or len(value) > most or not _is_unicode(value):
        raise RefusedError(422, where, f"must be a text of at most {most:,} characters, or null.")
    return value


def _finite(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RefusedError(422, where, "must be a finite number of 64 bits, or null.")
    return number


def _is_unicode(text: str) -> bool:
    """Whether a text has no halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
