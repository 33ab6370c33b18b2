"""A simulated cascade on disk: what early stages train on, and the candidates they are judged on.

cascade.json        how large it is, what a value is, and what was checked; written last
ads.parquet         bids and how they are billed, by candidate id
judged.parquet      the candidates that are judged: values, predictions and the truth
<pools>/            for each set of pools a dataset, whose test split is what is judged, and
                    the logs that it was made of
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tamis import artifacts, config
from tamis.data.cascade_log import (
    IMPRESSED,
    CascadeLog,
    cascade_schema,
    read_cascade_log,
    write_cascade_log,
)
from tamis.data.ingest import ingest
from tamis.data.schema import Schema
from tamis.errors import ArtifactError, DataError
from tamis.evaluation.candidates import request_offsets
from tamis.evaluation.teacher import TeacherCheck, check_teacher
from tamis.funnel.ads import AdTable
from tamis.funnel.value import ValueFunction, ValueWeights
from tamis.reproduce.early.variants import CascadeSizes, Pools

STUDY_VERSION = 2
VALID_SHARE = 0.1
"""Of the requests that are learned from, the last of which validate."""
SIMULATED = "simulated_labels"
"""Note of a cascade, and figure of its rows: share of drawn labels among judged impressions'."""
_RECORD = "cascade.json"
_TRUE = "truth"
_INCUMBENT = "incumbent"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """All candidates of the requests that judge, N rows, request by request."""

    offsets: NDArray[np.int64]
    """(R + 1,) first row of each request, and N."""
    bid: NDArray[np.float64]
    """(N,) money for the billed event."""
    billing: NDArray[np.str_]
    """(N,) the billed event."""
    pool: NDArray[np.int8]
    """(N,) what the cascade that wrote the log did with it; place in ``POOLS``."""
    final: Mapping[str, NDArray[np.float64]]
    """(N,) by task, the final stage's predictions."""
    truth: Mapping[str, NDArray[np.float64]]
    """(N,) by task, the chances with which users act."""
    incumbent: NDArray[np.float64]
    """(N,) value that the early stage which wrote the log saw."""


class Study:
    """A finished cascade."""

    def __init__(self, folder: Path) -> None:
        """Open a folder that :func:`write_study` finished.

        Raises:
            ArtifactError: It is not finished, or another version wrote it.
        """
        self.folder = folder
        self.record: dict[str, Any] = artifacts.read_json(folder / _RECORD)
        if self.record.get("version") != STUDY_VERSION:
            raise ArtifactError(
                f"{folder}: must be a cascade of version {STUDY_VERSION}, got "
                f"{self.record.get('version')!r}. Remove the folder; it is then made anew."
            )
        self.sizes: CascadeSizes = config.from_table(CascadeSizes, self.record["sizes"])
        self.value = ValueFunction(config.from_table(ValueWeights, self.record["value"]))
        self.constants: Mapping[str, float] = self.record["constants"]
        self.tasks: tuple[str, ...] = tuple(self.record["tasks"])

    def dataset(self, pools: Pools) -> Path:
        """Dataset of the rows of some pools."""
        return self.folder / pools / "dataset"

    def log(self, pools: Pools, split: str) -> CascadeLog:
        """The log that a dataset's ``train`` or ``valid`` split was read from, row for row."""
        return read_cascade_log(self.folder / pools / f"log-{split}.parquet")

    def ads(self) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
        """Bid and billing by candidate id."""
        table = pq.read_table(self.folder / "ads.parquet")
        return table["bid"].to_numpy(), _texts(table["billing"])

    @property
    def fingerprint(self) -> str:
        """What tells its rows from those of any other cascade."""
        return str(self.record["fingerprint"])

    def judged(self) -> Judged:
        """Candidates of the requests that judge."""
        table = pq.read_table(self.folder / "judged.parquet")
        return Judged(
            offsets=request_offsets(table["request_id"].to_numpy()),
            bid=table["bid"].to_numpy(),
            billing=_texts(table["billing"]),
            pool=table["pool"].to_numpy(),
            final={task: table[f"final_{task}"].to_numpy() for task in self.tasks},
            truth={task: table[f"{_TRUE}_{task}"].to_numpy() for task in self.tasks},
            incumbent=table[_INCUMBENT].to_numpy(),
        )

    def values(self, predictions: Mapping[str, Any], judged: Judged) -> NDArray[np.float64]:
        """Total values (N,) of the judged candidates; constants stand in for missing tasks."""
        return self.value.score({**self.constants, **predictions}, judged.bid, judged.billing)


def is_study(folder: Path) -> bool:
    """Whether a cascade stands finished in a folder."""
    return (folder / _RECORD).exists()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """Rows of some requests, with everything that is known and true of them."""

    log: CascadeLog
    """The rows."""
    inputs: pa.Table
    """Columns of the early stage's fields, and of the user."""
    truth: Mapping[str, NDArray[np.float64]]
    """(n,) by task, chances; of rows that judge."""
    incumbent: NDArray[np.float64]
    """(n,) value by the early stage that wrote the log; of rows that judge."""


def write_study(
    folder: Path,
    *,
    train: Sequence[Part],
    test: Sequence[Part],
    schema: Schema,
    ads: AdTable,
    value: ValueWeights,
    constants: Mapping[str, float],
    sizes: CascadeSizes,
    notes: Mapping[str, Any],
) -> None:
    """Write a cascade; the last of its training requests validate.

    Args:
        folder: Whatever an unfinished writing left there is removed.
        train: Rows of the log, in order of time.
        test: All candidates of the requests that judge.
        schema: Fields that the early stage may see, and the tasks.
        ads: Bid and billing by candidate id.
        value: Weights of the total value.
        constants: By task what stands for a prediction that nobody makes.
        sizes: Of the cascade.
        notes: What was checked of it, and how much of it is :data:`SIMULATED`; JSON values.

    Raises:
        DataError: A pool has nothing to distil, or the final stage has seen the labels that are
            learned from.
    """
    tasks = [task.name for task in schema.tasks]
    (judged, _), (learned, _) = _joined(test), _joined(train)
    _check_pools(learned, folder)
    checked = _check_final(learned, judged, folder)
    shutil.rmtree(folder, ignore_errors=True)
    fingerprints = {}
    for pools in get_args(Pools):
        fingerprints[pools] = write_pools(
            folder / pools, train, pools, schema=schema, sizes=sizes, test=test
        )
    _write_table(folder / "ads.parquet", {"bid": ads.bid, "billing": ads.billing})
    _write_judged(folder / "judged.parquet", test, judged, ads)
    fingerprints["judged"] = artifacts.sha256_file(folder / "judged.parquet")
    artifacts.write_json(
        folder / _RECORD,
        {
            "version": STUDY_VERSION,
            "tasks": tasks,
            "sizes": config.to_table(sizes),
            "value": config.to_table(value),
            "constants": dict(constants),
            "fingerprint": config.fingerprint(fingerprints),
            "pools": {
                name: {"rows": counts.rows, "labels": dict(counts.labels)}
                for name, counts in learned.counts().items()
            },
            "requests": {
                "train": len(np.unique(learned.request)),
                "test": len(np.unique(judged.request)),
            },
            "candidates": judged.num_rows / len(np.unique(judged.request)),
            "teacher": {task: dataclasses.asdict(check) for task, check in checked.items()},
            "notes": dict(notes),
        },
    )


def write_pools(
    folder: Path,
    train: Sequence[Part],
    pools: Pools,
    *,
    schema: Schema,
    sizes: CascadeSizes,
    test: Sequence[Part] = (),
) -> str:
    """Write a dataset of the rows of some pools, beside the logs that it is made of.

    Args:
        folder: Gets ``dataset/``, ``log-train.parquet`` and ``log-valid.parquet``.
        train: Rows in order of time; the last of their requests validate.
        pools: The furthest pool whose rows are taken.
        schema: Fields that the early stage may see, and the tasks.
        sizes: Of the cascade.
        test: All of it is the test split; empty for none.

    Returns:
        The dataset's fingerprint.
    """
    log, inputs = _joined(train)
    is_valid = log.request >= first_valid_request(train)
    is_in = log.pool <= get_args(Pools).index(pools)
    splits = {
        "train": (log.select(is_in & ~is_valid), inputs.filter(pa.array(is_in & ~is_valid))),
        "valid": (log.select(is_in & is_valid), inputs.filter(pa.array(is_in & is_valid))),
    }
    if test:
        splits["test"] = _joined(test)
    files = {split: folder / f"log-{split}.parquet" for split in splits}
    for split, (rows, columns) in splits.items():
        write_cascade_log(
            files[split],
            rows,
            columns,
            user_column=schema.roles.user,
            weight_cap=sizes.weight_cap,
        )
    names = tuple(task.name for task in schema.tasks)
    dataset = ingest(dict(files), folder / "dataset", schema=cascade_schema(schema, final=names))
    if test:
        files["test"].unlink()  # large, and what is needed of it stands in judged.parquet
    return dataset.fingerprint


def first_valid_request(parts: Sequence[Part]) -> int:
    """The first request that validates, of those that are learned from."""
    requests = np.unique(np.concatenate([part.log.request for part in parts]))
    return int(requests[-max(1, int(VALID_SHARE * len(requests)))])


def since(parts: Sequence[Part], request: int) -> list[Part]:
    """Rows of a request and later ones, of parts that judge."""
    found = []
    for part in parts:
        is_later = part.log.request >= request
        if is_later.any():
            found.append(
                Part(
                    log=part.log.select(is_later),
                    inputs=part.inputs.filter(pa.array(is_later)),
                    truth={task: values[is_later] for task, values in part.truth.items()},
                    incumbent=part.incumbent[is_later],
                )
            )
    return found


def _joined(parts: Sequence[Part]) -> tuple[CascadeLog, pa.Table]:
    if not parts:
        raise DataError("cascade: requests must be told, got none. Take a larger market or set.")
    logs = [part.log for part in parts]
    log = CascadeLog(
        request=np.concatenate([log.request for log in logs]),
        candidate=np.concatenate([log.candidate for log in logs]),
        pool=np.concatenate([log.pool for log in logs]),
        sampling_rate=np.concatenate([log.sampling_rate for log in logs]),
        labels={
            name: np.concatenate([log.labels[name] for log in logs]) for name in logs[0].labels
        },
        final={name: np.concatenate([log.final[name] for log in logs]) for name in logs[0].final},
    )
    return log, pa.concat_tables([part.inputs for part in parts])


def _check_pools(learned: CascadeLog, folder: Path) -> None:
    """Refuse a log whose distillation would be of impressions alone."""
    for pool, counts in learned.counts().items():
        if not all(counts.final.values()):
            raise DataError(
                f"{folder}: every pool must have rows that the final stage scored, got "
                f"{dict(counts.final)} in the pool {pool!r}. Keep more rows of each request."
            )


def _check_final(learned: CascadeLog, judged: CascadeLog, folder: Path) -> dict[str, TeacherCheck]:
    """Refuse a final stage that does better on the rows to learn from than on later ones.

    Of the first task, and of every other one of which both have positives and negatives.
    """
    found = {}
    for place, task in enumerate(learned.labels):
        sides = [
            (log.labels[task][shown], log.final[task][shown], log.request[shown])
            for log, shown in ((log, log.pool == IMPRESSED) for log in (learned, judged))
        ]
        if place and any({0.0, 1.0} - set(np.unique(labels).tolist()) for labels, _, _ in sides):
            continue
        found[task] = checked = check_teacher(*sides)
        if not checked.is_clean:
            raise DataError(
                f"{folder}, task {task!r}: the final stage must not have seen the labels of the "
                f"log, got an NE of {checked.log_ne:.4f} there and of {checked.held_out_ne:.4f} on "
                f"requests that judge. Train it on earlier days."
            )
    return found


def _write_judged(path: Path, parts: Sequence[Part], log: CascadeLog, ads: AdTable) -> None:
    columns = {
        "request_id": log.request,
        "bid": ads.bid[log.candidate],
        "billing": ads.billing[log.candidate],
        "pool": log.pool,
        _INCUMBENT: np.concatenate([part.incumbent for part in parts]),
        **{f"final_{name}": values.astype(np.float64) for name, values in log.final.items()},
    }
    for name in log.final:
        columns[f"{_TRUE}_{name}"] = np.concatenate([part.truth[name] for part in parts])
    _write_table(path, columns)


def _write_table(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    with artifacts.atomic_path(path) as temporary:
        pq.write_table(pa.table(dict(columns)), temporary)


def _texts(column: pa.ChunkedArray) -> NDArray[np.str_]:
    texts: NDArray[np.str_] = column.to_numpy(zero_copy_only=False).astype(np.str_)
    return texts
