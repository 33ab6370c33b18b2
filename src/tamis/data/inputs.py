"""Models of fewer inputs than the rows at hand: the right columns, and the same meaning.

An early stage reads less than the final one, while a request is encoded once for both. Without a
field that shares its table, a table knows fewer categories, and numbers them otherwise.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tamis.data.batch import Batch, Jagged
from tamis.data.dataset import EncodedRows
from tamis.data.encoders import Encoders
from tamis.data.schema import InputSpec
from tamis.data.vocabulary import FieldCounts, Vocabulary
from tamis.errors import SchemaError


class InputSelection:
    """Turns rows of some encoders into rows of others that read a part of them."""

    def __init__(self, whole: Encoders, part: Encoders, *, where: str) -> None:
        """Find the columns, and what table rows become.

        Args:
            whole: Encoders of the rows at hand.
            part: Encoders that a model was trained with; its tasks play no part.
            where: Who reads the part, for messages.

        Raises:
            SchemaError: The whole lacks an input or a category, or encodes a number otherwise.
        """
        before, after = whole.spec, part.spec
        _check_fields(before, after, where)
        _check_numbers(whole, part, where)
        self._part = after
        rows = {
            name: _translation(whole.vocabularies[name], vocabulary, name, where)
            for name, vocabulary in part.vocabularies.items()
        }
        self._rows: Mapping[str, NDArray[np.int64]] = {
            name: found for name, found in rows.items() if found is not None
        }
        ids = [item.name for item in before.categorical]
        self._ids = torch.tensor([ids.index(item.name) for item in after.categorical]).long()
        numeric = [before.numeric.index(name) for name in after.numeric]
        self._numeric = torch.tensor(numeric).long()
        of_whole = {group.name: group.fields for group in before.sequences}
        self._events = {
            group.name: [of_whole[group.name].index(name) for name in group.fields]
            for group in after.sequences
        }
        self.changes_nothing = not self._rows and _inputs(before) == _inputs(after)
        """Whether every row stays as it is."""

    def __call__(self, batch: Batch) -> Batch:
        """The same rows with the inputs of the part; labels and weights stay."""
        tables = [item.table for item in self._part.categorical]
        return replace(
            batch,
            numeric=batch.numeric.index_select(1, self._numeric),
            ids=self._translated(batch.ids.index_select(1, self._ids), tables),
            sequences={
                group.name: Jagged(
                    values=self._translated(
                        batch.sequences[group.name].values[:, self._events[group.name]],
                        group.tables,
                    ),
                    offsets=batch.sequences[group.name].offsets,
                )
                for group in self._part.sequences
            },
        )

    def of_fields(self, rows: EncodedRows) -> EncodedRows:
        """Some fields of the whole, such as an ad's, as the part encodes them.

        Fields that the part does not read are left out; labels and roles too.
        """
        ids = {
            item.name: self._row(item.table, rows.ids[item.name])
            for item in self._part.categorical
            if item.name in rows.ids
        }
        sequences = {}
        for group in self._part.sequences:
            if group.name in rows.sequences:
                values, lengths = rows.sequences[group.name]
                columns = [
                    self._row(table, values[:, column])
                    for table, column in zip(group.tables, self._events[group.name], strict=True)
                ]
                sequences[group.name] = (np.stack(columns, axis=1), lengths)
        return EncodedRows(
            row=rows.row,
            numeric={n: rows.numeric[n] for n in self._part.numeric if n in rows.numeric},
            ids=ids,
            sequences=sequences,
        )

    def _row(self, table: str, rows: NDArray[Any]) -> NDArray[Any]:
        return self._rows[table][rows].astype(rows.dtype) if table in self._rows else rows

    def _translated(self, rows: Tensor, tables: tuple[str, ...] | list[str]) -> Tensor:
        """Rows (n, columns) of some tables; the argument is a copy already."""
        for column, table in enumerate(tables):
            if table in self._rows:
                rows[:, column] = torch.from_numpy(self._row(table, rows[:, column].numpy()))
        return rows


def _inputs(spec: InputSpec) -> InputSpec:
    return replace(spec, tasks=())


def _check_fields(whole: InputSpec, part: InputSpec, where: str) -> None:
    known = _described(whole)
    for name, how in _described(part).items():
        if known.get(name) != how:
            raise SchemaError(
                f"{where}: field {name!r} must be {how} in the rows at hand, got "
                f"{known.get(name, 'no such field')}. Use a dataset whose fields hold those of the "
                f"model."
            )


def _described(spec: InputSpec) -> dict[str, str]:
    """What two specs must say alike of each field, in words."""
    found = {}
    for place, name in enumerate(spec.numeric):
        found[name] = f"a number of the {spec.sides_of_numeric[place]}"
        if spec.numeric_counts and spec.numeric_counts[place]:
            found[name] += f" that counts {spec.numeric_counts[place]!r}"
    for item in spec.categorical:
        found[item.name] = f"a category of the {item.side} in table {item.table!r}"
    for group in spec.sequences:
        for name, table in zip(group.fields, group.tables, strict=True):
            found[name] = (
                f"an event of the {group.side} in table {table!r} and group {group.name!r}, "
                f"{group.max_length} at most"
            )
    return found


def _check_numbers(whole: Encoders, part: Encoders, where: str) -> None:
    for name, encoder in part.numeric.items():
        if whole.numeric.get(name) != encoder:
            raise SchemaError(
                f"{where}: field {name!r} must be encoded as in the rows at hand, got other "
                f"numbers in training. Train on a dataset of the same log and split."
            )


def _translation(
    whole: Vocabulary, part: Vocabulary, name: str, where: str
) -> NDArray[np.int64] | None:
    """Row of the part for each row of the whole; None where they are the same."""
    if whole.values is None or part.values is None:
        if (whole.values is None) != (part.values is None) or whole.num_rows != part.num_rows:
            raise SchemaError(
                f"{where}: table {name!r} must be hashed alike, got {part.num_rows:,} rows in "
                f"training and {whole.num_rows:,} at hand. Train with one schema."
            )
        return None
    if whole.values.equals(part.values):
        return None
    # Row 0 stands for what is missing or not known, in both.
    rows = np.concatenate([[0], part.encode(whole.values, FieldCounts())]).astype(np.int64)
    missing = part.num_rows - 1 - len(np.unique(rows[rows > 0]))
    if missing:
        raise SchemaError(
            f"{where}: table {name!r} must know every category that training knew, got none for "
            f"{missing:,} of {part.num_rows - 1:,}. Use the dataset of more fields, of the same "
            f"log and split."
        )
    return rows
