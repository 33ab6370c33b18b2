"""From the name of a public set to its split logs and their schema."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tamis import artifacts
from tamis.data.public_sets import census, reczoo, retrieval, sequences, tabular
from tamis.data.public_sets.files import SPLITS
from tamis.data.schema import Schema
from tamis.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicSet:
    """A public data set, split and ready for ingest."""

    name: str
    """Name of the set."""
    files: dict[str, Path]
    """Log of each split."""
    schema: Schema
    """What the columns mean."""
    vectors: dict[str, Path]
    """File of each field whose vectors are given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """How a set is read."""

    folder: str
    """Folder of the published files, below that of all public sets."""
    read: Callable[[Path, Path], tuple[dict[str, Path], Schema]]
    """From that folder, and one to write into, to the log of each split, and the schema."""
    vectors: Mapping[str, str] = field(default_factory=dict)
    """File of each field whose vectors are given, in that folder."""


def _written(
    read: Callable[[Path], tuple[dict[str, pa.Table], Schema]],
) -> Callable[[Path, Path], tuple[dict[str, Path], Schema]]:
    """A reader that gives tables, with these written as Parquet."""

    def read_and_write(folder: Path, out: Path) -> tuple[dict[str, Path], Schema]:
        tables, schema = read(folder)
        files = {split: out / f"{split}.parquet" for split in SPLITS}
        for split, file in files.items():
            with artifacts.atomic_path(file) as temporary:
                pq.write_table(tables[split], temporary, compression="zstd")
        return files, schema

    return read_and_write


def _rows_of(
    read: Callable[[Path], retrieval.RetrievalSet],
) -> Callable[[Path], tuple[dict[str, pa.Table], Schema]]:
    """The rows that a retrieval task is learnt from, without what is searched and found."""

    def read_rows(folder: Path) -> tuple[dict[str, pa.Table], Schema]:
        task = read(folder)
        return task.tables, task.schema

    return read_rows


_TABLES = {
    "amazon_beauty": ("seq_amazon_beauty", sequences.amazon),
    "amazon_grocery": ("seq_amazon_grocery", sequences.grocery),
    "amazon_sports": ("seq_amazon_sports_and_outdoors", sequences.amazon),
    "amazon_sports_retrieval": ("seq_amazon_sports_and_outdoors", _rows_of(retrieval.amazon)),
    "census": ("census_income_kdd", census.census),
    "census_harness": ("census_income_kdd", census.census_harness),
    "collm_ml1m": ("collm_ml1m", sequences.collm_ml1m),
    "criteo_attribution_5cat": ("criteo_attribution_5cat", tabular.criteo_attribution_5cat),
    "frappe": ("frappe", tabular.frappe),
    "gowalla": ("gowalla", _rows_of(retrieval.gowalla)),
    "movielens_1m": ("movielens_1m", tabular.movielens_1m),
    "rees46": ("ecom_sessions_rees46", sequences.rees46),
}
_FILES: dict[str, tuple[str, Callable[[Path, Path], tuple[dict[str, Path], Schema]]]] = {
    "avazu_x1": ("Avazu_x1", reczoo.avazu_x1),
    "avazu_x4": ("Avazu_x4", reczoo.avazu_x4),
    "criteo_x1": ("Criteo_x1", reczoo.criteo_x1),
    "criteo_x4": ("Criteo_x4", reczoo.criteo_x4),
    **{
        f"{name}{ending}": (folder, partial(read, bars=bool(ending)))
        for name, folder, read in (
            ("amazon_electronics_x1", "AmazonElectronics_x1", reczoo.amazon_electronics_x1),
            ("kuai_video_x1", "KuaiVideo_x1", reczoo.kuai_video_x1),
            ("taobao_ad_x1", "TaobaoAd_x1", reczoo.taobao_ad_x1),
        )
        for ending in ("", "_bars")
    },
}
_VECTORS = {"KuaiVideo_x1": {"item_visual": "item_visual_emb_dim64.h5"}}
PUBLIC_SETS: dict[str, Reader] = {
    **{
        name: Reader(folder=folder, read=_written(read)) for name, (folder, read) in _TABLES.items()
    },
    **{
        name: Reader(folder=folder, read=read, vectors=_VECTORS.get(folder, {}))
        for name, (folder, read) in _FILES.items()
    },
}
"""Reader of each public set by name."""


def prepare(name: str, root: Path, out: Path) -> PublicSet:
    """Read a public set; splits that must be made or converted are written to ``out``.

    The same files give the same bytes. Splits that are not published are drawn with a fixed seed
    that is part of the reader.

    Args:
        name: One of ``PUBLIC_SETS``.
        root: Folder that holds one folder per public set.
        out: Where files are written.

    Returns:
        The files and their schema.

    Raises:
        DataError: The name is unknown or a published file is missing.
    """
    if name not in PUBLIC_SETS:
        known = ", ".join(PUBLIC_SETS)
        raise DataError(f"public set: must be one of {known}, got {name!r}.")
    reader = PUBLIC_SETS[name]
    vectors = {
        name: reczoo.existing(root / reader.folder / file) for name, file in reader.vectors.items()
    }
    files, schema = reader.read(root / reader.folder, out)
    artifacts.write_text(out / "schema.toml", schema.to_toml())
    return PublicSet(name=name, files=files, schema=schema, vectors=vectors)
