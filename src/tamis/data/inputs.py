"""Models of fewer inputs than the rows at hand: the right columns, and the same encoding."""

from dataclasses import replace

import torch

from tamis.data.batch import Batch, Jagged
from tamis.data.encoders import Encoders
from tamis.data.schema import InputSpec
from tamis.data.sides import numeric_side
from tamis.errors import SchemaError


class InputSelection:
    """Turns batches of one spec into batches of another that reads a part of it.

    An early stage reads less than the final one, while a request is encoded once for both.
    """

    def __init__(self, whole: InputSpec, part: InputSpec) -> None:
        """Find the columns.

        Args:
            whole: Inputs of the batches.
            part: Inputs that are wanted, in any order; its tasks play no part.

        Raises:
            SchemaError: The whole lacks an input, or has another table for it.
        """
        _check_tables(whole, part)
        ids = [item.name for item in whole.categorical]
        self._ids = torch.tensor([ids.index(item.name) for item in part.categorical]).long()
        numeric = [whole.numeric.index(name) for name in part.numeric]
        self._numeric = torch.tensor(numeric).long()
        of_whole = {group.name: group.fields for group in whole.sequences}
        self._events = {
            group.name: [of_whole[group.name].index(name) for name in group.fields]
            for group in part.sequences
        }

    def __call__(self, batch: Batch) -> Batch:
        """The same rows with the inputs of the part; labels and weights stay."""
        return replace(
            batch,
            numeric=batch.numeric.index_select(1, self._numeric),
            ids=batch.ids.index_select(1, self._ids),
            sequences={
                name: Jagged(
                    values=batch.sequences[name].values[:, columns],
                    offsets=batch.sequences[name].offsets,
                )
                for name, columns in self._events.items()
            },
        )


def reads_the_same(first: InputSpec, second: InputSpec) -> bool:
    """Whether two specs have the same inputs in the same order; tasks play no part."""
    return replace(first, tasks=()) == replace(second, tasks=())


def check_encoding(whole: Encoders, part: Encoders, *, where: str) -> None:
    """Check that ids and numbers of a part mean what they mean in the whole.

    Args:
        whole: Encoders of the rows at hand.
        part: Encoders that a model was trained with.
        where: What has the latter, for messages.

    Raises:
        SchemaError: The whole lacks an input, or encodes it otherwise.
    """
    try:
        _check_tables(whole.spec, part.spec)
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from error
    for name, vocabulary in part.vocabularies.items():
        ours, theirs = whole.vocabularies[name].values, vocabulary.values
        if (ours is None) != (theirs is None) or (ours is not None and not ours.equals(theirs)):
            raise _other_encoding(where, name, "categories")
    for name, encoder in part.numeric.items():
        if whole.numeric.get(name) != encoder:
            raise _other_encoding(where, name, "numbers")


def _other_encoding(where: str, name: str, what: str) -> SchemaError:
    return SchemaError(
        f"{where}: field {name!r} must be encoded as in the rows at hand, got other {what} in "
        f"training. Train on a dataset of the same log and split."
    )


def _check_tables(whole: InputSpec, part: InputSpec) -> None:
    known, rows = _described(whole), whole.num_rows_by_table
    for name, how in _described(part).items():
        if known.get(name) != how:
            raise SchemaError(
                f"field {name!r} must be {how} in the rows at hand, got "
                f"{known.get(name, 'no such field')}. Use a schema whose fields hold those of the "
                f"model."
            )
    for table in part.tables:
        if rows.get(table.name) != table.num_rows:
            raise SchemaError(
                f"table {table.name!r} must be of {table.num_rows:,} rows, got "
                f"{rows.get(table.name, 0):,}. Train on a dataset of the same log and split."
            )


def _described(spec: InputSpec) -> dict[str, str]:
    """What two specs must say alike of each field, in words."""
    found = {}
    for place, name in enumerate(spec.numeric):
        found[name] = f"a number of the {numeric_side(spec, place)}"
    for item in spec.categorical:
        found[item.name] = f"a category of the {item.side} in table {item.table!r}"
    for group in spec.sequences:
        for name, table in zip(group.fields, group.tables, strict=True):
            found[name] = (
                f"an event of the {group.side} in table {table!r} and group {group.name!r}, "
                f"{group.max_length} at most"
            )
    return found
