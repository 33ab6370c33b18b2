"""Which split each row belongs to: by time, by user, at random, or as a column says."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.columns import Origin, as_categories
from tamis.data.hashing import hash_integers
from tamis.errors import ConfigError, DataError

SPLIT_NAMES = ("train", "valid", "test")
SplitWay = Literal["auto", "time", "user", "ratio", "column"]
_ALIASES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """How rows are split."""

    by: SplitWay = "auto"
    """``auto``: by time where the schema has a time, else by ratio."""
    column: str = ""
    """Column that names each row's split; for ``column`` only."""
    valid: float = 0.1
    """Share of rows (or users) for validation, in (0, 1)."""
    test: float = 0.1
    """Share of rows (or users) for the test, in [0, 1)."""
    seed: int = 0
    """Decides the draw of ``user`` and ``ratio``."""

    def __post_init__(self) -> None:
        if self.by not in get_args(SplitWay):
            raise ConfigError(
                f"split: by must be one of {', '.join(get_args(SplitWay))}, got {self.by!r}."
            )
        if not (self.valid > 0 and self.test >= 0 and self.valid + self.test < 1):
            raise ConfigError(
                f"split: valid > 0, test >= 0 and valid + test < 1 must hold, got {self.valid} "
                f"and {self.test}."
            )
        if (self.by == "column") != bool(self.column):
            raise ConfigError(
                f"split: column must be set for by = 'column' and for nothing else, got "
                f"by={self.by!r} and column={self.column!r}."
            )


def split_by_share(keys: NDArray[np.int64], config: SplitConfig) -> NDArray[np.int8]:
    """Draw a split for each key; rows of one key stay together.

    Args:
        keys: (n,) row numbers for ``ratio``, user codes for ``user``.
        config: Shares and seed.

    Returns:
        (n,) index into ``SPLIT_NAMES``.
    """
    draws = hash_integers(keys, seed=config.seed) / 2.0**64
    return np.where(
        draws < config.test, 2, np.where(draws < config.test + config.valid, 1, 0)
    ).astype(np.int8)


def time_bounds(times: NDArray[np.int64], config: SplitConfig) -> tuple[int, int]:
    """First validation time and first test time; rows of one time stay together.

    Raises:
        DataError: The times do not suffice for three splits.
    """
    count = len(times)
    first_valid = min(count - 1, round(count * (1 - config.valid - config.test)))
    first_test = min(count - 1, round(count * (1 - config.test)))
    ordered = np.partition(times, (first_valid, first_test))
    valid_from, test_from = int(ordered[first_valid]), int(ordered[first_test])
    if config.test == 0:
        test_from = int(times.max()) + 1
    if not times.min() < valid_from < test_from:
        alike = int((times == valid_from).sum())
        got = f"{alike:,} of {count:,} rows at {np.datetime64(valid_from, 'us')}"
        if alike == 1:
            got = f"{count:,} rows, too few for these shares"
        raise DataError(
            f"split by time: train, valid and test must get rows, and rows of one time stay "
            f"together, got {got}. Split by ratio."
        )
    return valid_from, test_from


def split_by_time(times: NDArray[np.int64], bounds: tuple[int, int]) -> NDArray[np.int8]:
    """Split of each time: before the first bound, before the second, after."""
    return np.searchsorted(np.asarray(bounds), times, side="right").astype(np.int8)


def split_by_column(column: pa.Array, *, origin: Origin) -> NDArray[np.int8]:
    """Split that a column names.

    Raises:
        DataError: A value names no split, or is missing; file, column and row are named.
    """
    categories = as_categories(column)
    names = [_ALIASES.get(value.lower(), value) for value in categories.values.to_pylist()]
    codes = np.array([SPLIT_NAMES.index(n) if n in SPLIT_NAMES else -1 for n in [*names, ""]])
    split_of_row = codes[categories.codes]  # Code -1, a missing value, takes the last.
    if (split_of_row < 0).any():
        position = int(np.argmax(split_of_row < 0))
        code = int(categories.codes[position])
        value = "none" if code < 0 else repr(names[code])
        raise DataError(
            f"{origin.row(position)}: must name a split (train, valid or test), got {value}. Mend "
            f"it, or split in another way."
        )
    return split_of_row.astype(np.int8)
