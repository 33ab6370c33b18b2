"""What a cascade saw of its candidates: who was shown, who was scored, who was turned away.

Three pools of rows train an early stage. Impressed candidates have labels and the final stage's
predictions; scored ones passed the early stage and lost later: predictions without labels; rejected
ones never met the final stage and have its predictions only where it scored a sample of them
afterwards. A log on disk is one Parquet file: these columns beside the inputs, for ``ingest``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tamis import artifacts
from tamis.data.columns import as_codes, plain
from tamis.data.schema import Ignored, Schema, Task
from tamis.errors import ArtifactError, DataError, SchemaError

CASCADE_LOG_VERSION = 1
POOLS = ("impressed", "scored", "rejected")
"""Pools by their code: shown; scored by the final stage and not shown; turned away before it."""
IMPRESSED, SCORED, REJECTED = (np.int8(POOLS.index(name)) for name in POOLS)
FINAL_PREFIX = "final_"
"""Before a task's name: the column of the final stage's prediction of it."""
REQUEST, CANDIDATE, POOL, RATE, WEIGHT = (
    "request_id",
    "candidate_id",
    "pool",
    "sampling_rate",
    "weight",
)
_METADATA = b"tamis.cascade_log"
_IMPRESSED, _SCORED = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolCounts:
    """Rows of one pool, and what they can teach."""

    rows: int
    """Rows."""
    labels: Mapping[str, int]
    """By task, rows with a label."""
    final: Mapping[str, int]
    """By task, rows with the final stage's prediction: those that distillation learns from."""
    candidates: float
    """Candidates that the rows stand for: the sum of 1 / sampling rate."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CascadeLog:
    """Candidates of requests, n rows; a candidate stands once in a request."""

    request: NDArray[np.int64]
    """(n,) request of each row."""
    candidate: NDArray[np.int64]
    """(n,) the ad."""
    pool: NDArray[np.int8]
    """(n,) place in ``POOLS``."""
    sampling_rate: NDArray[np.float64]
    """(n,) probability, in (0, 1], with which such a row was kept."""
    labels: Mapping[str, NDArray[np.float32]]
    """By task (n,): 0, 1, or NaN where it was not observed, as it never is without impression."""
    final: Mapping[str, NDArray[np.float32]]
    """By task (n,): the final stage's prediction in [0, 1], or NaN; known in the scored pool."""

    def __post_init__(self) -> None:
        columns: dict[str, NDArray[Any]] = {
            REQUEST: self.request,
            CANDIDATE: self.candidate,
            POOL: self.pool,
            RATE: self.sampling_rate,
            **self.labels,
            **{FINAL_PREFIX + name: values for name, values in self.final.items()},
        }
        for name, values in columns.items():
            if values.shape != self.request.shape or values.ndim != 1:
                raise DataError(
                    f"cascade log: column {name!r} must be of shape ({len(self.request)},) as "
                    f"{REQUEST} is, got {values.shape}. Pass one value per row."
                )
        rate, pool = self.sampling_rate, self.pool
        self._refuse(RATE, "in (0, 1]", rate, ~((rate > 0) & (rate <= 1)))
        known_pool = (pool >= 0) & (pool < len(POOLS))
        self._refuse(POOL, f"the place of one of {POOLS}", pool, ~known_pool)
        for name, values in self.labels.items():
            missing = np.isnan(values)
            self._refuse(name, "0, 1 or NaN", values, ~((values == 0) | (values == 1) | missing))
            self._refuse(
                name, "NaN for a candidate that nobody saw", values, ~missing & (pool != _IMPRESSED)
            )
        for name, values in self.final.items():
            missing, inside = np.isnan(values), (values >= 0) & (values <= 1)
            self._refuse(FINAL_PREFIX + name, "in [0, 1] or NaN", values, ~(inside | missing))
            self._refuse(
                FINAL_PREFIX + name, "known in the scored pool", values, missing & (pool == _SCORED)
            )
        self._refuse_duplicates()

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.request)

    def weights(self, *, cap: float) -> NDArray[np.float32]:
        """Training weights (n,): 1 / sampling rate, at most ``cap``.

        The cap trades a little bias, rare samples count for less than they stand for, for much
        variance: a row in ten thousand would else outweigh a batch.

        Raises:
            DataError: ``cap`` is below 1.
        """
        if not cap >= 1:
            raise DataError(f"cascade log: the cap of weights must be at least 1, got {cap!r}.")
        return np.minimum(1 / self.sampling_rate, cap).astype(np.float32)

    def select(self, rows: NDArray[Any]) -> "CascadeLog":
        """Some rows, by a mask (n,) or by their numbers."""
        return CascadeLog(
            request=self.request[rows],
            candidate=self.candidate[rows],
            pool=self.pool[rows],
            sampling_rate=self.sampling_rate[rows],
            labels={name: values[rows] for name, values in self.labels.items()},
            final={name: values[rows] for name, values in self.final.items()},
        )

    def counts(self) -> dict[str, PoolCounts]:
        """What each pool holds; a pool that teaches nothing shows as zeros."""
        found = {}
        for code, name in enumerate(POOLS):
            own = self.pool == code
            found[name] = PoolCounts(
                rows=int(np.count_nonzero(own)),
                labels={task: _known(values[own]) for task, values in self.labels.items()},
                final={task: _known(values[own]) for task, values in self.final.items()},
                candidates=float((1 / self.sampling_rate[own]).sum()),
            )
        return found

    def _refuse(self, column: str, rule: str, values: NDArray[Any], broken: NDArray[Any]) -> None:
        if broken.any():
            row = int(np.argmax(broken))
            raise DataError(
                f"cascade log: {column} must be {rule}, got {values[row].item()!r} in row {row} "
                f"({POOL} {self.pool[row].item()}; {np.count_nonzero(broken)} such rows). Check "
                f"where the column was made."
            )

    def _refuse_duplicates(self) -> None:
        order = np.lexsort((self.candidate, self.request))
        request, candidate = self.request[order], self.candidate[order]
        twice = (request[1:] == request[:-1]) & (candidate[1:] == candidate[:-1])
        if twice.any():
            place = int(np.argmax(twice))
            raise DataError(
                f"cascade log: a candidate must stand once in a request, got candidate "
                f"{candidate[place]} twice in request {request[place]}. Keep its row of the "
                f"furthest stage."
            )


def write_cascade_log(
    path: Path, log: CascadeLog, inputs: pa.Table, *, user_column: str, weight_cap: float
) -> None:
    """Write a log with its inputs as Parquet, atomically; :func:`cascade_schema` says what is what.

    Args:
        path: The file.
        log: Rows of the cascade.
        inputs: Columns of the fields, and of time and user, for the same rows in the same order.
        user_column: Column of ``inputs`` that names the user; a request has one user.
        weight_cap: Largest training weight, at least 1.

    Raises:
        DataError: Rows are not as many, a column of the inputs has the name of one of the log, or
            a request has several users.
        StorageError: The disk is full or the folder cannot be written.
    """
    if inputs.num_rows != log.num_rows:
        raise DataError(
            f"{path}: inputs must hold the {log.num_rows} rows of the log, got {inputs.num_rows}."
        )
    columns = _columns(log, weight_cap)
    if taken := sorted(columns.keys() & set(inputs.column_names)):
        raise DataError(
            f"{path}: inputs must not hold columns of the log, got {', '.join(taken)}. Drop or "
            f"rename them."
        )
    if user_column not in inputs.column_names:
        raise DataError(
            f"{path}: inputs must hold the user's column {user_column!r}, got "
            f"{', '.join(inputs.column_names)}. Name the right one."
        )
    _check_one_user(log.request, as_codes(plain(inputs[user_column])), path)
    table = inputs
    for name, values in columns.items():
        table = table.append_column(name, values)
    record = {
        "version": CASCADE_LOG_VERSION,
        "labels": list(log.labels),
        "final": list(log.final),
        "weight_cap": weight_cap,
    }
    table = table.replace_schema_metadata({_METADATA: json.dumps(record).encode()})
    with artifacts.atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_cascade_log(path: Path) -> CascadeLog:
    """Read the rows of a log that :func:`write_cascade_log` wrote, without their inputs.

    Raises:
        ArtifactError: The file is no cascade log of this version, or damaged.
        DataError: Its rows contradict each other.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        record = json.loads(metadata.get(_METADATA, b"null"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: must be a Parquet file, got {error}. Write the log anew."
        ) from error
    if not isinstance(record, dict) or record.get("version") != CASCADE_LOG_VERSION:
        got = record.get("version") if isinstance(record, dict) else None
        raise ArtifactError(
            f"{path}: must be a cascade log of version {CASCADE_LOG_VERSION}, got version {got!r}. "
            f"Write it anew with this tamis."
        )
    final = {task: FINAL_PREFIX + task for task in record["final"]}
    names = [REQUEST, CANDIDATE, POOL, RATE, *record["labels"], *final.values()]
    try:
        table = pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path}: must be whole, got {error}. Write the log anew.") from error
    codes = {name: code for code, name in enumerate(POOLS)}
    pools = table[POOL].combine_chunks().dictionary_encode()
    code_of = np.array([codes.get(name, -1) for name in pools.dictionary.to_pylist()], np.int8)
    return CascadeLog(
        request=table[REQUEST].to_numpy(),
        candidate=table[CANDIDATE].to_numpy(),
        pool=code_of[pools.indices.to_numpy()],
        sampling_rate=table[RATE].to_numpy(),
        labels={task: table[task].to_numpy() for task in record["labels"]},
        final={task: table[name].to_numpy() for task, name in final.items()},
    )


def cascade_schema(schema: Schema, *, final: tuple[str, ...]) -> Schema:
    """The schema of a cascade's log, from that of its impressions.

    Labels may be missing, and for each task of ``final`` a task of kind ``probability`` follows,
    which distils it. No column that the cascade wrote is an input: neither pool nor rate nor what
    the final stage said is known when the early stage ranks.

    Args:
        schema: Fields and tasks of an impression.
        final: Tasks that the final stage predicts.

    Raises:
        SchemaError: A field reads a column of the log, or there is no such task.
    """
    tasks = tuple(
        task if task.observed_when else replace(task, may_be_missing=True) for task in schema.tasks
    )
    names = [task.name for task in tasks]
    for name in final:
        if name not in names:
            raise SchemaError(f"cascade: final must hold tasks of {names}, got {name!r}.")
    own = {REQUEST, CANDIDATE, POOL, RATE, WEIGHT, *(FINAL_PREFIX + name for name in names)}
    for field in schema.fields:
        if field.source in own:
            raise SchemaError(
                f"field {field.name!r}: must read a column of another name than those that a "
                f"cascade's log holds itself, of which an early stage must see none, got "
                f"{field.source!r}. Take the field out of the schema; if your own log has a column "
                f"of that name that is an input, rename it there and ingest anew."
            )
    distilled = tuple(
        Task(
            name=FINAL_PREFIX + name,
            kind="probability",
            distils=name,
            may_be_missing=True,
        )
        for name in final
    )
    return replace(
        schema,
        tasks=(*tasks, *distilled),
        roles=replace(schema.roles, request=REQUEST, item=CANDIDATE, weight=WEIGHT),
        ignored=(
            *schema.ignored,
            Ignored(column=POOL, reason="known only after the cascade ran"),
            Ignored(column=RATE, reason="the weight says it"),
        ),
    )


def _columns(log: CascadeLog, weight_cap: float) -> dict[str, pa.Array]:
    columns = {
        REQUEST: pa.array(log.request),
        CANDIDATE: pa.array(log.candidate),
        POOL: pa.DictionaryArray.from_arrays(pa.array(log.pool), pa.array(POOLS)),
        RATE: pa.array(log.sampling_rate),
        WEIGHT: pa.array(log.weights(cap=weight_cap)),
    }
    columns |= {name: pa.array(values) for name, values in log.labels.items()}
    columns |= {FINAL_PREFIX + name: pa.array(values) for name, values in log.final.items()}
    return columns


def _check_one_user(request: NDArray[np.int64], user: NDArray[np.int64], path: Path) -> None:
    order = np.argsort(request, kind="stable")
    same_request = request[order][1:] == request[order][:-1]
    mixed = same_request & (user[order][1:] != user[order][:-1])
    if mixed.any():
        place = int(np.argmax(mixed))
        raise DataError(
            f"{path}: a request must have one user, got several in request "
            f"{request[order][place]}. Ranked lists of several users are no request."
        )


def _known(values: NDArray[np.float32]) -> int:
    return int(np.count_nonzero(~np.isnan(values)))
