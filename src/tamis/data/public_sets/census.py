"""Census-Income (KDD) as three tasks, as multi-task papers use it.

The published training part trains; the published test part is cut in two halves by a fixed seed,
for validation and test. Inputs are all columns but the three that give labels: 28 categories, two
codes and nine numbers scaled to [0, 1]; the sampling weight is one of these numbers, as in the
papers, and weighs nothing.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.data.public_sets.files import read_parquet, split_rows
from tamis.data.schema import Field, Schema, Task

TASKS = ("education", "income", "marital")

_LABELS = {"education": "education", "income": "income_50k", "marital": "marital_stat"}
_POSITIVE = {
    "education": (
        "Bachelors degree(BA AB BS)",
        "Masters degree(MA MS MEng MEd MSW MBA)",
        "Prof school degree (MD DDS DVM LLB JD)",
        "Doctorate degree(PhD EdD)",
    ),
    "income": ("50000+.",),
    "marital": ("Never married",),
}
NUMBERS = (
    *("age", "wage_per_hour", "capital_gains", "capital_losses", "stock_dividends"),
    *("instance_weight", "num_emp", "weeks_worked", "year"),
)
_CODES = ("own_or_self", "vet_benefits")


def census(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
    """Categories as they are, numbers scaled by the range of the training part.

    Source:
        UCI Census-Income (KDD), T. Lane and R. Kohavi; tasks and columns as in AdaTT, KDD 2023,
        section 5.6.

    Differs from the source:
        Columns are aligned by name, and professional degrees count as a college degree;
        ``census_harness`` has what the published harness does instead.
    """
    train, other = (read_parquet(folder / f"{part}.parquet") for part in ("train", "test"))
    ranges = _ranges(train)
    tables = {
        split: pa.table(
            {
                **_labels(table, _POSITIVE),
                **_numbers(table, ranges),
                **{name: table[name] for name in (*_categories(table), *_CODES)},
            }
        )
        for split, table in {"train": train, **_halves(other)}.items()
    }
    fields = (
        *(Field(name=name, kind="numeric", side="user", transform="none") for name in NUMBERS),
        *(
            Field(name=name, kind="categorical", side="user")
            for name in (*_categories(train), *_CODES)
        ),
    )
    return tables, Schema(fields=fields, tasks=tuple(Task(name=name) for name in TASKS))


def census_harness(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
    """The 482 input columns of the harness that the papers share, with its three slips.

    Categories are columns of zeros and ones. The household status that the test file lacks is put
    behind all other columns there, so every column behind its place in the training part is
    shifted by one in validation and test. Numbers of the test file are scaled by its own ranges.
    Professional degrees do not count as a college degree.

    Source:
        Census-Income in the keras-mmoe demo and in the multi-task harnesses that follow it.

    Differs from the source:
        The rows of the two halves of the test part are drawn by another generator.
    """
    train, other = (read_parquet(folder / f"{part}.parquet") for part in ("train", "test"))
    positive = {**_POSITIVE, "education": tuple(set(_POSITIVE["education"]) - {_UNMATCHED})}
    columns = {"train": _one_hot(train), "test": _one_hot(other)}
    names = list(columns["train"])
    shifted = list(columns["test"].values())
    missing = [name for name in names if name not in columns["test"]]
    shifted += [pa.array(np.zeros(other.num_rows, np.float32))] * len(missing)
    wide = pa.table({**_labels(other, positive), **dict(zip(names, shifted, strict=True))})
    tables = {
        "train": pa.table({**_labels(train, positive), **columns["train"]}),
        **_halves(wide),
    }
    fields = tuple(
        Field(name=name, kind="numeric", side="user", transform="none") for name in names
    )
    return tables, Schema(fields=fields, tasks=tuple(Task(name=name) for name in TASKS))


# The harness compares with a string that lacks the blank which every value of its file begins with.
_UNMATCHED = "Prof school degree (MD DDS DVM LLB JD)"


def _categories(table: pa.Table) -> list[str]:
    """The 28 columns that are categories, in the order of the file."""
    known = {*_LABELS.values(), *NUMBERS, *_CODES}
    return [name for name in table.column_names if name not in known]


def _labels(table: pa.Table, positive: dict[str, tuple[str, ...]]) -> dict[str, pa.Array]:
    return {
        task: pc.cast(pc.is_in(table[column], pa.array(positive[task])), pa.int8())
        for task, column in _LABELS.items()
    }


def _ranges(table: pa.Table) -> dict[str, tuple[float, float]]:
    found = {}
    for name in NUMBERS:
        values = table[name].to_numpy()
        found[name] = (float(values.min()), float(values.max()))
    return found


def _numbers(table: pa.Table, ranges: dict[str, tuple[float, float]]) -> dict[str, pa.Array]:
    scaled = {}
    for name, (low, high) in ranges.items():
        values = (table[name].to_numpy().astype(np.float64) - low) / (high - low)
        scaled[name] = pa.array(values.astype(np.float32))
    return scaled


def _one_hot(table: pa.Table) -> dict[str, pa.Array]:
    """Numbers and codes, then a column for each value of each category, values sorted."""
    columns = _numbers(table, _ranges(table))
    for name in _CODES:
        columns[name] = pc.cast(table[name], pa.float32())
    for name in _categories(table):
        for value in sorted(table[name].unique().to_pylist()):
            is_it = pc.equal(table[name], value)
            columns[f"{name}={value}"] = pc.cast(is_it, pa.float32())
    return columns


def _halves(table: pa.Table) -> dict[str, pa.Table]:
    return split_rows(table, {"valid": 0.5, "test": 0.5})
