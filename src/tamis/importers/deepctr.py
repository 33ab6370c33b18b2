"""DeepCTR and DeepCTR-Torch: feature columns to a schema."""

from collections.abc import Sequence
from typing import Any

from tamis.data.schema import Field, Schema, Task
from tamis.errors import ConfigError


def schema_of(feature_columns: Sequence[Any], labels: Sequence[str]) -> Schema:
    """The schema that a list of ``SparseFeat``, ``DenseFeat`` and ``VarLenSparseFeat`` describes.

    Give it to :func:`tamis.ingest` with a file of raw values: DeepCTR's own input has been encoded
    by hand already, and histories padded with zeros, which would become a category.

    Args:
        feature_columns: As DeepCTR's models take them; the linear and the deep list may be joined.
        labels: Label columns.

    Raises:
        ConfigError: A column is of another class, or a vector.
    """
    fields: dict[str, Field] = {}
    for column in feature_columns:
        field = _field(column)
        fields.setdefault(field.name, field)
    shared = {name: field for name, field in fields.items() if field.shares}
    for name, field in shared.items():
        if field.shares not in fields:
            raise ConfigError(
                f"{name}: embedding_name must be a column of its own, got {field.shares!r}."
            )
    return Schema(fields=tuple(fields.values()), tasks=tuple(Task(name=label) for label in labels))


def _field(column: Any) -> Field:  # noqa: ANN401  (classes of a library that need not be there)
    kind = type(column).__name__
    if kind == "DenseFeat":
        if column.dimension != 1:
            raise ConfigError(
                f"{column.name}: must be one number, got a vector of {column.dimension}. Give each "
                f"of its numbers a column."
            )
        return Field(name=column.name, kind="numeric", transform="none")
    if kind not in ("SparseFeat", "VarLenSparseFeat"):
        raise ConfigError(
            f"feature column: must be a SparseFeat, DenseFeat or VarLenSparseFeat, got {kind}."
        )
    sparse = column if kind == "SparseFeat" else column.sparsefeat
    options: dict[str, Any] = {"name": sparse.name}
    if sparse.embedding_name != sparse.name:
        options["shares"] = sparse.embedding_name
    elif sparse.use_hash:
        options |= {"encoding": "hashing", "num_buckets": sparse.vocabulary_size}
    if kind == "SparseFeat":
        return Field(kind="categorical", **options)
    return Field(kind="sequence", max_length=column.maxlen, **options)
