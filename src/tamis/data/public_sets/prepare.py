"""From the name of a public set to its split logs and their schema."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tamis import artifacts
from tamis.data.public_sets import census, sequences, tabular
from tamis.data.public_sets.files import SPLITS
from tamis.data.schema import Schema
from tamis.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicSet:
    """A public data set, split and ready for ingest."""

    name: str
    """Name of the set."""
    files: dict[str, Path]
    """Parquet file of each split."""
    schema: Schema
    """What the columns mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """How a set is read."""

    folder: str
    """Folder of the published files, below that of all public sets."""
    read: Callable[[Path], tuple[dict[str, pa.Table], Schema]]
    """From that folder to the table of each split, and the schema."""


PUBLIC_SETS: dict[str, Reader] = {
    "amazon_beauty": Reader(folder="seq_amazon_beauty", read=sequences.amazon),
    "amazon_grocery": Reader(folder="seq_amazon_grocery", read=sequences.grocery),
    "amazon_sports": Reader(folder="seq_amazon_sports_and_outdoors", read=sequences.amazon),
    "census": Reader(folder="census_income_kdd", read=census.census),
    "census_harness": Reader(folder="census_income_kdd", read=census.census_harness),
    "collm_ml1m": Reader(folder="collm_ml1m", read=sequences.collm_ml1m),
    "criteo_attribution_5cat": Reader(
        folder="criteo_attribution_5cat", read=tabular.criteo_attribution_5cat
    ),
    "frappe": Reader(folder="frappe", read=tabular.frappe),
    "movielens_1m": Reader(folder="movielens_1m", read=tabular.movielens_1m),
    "rees46": Reader(folder="ecom_sessions_rees46", read=sequences.rees46),
}
"""Reader of each public set by name."""


def prepare(name: str, root: Path, out: Path) -> PublicSet:
    """Read a public set and write its splits to ``out``.

    The same files give the same bytes. Splits that are not published are drawn with a fixed seed
    that is part of the reader.

    Args:
        name: One of ``PUBLIC_SETS``.
        root: Folder that holds one folder per public set.
        out: Where the three Parquet files go.

    Returns:
        The files and their schema.

    Raises:
        DataError: The name is unknown or a published file is missing.
    """
    if name not in PUBLIC_SETS:
        known = ", ".join(PUBLIC_SETS)
        raise DataError(f"public set: must be one of {known}, got {name!r}.")
    reader = PUBLIC_SETS[name]
    tables, schema = reader.read(root / reader.folder)
    files = {split: out / f"{split}.parquet" for split in SPLITS}
    for split, file in files.items():
        with artifacts.atomic_path(file) as temporary:
            pq.write_table(tables[split], temporary, compression="zstd")
    artifacts.write_text(out / "schema.toml", schema.to_toml())
    return PublicSet(name=name, files=files, schema=schema)
