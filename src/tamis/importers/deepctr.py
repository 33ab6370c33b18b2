"""DeepCTR and DeepCTR-Torch: feature columns to a schema."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tamis.data.schema import Field, Schema, Task, with_free_names
from tamis.errors import ConfigError
from tamis.importers.imported import Imported


def read(
    feature_columns: Sequence[Any],
    *,
    labels: Sequence[str],
    files: Path | Mapping[str, Path],
    separator: str = "",
) -> Imported:
    """The schema that a list of ``SparseFeat``, ``DenseFeat`` and ``VarLenSparseFeat`` describes.

    Args:
        feature_columns: As DeepCTR's models take them; the linear and the deep list may be joined.
        labels: Label columns.
        files: The log, or the log of each split, with raw values and lists of them as histories:
            DeepCTR's own input has been encoded by hand already, and histories padded with zeros,
            which would become a category.
        separator: Text between the events of a history in a text file. Empty: files hold lists.

    Raises:
        ConfigError: A column is of another class, a vector, or there twice with two meanings.
    """
    if isinstance(labels, str):
        raise ConfigError(f"labels: must be a list of columns, got the text {labels!r}.")
    fields: dict[str, Field] = {}
    notes: list[str] = []
    for column in feature_columns:
        field = _field(column, separator, notes)
        if fields.setdefault(field.name, field) != field:
            raise ConfigError(f"{field.name}: must be one column, got two of that name.")
    tables: dict[str, list[Field]] = {}
    for field in fields.values():
        if field.kind != "numeric":
            tables.setdefault(field.shares or field.name, []).append(field)
    for table, members in tables.items():
        fields |= _sharing(table, members, notes)
    histories: dict[str, list[Field]] = {}
    for field in fields.values():
        if field.group:
            histories.setdefault(field.group, []).append(field)
    for members in histories.values():
        fields |= _of_one_history(members, notes)
    schema = Schema(
        fields=with_free_names(list(fields.values())),
        tasks=tuple(Task(name=label) for label in labels),
    )
    return Imported(files=files, schema=schema, notes=tuple(dict.fromkeys(notes)))


def _sharing(table: str, members: Sequence[Field], notes: list[str]) -> dict[str, Field]:
    """The fields of one table, by name: one owns and encodes it, the others share it.

    The owner is the category that the table is named after, else the first category. A history owns
    no table that others use, so histories alone keep one each.
    """
    categories = [field for field in members if field.kind == "categorical"]
    owner = min(categories, key=lambda field: field.name != table, default=None)
    hashed = [field for field in members if field.encoding == "hashing"]
    own: dict[str, Any] = {"shares": ""}
    if hashed:
        # As large as the largest: DeepCTR makes one table and indexes it with every column.
        buckets = max(field.num_buckets for field in hashed)
        own |= {"encoding": "hashing", "num_buckets": buckets}
    if owner is None:
        if len(members) > 1:
            names = ", ".join(field.name for field in members)
            notes.append(f"{names}: histories alone share table {table!r}; each has its own.")
        return {field.name: replace(field, **own) for field in members}
    if hashed and owner not in hashed:
        names = ", ".join(field.name for field in hashed)
        notes.append(f"{owner.name}: hashed, as {names} of the same table is.")
    shared = {"shares": owner.name, "encoding": "vocabulary", "num_buckets": 0}
    return {field.name: replace(field, **(own if field is owner else shared)) for field in members}


def _of_one_history(members: Sequence[Field], notes: list[str]) -> dict[str, Field]:
    """The columns of one history, by name: as many events of each are kept."""
    if len(members) == 1:
        return {members[0].name: replace(members[0], group="")}
    longest = max(field.max_length for field in members)
    others = [field.name for field in members if field.max_length != longest]
    if others:
        names = ", ".join(field.name for field in members)
        notes.append(
            f"{', '.join(others)}: maxlen became {longest}, the longest of the history of {names}."
        )
    return {field.name: replace(field, max_length=longest) for field in members}


def _field(column: Any, separator: str, notes: list[str]) -> Field:  # noqa: ANN401  (classes of another library)
    kind = type(column).__name__
    if kind == "DenseFeat":
        if column.dimension != 1:
            raise ConfigError(
                f"{column.name}: must be one number, got a vector of {column.dimension}. Give each "
                f"of its numbers a column."
            )
        if getattr(column, "transform_fn", None) is not None:
            notes.append(f"{column.name}: transform_fn is not carried over.")
        return Field(name=column.name, kind="numeric", transform="none")
    if kind not in ("SparseFeat", "VarLenSparseFeat"):
        raise ConfigError(
            f"feature column: must be a SparseFeat, DenseFeat or VarLenSparseFeat, got {kind}."
        )
    sparse = column if kind == "SparseFeat" else column.sparsefeat
    notes.append(
        f"{sparse.name}: embedding_dim = {sparse.embedding_dim!r} is a setting of the model "
        f"(model.embedding_dim), one for all fields."
    )
    if getattr(sparse, "vocabulary_path", None):
        notes.append(f"{sparse.name}: vocabulary_path is not carried over.")
    initializer = type(getattr(sparse, "embeddings_initializer", None)).__name__
    if initializer not in ("NoneType", "RandomNormal"):  # RandomNormal is the default.
        notes.append(f"{sparse.name}: embeddings_initializer {initializer} is not carried over.")
    if not getattr(sparse, "trainable", True):
        notes.append(f"{sparse.name}: trainable = False is not carried over; its table is trained.")
    options: dict[str, Any] = {"name": sparse.name}
    if sparse.embedding_name != sparse.name:
        options["shares"] = sparse.embedding_name
    if sparse.use_hash:
        options |= {"encoding": "hashing", "num_buckets": int(sparse.vocabulary_size)}
    if kind == "SparseFeat":
        return Field(kind="categorical", **options)
    if column.combiner != "mean":
        notes.append(f"{sparse.name}: combiner {column.combiner!r} became the mean.")
    if getattr(column, "weight_name", None):
        notes.append(f"{sparse.name}: weight_name is not carried over.")
    return Field(
        kind="sequence",
        separator=separator,
        max_length=int(column.maxlen),
        # DeepCTR takes the length of a history from a column; those of one length are one history.
        group=str(column.length_name or ""),
        **options,
    )
