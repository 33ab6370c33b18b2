"""Published files, and splits that were not published."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.errors import DataError

SPLITS = ("train", "valid", "test")


def read_parquet(path: Path) -> pa.Table:
    """Read a published file.

    Raises:
        DataError: It is not there.
    """
    if not path.exists():
        raise DataError(
            f"{path}: must exist, got no such file. Set TAMIS_DATA to the folder that holds "
            f"the public sets."
        )
    return pq.read_table(path)


def split_rows(table: pa.Table, shares: dict[str, float]) -> dict[str, pa.Table]:
    """Split rows at random, always in the same way."""
    order = np.random.default_rng(2024).permutation(table.num_rows)
    bounds = np.cumsum([0, *(round(share * table.num_rows) for share in shares.values())])
    bounds[-1] = table.num_rows
    return {
        split: table.take(pa.array(np.sort(order[start:stop])))
        for split, start, stop in zip(shares, bounds[:-1], bounds[1:], strict=True)
    }
