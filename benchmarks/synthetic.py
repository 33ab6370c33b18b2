"""Logs with planted click probabilities, at any table size: what every contender is given.

``encoded_log`` writes integer ids with declared table sizes; ``raw_log`` writes strings for ingest.
Both follow popularity power laws, as click logs do, and the same seed gives the same rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

LABEL = "click"
HISTORY = "history"
SMALLEST_FIELD = 10
POPULARITY_EXPONENT = 1.1
FACTORS = 4
EFFECT_SD = 3.0
PAIR_SD = 3.0
BIAS = -2.0
MEDIAN_LENGTH = 20
LENGTH_SD = 1.0
ROWS_PER_CHUNK = 250_000


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedLog:
    """Parquet files of one log and the table sizes that its ids were drawn for."""

    files: dict[str, Path]
    """By split: train, valid, test."""
    rows_by_field: dict[str, int]
    """Table rows V of each field; row 0 stays unused (out of vocabulary, padding)."""
    num_rows: dict[str, int]
    """Rows of each split."""
    oracle_log_loss: float
    """Log loss of the planted probabilities on the test rows, in nats."""
    mean_history: float
    """Mean events of the test rows' histories."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawLog:
    """One file as a logger would write it."""

    path: Path
    """The file."""
    categorical: tuple[str, ...]
    """Names of the string columns."""
    numeric: tuple[str, ...]
    """Names of the columns of numbers."""
    num_rows: int
    """Rows."""


def field_sizes(total_rows: int, num_fields: int) -> dict[str, int]:
    """Table sizes from ``SMALLEST_FIELD`` up in geometric steps that sum to ``total_rows``.

    Args:
        total_rows: Table rows of all fields together; at least ``SMALLEST_FIELD`` a field.
        num_fields: Fields F, at least 2.

    Raises:
        ValueError: The total is too small for that many fields.
    """
    if total_rows < SMALLEST_FIELD * num_fields:
        raise ValueError(
            f"total_rows: must be at least {SMALLEST_FIELD * num_fields} for {num_fields} fields, "
            f"got {total_rows}."
        )
    low, high = 1.0, float(total_rows)
    steps = np.arange(num_fields) / (num_fields - 1)
    for _ in range(200):  # bisection on the ratio of the largest field to the smallest
        middle = (low * high) ** 0.5
        too_small = (SMALLEST_FIELD * middle**steps).sum() < total_rows
        low, high = (middle, high) if too_small else (low, middle)
    sizes = np.floor(SMALLEST_FIELD * low**steps).astype(np.int64)
    sizes[-1] += total_rows - sizes.sum()
    return {f"f{index:02d}": int(size) for index, size in enumerate(sizes)}


def popular_ranks(rng: np.random.Generator, num_values: int, count: int) -> NDArray[np.int64]:
    """Ranks 0..num_values-1 with power-law popularity, rank 0 the most popular."""
    # Inverse of the distribution function of a Pareto law cut off at num_values + 1.
    power = 1.0 - POPULARITY_EXPONENT
    u = rng.random(count)
    x = (1.0 + u * ((num_values + 1.0) ** power - 1.0)) ** (1.0 / power)
    return np.minimum(x.astype(np.int64) - 1, num_values - 1)


def scattered(ranks: NDArray[np.int64], num_values: int) -> NDArray[np.int64]:
    """A fixed one-to-one shuffle of ranks: popular ids must not be neighbours in the table."""
    step = max(1, int(num_values * 0.6180339887))
    while np.gcd(step, num_values) != 1:
        step += 1
    return (ranks * step + num_values // 3) % num_values


def history_lengths(rng: np.random.Generator, count: int, *, longest: int) -> NDArray[np.int64]:
    """Lengths 1 to ``longest`` of made-up histories: most are short, some are cut off.

    Log-normal, with a median of ``MEDIAN_LENGTH`` events.
    """
    drawn = rng.lognormal(np.log(MEDIAN_LENGTH), LENGTH_SD, size=count)
    return drawn.round().astype(np.int64).clip(1, longest)


class PlantedTruth:
    """Click probability of a row: an effect of each id, and inner products of all fields' factors.

    Both shrink with the logarithm of the popularity rank, so that most of the signal lies in ids
    that turn up often enough to be learnt.
    """

    def __init__(self, rng: np.random.Generator, num_values: list[int]) -> None:
        """Draw effects and factors for fields of these sizes."""
        fields = len(num_values)
        effect_scale = EFFECT_SD / fields**0.5
        # The sum over all pairs of fields has about standard deviation PAIR_SD.
        factor_scale = (PAIR_SD / (fields * (FACTORS / 2) ** 0.5)) ** 0.5
        shrink = [1.0 / (1.0 + 0.3 * np.log1p(np.arange(n))) for n in num_values]
        self._effects = [
            (rng.standard_normal(len(s)) * s * effect_scale).astype(np.float32) for s in shrink
        ]
        self._factors = [
            (rng.standard_normal((len(s), FACTORS)) * s[:, None] * factor_scale).astype(np.float32)
            for s in shrink
        ]
        self.bias = BIAS

    def probabilities(self, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """True probabilities (B,) of rows with these ranks (B, F)."""
        logits = np.full(len(ranks), self.bias)
        total = np.zeros((len(ranks), FACTORS))
        squares = np.zeros((len(ranks), FACTORS))
        for index in range(ranks.shape[1]):
            column = ranks[:, index]
            logits += self._effects[index][column]
            factors = self._factors[index][column].astype(np.float64)
            total += factors
            squares += factors**2
        logits += 0.5 * (total**2 - squares).sum(1)
        return 1.0 / (1.0 + np.exp(-logits))


def encoded_log(
    folder: Path,
    *,
    table_rows: int,
    train_rows: int,
    test_rows: int,
    num_fields: int = 20,
    history: int = 0,
    varied: bool = False,
    seed: int = 7,
) -> EncodedLog:
    """Write train, valid and test files of integer ids; existing ones are made again.

    Args:
        folder: Where ``train.parquet`` and the others go.
        table_rows: Rows of all embedding tables together.
        train_rows: Rows to train on.
        test_rows: Rows of the test and of the validation split each.
        num_fields: Categorical fields F.
        history: Events of each row's history, of values of the largest field; 0 leaves it out.
        varied: Whether ``history`` is the largest length instead; see ``history_lengths``. Shorter
            histories have zeros before their first event.
        seed: Same seed, same bytes.
    """
    sizes = field_sizes(table_rows, num_fields)
    num_values = [size - 1 for size in sizes.values()]
    rng = np.random.default_rng(seed)
    truth = PlantedTruth(rng, num_values)
    folder.mkdir(parents=True, exist_ok=True)
    files, counts = {}, {"train": train_rows, "valid": test_rows, "test": test_rows}
    loss, num_events = 0.0, 0
    for split, count in counts.items():
        files[split] = folder / f"{split}.parquet"
        writer: pq.ParquetWriter | None = None
        loss, num_events = 0.0, 0  # those of the last split, test, are told
        for rows in _chunks(count):
            ranks = np.stack([popular_ranks(rng, n, rows) for n in num_values], axis=1)
            probabilities = truth.probabilities(ranks)
            labels = rng.random(rows) < probabilities
            loss -= float(np.log(np.where(labels, probabilities, 1 - probabilities)).sum())
            columns = {
                name: scattered(ranks[:, index], num_values[index]) + 1
                for index, name in enumerate(sizes)
            }
            if history:
                events = scattered(
                    popular_ranks(rng, num_values[-1], rows * history), num_values[-1]
                )
                events += 1
                if varied:
                    missing = history - history_lengths(rng, rows, longest=history)
                    events[(np.arange(history) < missing[:, None]).ravel()] = 0
                num_events += np.count_nonzero(events)
                columns[HISTORY] = pa.FixedSizeListArray.from_arrays(events, history)
            table = pa.table({**columns, LABEL: labels.astype(np.float32)})
            writer = writer or pq.ParquetWriter(files[split], table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
    return EncodedLog(
        files=files,
        rows_by_field=sizes,
        num_rows=counts,
        oracle_log_loss=loss / test_rows,
        mean_history=num_events / test_rows,
    )


def raw_log(
    path: Path,
    *,
    num_rows: int,
    cardinalities: list[int],
    num_numeric: int = 0,
    seed: int = 7,
) -> RawLog:
    """Write one file of strings, numbers and a label, in chunks; the suffix picks the format.

    Args:
        path: ``.csv`` or ``.parquet``.
        num_rows: Rows.
        cardinalities: Values that each string column draws from.
        num_numeric: Columns of positive, skewed numbers.
        seed: Same seed, same bytes.
    """
    rng = np.random.default_rng(seed)
    names = [f"c{index:02d}" for index in range(len(cardinalities))]
    numbers = [f"n{index:02d}" for index in range(num_numeric)]
    words = [
        pa.array([f"{name}_{value:x}" for value in range(size)])
        for name, size in zip(names, cardinalities, strict=True)
    ]
    schema = pa.schema(
        [
            *((name, pa.string()) for name in names),
            *((name, pa.float32()) for name in numbers),
            (LABEL, pa.int8()),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = (
        pc.CSVWriter(path, schema)
        if path.suffix == ".csv"
        else pq.ParquetWriter(path, schema, compression="zstd")
    )
    with writer:
        for rows in _chunks(num_rows):
            columns = [
                values.take(pa.array(scattered(popular_ranks(rng, size, rows), size)))
                for values, size in zip(words, cardinalities, strict=True)
            ]
            columns += [pa.array(rng.lognormal(size=rows).astype(np.float32)) for _ in numbers]
            columns.append(pa.array((rng.random(rows) < 0.2).astype(np.int8)))
            writer.write_table(pa.table(columns, schema=schema))
    return RawLog(path=path, categorical=tuple(names), numeric=tuple(numbers), num_rows=num_rows)


def _chunks(count: int) -> Iterator[int]:
    while count > 0:
        yield min(count, ROWS_PER_CHUNK)
        count -= ROWS_PER_CHUNK
