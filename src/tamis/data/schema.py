"""What the columns of a log mean (``Schema``) and the sizes a model is built for (``InputSpec``).

``Schema`` is what a person writes in ``schema.toml``; ``InputSpec`` is what ingest derives from the
schema and the data: inputs in order and the number of rows of each embedding table.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w

from tamis import config
from tamis.errors import ConfigError, SchemaError

SCHEMA_VERSION = 1
_OWN_COLUMNS = ("row", "weight")
_OWN_PREFIXES = ("label:", "role:")

Side = Literal["user", "item", "context"]
"""Whom a field is about."""

TaskKind = Literal["binary", "probability", "regression"]
"""What a label can be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One input of a model, read from one column of the log."""

    name: str
    """Name of the field and, unless ``column`` says otherwise, of its source column."""
    kind: Literal["numeric", "categorical", "sequence", "text"]
    """Numeric value, one category, a time-ordered list of categories, or free text."""
    column: str = ""
    """Source column. Empty: the same as ``name``."""
    side: Side = "context"
    """Whom the field describes."""
    encoding: Literal["vocabulary", "hashing"] = "vocabulary"
    """How a category becomes a row of its table: fitted vocabulary, or stateless hash."""
    min_count: int = 1
    """Categories seen less often in training share the out-of-vocabulary row. At least 1."""
    num_buckets: int = 0
    """Rows of a hashed table, or buckets of a ``bucket`` transform. 0 where neither is used."""
    shares: str = ""
    """Categorical field whose vocabulary and embedding table this one uses. Empty: its own."""
    transform: Literal["none", "standardise", "log", "quantile", "bucket"] = "standardise"
    """What happens to a numeric value; ``bucket`` turns it into a category."""
    separator: str = ""
    """Text between the events of a sequence stored as a string. Empty: a list column."""
    max_length: int = 50
    """Events of a sequence that are kept, counted from the most recent."""
    group: str = ""
    """Sequence fields of one group are columns of the same events. Empty: a group of its own."""
    counts: str = ""
    """Sequence field of which a numeric one holds ``log(1 + n)``, n events being of the row's own
    category (that which the sequence ``shares``). Models then know it of any user with any item.
    Empty: the number is what it is."""
    vectors: int = 0
    """How many numbers each of the vectors has that are given for the categories, in a file that
    ingest is told of: its keys are the vocabulary. 0: what stands for a category is learned."""
    reason: str = ""
    """Why ingest inferred this; for the reader, not used."""

    def __post_init__(self) -> None:
        if not self.name:
            raise SchemaError("fields: name must not be empty, got ''. Give every field a name.")
        where = f"field {self.name!r}"
        if self.min_count < 1:
            raise SchemaError(f"{where}: min_count must be at least 1, got {self.min_count}.")
        if self.max_length < 1:
            raise SchemaError(f"{where}: max_length must be at least 1, got {self.max_length}.")
        buckets = (self.kind == "numeric" and self.transform == "bucket") or (
            self.kind != "numeric" and self.encoding == "hashing" and not self.shares
        )
        if buckets and self.num_buckets < 2:
            raise SchemaError(
                f"{where}: num_buckets must be at least 2 for hashing and buckets, got "
                f"{self.num_buckets}. Set num_buckets."
            )
        if self.kind == "numeric" and self.shares:
            raise SchemaError(f"{where}: a numeric field has no table, got shares={self.shares!r}.")
        self._check_vectors(where)
        if self.counts and (self.kind != "numeric" or self.transform != "none"):
            raise SchemaError(
                f"{where}: counts is for numeric fields with transform 'none', got kind "
                f"{self.kind!r} and transform {self.transform!r}."
            )

    def _check_vectors(self, where: str) -> None:
        if self.vectors < 0:
            raise SchemaError(f"{where}: vectors must be at least 0, got {self.vectors}.")
        if not self.vectors:
            return
        if self.kind not in ("categorical", "sequence") or self.shares:
            raise SchemaError(
                f"{where}: vectors are given for categories with a table of their own, got kind "
                f"{self.kind!r}{f' that shares {self.shares!r}' if self.shares else ''}. Leave "
                f"vectors out."
            )
        if self.encoding != "vocabulary" or self.min_count > 1:
            raise SchemaError(
                f"{where}: where vectors are given, their keys are the vocabulary, got encoding "
                f"{self.encoding!r} and min_count {self.min_count}. Leave both out."
            )

    @property
    def source(self) -> str:
        """The column of the log that holds the field."""
        return self.column or self.name

    @property
    def is_category(self) -> bool:
        """Whether a row holds exactly one table row of this field."""
        return self.kind == "categorical" or (self.kind == "numeric" and self.transform == "bucket")

    @property
    def is_jagged(self) -> bool:
        """Whether a row holds any number of table rows of this field."""
        return self.kind in ("sequence", "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One label that a model predicts."""

    name: str
    """Column of the label."""
    kind: TaskKind = "binary"
    """Binary labels are 0 or 1. A ``probability`` in [0, 1], such as what another model predicts,
    is learned as they are, by cross entropy. ``regression`` is any number."""
    observed_when: str = ""
    """Task whose label must be 1 for this one to exist (a conversion needs a click)."""
    may_be_missing: bool = False
    """Whether rows may lack the label, as candidates that nobody saw have no click."""
    distils: str = ""
    """Task of which this label is a later stage's prediction; for kind ``probability`` only."""
    mean: float | None = None
    """What a regression predicts where its logit is 0. None: ingest sets it and ``std`` to those of
    the training labels, so that any unit is learned alike."""
    std: float | None = None
    """What a regression's prediction rises by where its logit rises by 1. More than 0."""

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation that logits of a regression are relative to."""
        return (
            0.0 if self.mean is None else self.mean,
            1.0 if self.std is None else self.std,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """Columns with a meaning beyond being an input. An empty name: there is none."""

    time: str = ""
    """When the impression happened; splits by time use it."""
    time_unit: Literal["", "s", "ms", "us", "ns"] = ""
    """Unit of an integer time column since 1970. Empty: inferred from its size, and reported."""
    user: str = ""
    """Who saw it; GAUC and the bootstrap group by it."""
    item: str = ""
    """What was shown."""
    request: str = ""
    """Impressions of one request share it."""
    weight: str = ""
    """Sample weight, at least 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ignored:
    """A column that no model sees."""

    column: str
    """Name in the log."""
    reason: str = ""
    """Why it is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """The meaning of every column of a log."""

    fields: tuple[Field, ...]
    """Inputs, in the order in which models see them."""
    tasks: tuple[Task, ...]
    """Labels, in the order of the logits."""
    roles: Roles = Roles()
    """Columns for splits, groups and weights."""
    ignored: tuple[Ignored, ...] = ()
    """Columns that are known and left out."""
    version: int = SCHEMA_VERSION
    """Format of this file."""

    def __post_init__(self) -> None:
        if self.version != SCHEMA_VERSION:
            raise SchemaError(f"version must be {SCHEMA_VERSION}, got {self.version}.")
        if not self.tasks:
            raise SchemaError("tasks: must name at least one label, got none. Add [[tasks]].")
        if not self.fields:
            raise SchemaError("fields: must hold at least one input, got none. Add [[fields]].")
        names = [field.name for field in self.fields]
        for name in names:
            if names.count(name) > 1:
                raise SchemaError(f"field {name!r}: names must differ, got it twice.")
            if _is_own(name):
                raise SchemaError(
                    f"field {name!r}: a name must not be that of a column which every dataset has "
                    f"itself ({', '.join(_OWN_COLUMNS)}, {', '.join(_OWN_PREFIXES)}...), got "
                    f"{name!r}. Give the field another name, and column = {name!r}."
                )
        self._check_tasks()
        self._check_shares()
        self._check_counts()
        self._check_groups()

    def _check_tasks(self) -> None:
        tasks = [task.name for task in self.tasks]
        for index, task in enumerate(self.tasks):
            if tasks.count(task.name) > 1:
                raise SchemaError(f"task {task.name!r}: names must differ, got it twice.")
            readers = [f.name for f in self.fields if task.name in (f.name, f.source)]
            if readers:
                raise SchemaError(
                    f"task {task.name!r}: a label must not be an input too, got field "
                    f"{readers[0]!r} of that name or column. Take the field out."
                )
            if task.observed_when and task.observed_when not in tasks[:index]:
                raise SchemaError(
                    f"task {task.name!r}: observed_when must name an earlier task, got "
                    f"{task.observed_when!r}. Earlier tasks: {tasks[:index]}."
                )
            self._check_scale(task)
            self._check_distilled(task, index)

    def _check_scale(self, task: Task) -> None:
        if (task.mean is None) != (task.std is None):
            said, unsaid = ("mean", "std") if task.std is None else ("std", "mean")
            raise SchemaError(
                f"task {task.name!r}: mean and std must be set together, got {said} alone. Set "
                f"{unsaid} too, or leave both out: ingest takes those of the training labels."
            )
        if task.mean is None or task.std is None:
            return
        if task.kind != "regression":
            raise SchemaError(
                f"task {task.name!r}: mean and std are for kind 'regression' only, got "
                f"{task.kind!r}. Leave them out."
            )
        if not (math.isfinite(task.mean) and 0 < task.std < math.inf):
            raise SchemaError(
                f"task {task.name!r}: mean must be finite and std finite and above 0, got "
                f"{task.mean} and {task.std}."
            )

    def _check_distilled(self, task: Task, index: int) -> None:
        if not task.distils:
            return
        if task.kind != "probability":
            raise SchemaError(
                f"task {task.name!r}: a task that distils {task.distils!r} must be of kind "
                f"'probability', got {task.kind!r}. Set kind = 'probability'."
            )
        if task.observed_when:
            raise SchemaError(
                f"task {task.name!r}: a later stage predicts also for candidates without an "
                f"event, got observed_when = {task.observed_when!r}. Leave it out; set "
                f"may_be_missing where some rows have no prediction."
            )
        earlier = [other.name for other in self.tasks[:index] if not other.distils]
        if task.distils not in earlier:
            raise SchemaError(
                f"task {task.name!r}: distils must name an earlier task with labels of its own, "
                f"got {task.distils!r}. Such tasks: {earlier}."
            )
        if any(other.distils == task.distils for other in self.tasks[:index]):
            raise SchemaError(
                f"task {task.name!r}: one task may distil {task.distils!r}, got a second one."
            )

    def _check_shares(self) -> None:
        by_name = {field.name: field for field in self.fields}
        for field in self.fields:
            if not field.shares:
                continue
            owner = by_name.get(field.shares)
            if owner is None or owner.kind != "categorical" or owner.shares:
                raise SchemaError(
                    f"field {field.name!r}: shares must name a categorical field with its own "
                    f"table, got {field.shares!r}."
                )

    def _check_counts(self) -> None:
        by_name = {field.name: field for field in self.fields}
        for field in self.fields:
            if not field.counts:
                continue
            events = by_name.get(field.counts)
            if events is None or events.kind != "sequence" or not events.shares:
                raise SchemaError(
                    f"field {field.name!r}: counts must name a sequence field that shares a "
                    f"category of the row, got {field.counts!r}."
                )

    def _check_groups(self) -> None:
        for name, members in self.sequence_groups.items():
            for field in members[1:]:
                if field.max_length != members[0].max_length:
                    raise SchemaError(
                        f"field {field.name!r}: fields of one group ({name!r}) must keep as many "
                        f"events, got max_length {field.max_length} beside "
                        f"{members[0].max_length} of {members[0].name!r}. Give them the same."
                    )

    @property
    def sequence_groups(self) -> dict[str, tuple[Field, ...]]:
        """Jagged fields by the group of events they are columns of, in order."""
        groups: dict[str, list[Field]] = {}
        for field in self.fields:
            if field.is_jagged:
                groups.setdefault(field.group or field.name, []).append(field)
        return {name: tuple(members) for name, members in groups.items()}

    def to_toml(self) -> str:
        """The text that datasets, runs and bundles keep.

        Its bytes are part of a dataset's fingerprint, by which rows of results are known: its
        layout must stay. :meth:`to_editable_toml` says the same for a person.
        """
        return tomli_w.dumps(self._table())

    def to_editable_toml(self) -> str:
        """The text of a ``schema.toml`` that a person goes on with: each list in sections."""
        return config.write_toml(self._table())

    def _table(self) -> dict[str, Any]:
        """The schema as a table; defaults are left out so that it stays readable."""
        table = config.to_table(self)
        examples = {"fields": Field(name="x", kind="numeric"), "tasks": Task(name="x")}
        for key, example in examples.items():
            default = config.to_table(example)
            table[key] = [
                {k: v for k, v in item.items() if k in ("name", "kind") or v != default.get(k)}
                for item in table[key]
            ]
        table["roles"] = {k: v for k, v in table["roles"].items() if v}
        order = ("version", "roles", "tasks", "fields", "ignored")
        return {key: table[key] for key in order if table[key]}


def free_names(names: Iterable[str]) -> dict[str, str]:
    """Another name for each that is of a column which a dataset has itself, taken by no other."""
    taken, found = set(names), {}
    for name in sorted(filter(_is_own, taken)):
        free = f"field:{name}"
        while free in taken:
            free = f"field:{free}"
        taken.add(free)
        found[name] = free
    return found


def with_free_names(fields: Sequence[Field]) -> tuple[Field, ...]:
    """The fields of some columns under :func:`free_names`."""
    free = free_names(field.name for field in fields)
    return tuple(
        replace(
            field,
            name=free.get(field.name, field.name),
            column=field.column or (field.name if field.name in free else ""),
            shares=free.get(field.shares, field.shares),
            counts=free.get(field.counts, field.counts),
        )
        for field in fields
    )


def _is_own(name: str) -> bool:
    return name in _OWN_COLUMNS or name.startswith(_OWN_PREFIXES)


def load_schema(path: Path) -> Schema:
    """Read ``schema.toml``.

    Raises:
        SchemaError: The file is missing, not TOML, has unknown keys or contradicts itself.
    """
    if path.is_dir():
        raise SchemaError(
            f"{path}: must be a schema file, got a folder. Name the file, such as "
            f"{path / 'schema.toml'}."
        )
    try:
        table = config.read_toml(path)
    except ConfigError as error:
        raise SchemaError(str(error)) from error  # It names the file already.
    try:
        return schema_from_table(table)
    except (ConfigError, SchemaError) as error:
        raise SchemaError(f"{path}: {error}") from error


def schema_from_table(table: Mapping[str, Any]) -> Schema:
    """Build a schema from its parsed table.

    Raises:
        ConfigError: A key is unknown or of another type.
        SchemaError: The schema contradicts itself.
    """
    return config.from_table(Schema, table)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """An embedding table: its name (that of the owning field) and its number of rows."""

    name: str
    """Field that owns the vocabulary."""
    num_rows: int
    """Rows V, the out-of-vocabulary row 0 included."""
    vectors: int = 0
    """How many numbers W a row has, where vectors are given. 0: rows are learned, as wide as models
    say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoricalInput:
    """One column of ``Batch.ids``."""

    name: str
    """Field name."""
    table: str
    """Table its ids index."""
    side: Side = "context"
    """Whom the field describes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceInput:
    """One entry of ``Batch.sequences``: a group of jagged fields over the same events."""

    name: str
    """Group name, the key in ``Batch.sequences``."""
    fields: tuple[str, ...]
    """Names of the E columns."""
    tables: tuple[str, ...]
    """Table of each of the E columns."""
    max_length: int
    """Longest history L that ingest kept."""
    side: Side = "context"
    """Whom the events describe: the side of the group's first field."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """Everything about the data that decides a model's shape. Derived by ingest, never written."""

    numeric: tuple[str, ...]
    """Names of the M columns of ``Batch.numeric``."""
    categorical: tuple[CategoricalInput, ...]
    """The F columns of ``Batch.ids``."""
    sequences: tuple[SequenceInput, ...]
    """Entries of ``Batch.sequences``."""
    tables: tuple[Table, ...]
    """Embedding tables, in the order in which they are merged."""
    tasks: tuple[Task, ...]
    """Labels, in the order of the logits."""
    numeric_sides: tuple[Side, ...] = ()
    """Whom each of the M numeric features describes; empty: the context."""
    numeric_counts: tuple[str, ...] = ()
    """Sequence field of which each of the M numeric features counts events, as ``Field.counts``
    says; empty where it counts none, or altogether."""
    item: str = ""
    """Categorical field that holds the item's id, as the role ``item`` says. Empty: none does."""

    def __post_init__(self) -> None:
        for name, said in (("sides", self.numeric_sides), ("counts", self.numeric_counts)):
            if said and len(said) != len(self.numeric):
                raise SchemaError(
                    f"spec.numeric_{name}: must be empty or say one for each of "
                    f"{len(self.numeric)} numeric features, got {len(said)}."
                )

    @property
    def sides_of_numeric(self) -> tuple[Side, ...]:
        """Whom each of the M numeric features describes, said or not."""
        unsaid: Side = "context"
        return self.numeric_sides or (unsaid,) * len(self.numeric)

    def numeric_of(self, side: Side) -> tuple[int, ...]:
        """Columns of ``Batch.numeric`` that describe a side."""
        return tuple(place for place, of in enumerate(self.sides_of_numeric) if of == side)

    def categorical_of(self, side: Side) -> tuple[int, ...]:
        """Columns of ``Batch.ids`` that describe a side."""
        return tuple(place for place, item in enumerate(self.categorical) if item.side == side)

    def sequences_of(self, side: Side) -> tuple[SequenceInput, ...]:
        """Sequence groups that describe a side."""
        return tuple(group for group in self.sequences if group.side == side)

    @property
    def num_rows_by_table(self) -> dict[str, int]:
        """Rows V of each table."""
        return {table.name: table.num_rows for table in self.tables}
