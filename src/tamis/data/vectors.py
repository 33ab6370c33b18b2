"""Vectors that are given for categories, such as what a network makes of an item's text or picture.

Their categories are the vocabulary of the field that they are for, whether or not training has seen
them: an item that is new to the log is known by its vector.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from tamis import artifacts
from tamis.data.columns import as_categories, is_list, plain, unusable
from tamis.data.schema import Schema
from tamis.data.vocabulary import FieldCounts
from tamis.errors import ArtifactError, ConfigError, DataError

_COLUMNS = ("key", "value")
_FILE = "vectors.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GivenVectors:
    """The vectors of a field's categories."""

    categories: pa.Array
    """Text of each category, in the order of the file."""
    rows: NDArray[np.float32]
    """(V, W) rows of the field's table: zeros in row 0, which is for other categories."""


def read_vectors(path: Path, *, width: int) -> GivenVectors:
    """Read categories, ``key``, and the vector of each, ``value``.

    Parquet files have these as columns, the vectors as lists; ``.npz`` and ``.h5`` files, which
    FuxiCTR reads too, as arrays of shape (n,) and (n, W).

    Args:
        path: The file.
        width: How many numbers W a vector has.

    Raises:
        ConfigError: It is an HDF5 file and ``h5py`` is not installed.
        DataError: The file cannot be read, or holds something else; where it does is said.
    """
    readers = {".parquet": _read_parquet, ".npz": _read_npz, ".h5": _read_h5, ".hdf5": _read_h5}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: must be a file of vectors that ends in {', '.join(readers)}, got "
            f"{path.suffix or 'no ending'!r}. Write a Parquet file with columns key and value."
        )
    if not path.is_file():
        raise DataError(f"{path}: must be a file of vectors, got no file there. Mend the path.")
    keys, values = reader(path)
    if values.dtype.kind not in "fiub":
        raise DataError(f"{path}: value must hold numbers, got {values.dtype}. Write it anew.")
    if values.ndim != 2 or values.shape != (len(keys), width):
        raise DataError(
            f"{path}: value must hold {width} numbers for each of {len(keys):,} keys, got shape "
            f"{values.shape}. The field's vectors in the schema say how many."
        )
    categories = _categories(keys, path)
    rows = np.zeros((len(keys) + 1, width), np.float32)
    with np.errstate(over="ignore"):
        rows[1:] = values
    infinite = ~np.isfinite(rows).all(1)
    if infinite.any():
        raise DataError(
            f"{path}, key {categories[int(np.argmax(infinite)) - 1]}: numbers must be finite in "
            f"float32, got NaN or an infinity. Leave the key out; it then has zeros."
        )
    return GivenVectors(categories=categories, rows=rows)


def _categories(keys: pa.Array, path: Path) -> pa.Array:
    """Keys as texts, each there once."""
    if why := unusable(keys.type):
        raise DataError(f"{path}: keys must be categories, got {keys.type}: {why}. Write it anew.")
    if is_list(keys.type):
        raise DataError(f"{path}: keys must be categories, got lists. Write one of each vector.")
    found = as_categories(keys)
    if (found.codes < 0).any():
        raise DataError(
            f"{path}: keys must be categories, got a missing one in row "
            f"{int(np.argmax(found.codes < 0)) + 1}. Leave it out."
        )
    counts = np.bincount(found.codes, minlength=len(found.values))
    if counts.max(initial=0) > 1:
        again = found.values[int(np.argmax(counts))]
        raise DataError(f"{path}, key {again}: must be there once, got it again. Leave one out.")
    return found.values.take(pa.array(found.codes)).cast(pa.string())


def _read_parquet(path: Path) -> tuple[pa.Array, NDArray[Any]]:
    try:
        file = pq.ParquetFile(path)
        _check_parts(path, file.schema_arrow.names)
        table = file.read(columns=list(_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: must be a Parquet file, got: {error}. Write it anew.") from error
    keys, values = (plain(table[name]) for name in _COLUMNS)
    if not is_list(values.type):
        raise DataError(
            f"{path}: value must hold a list of numbers for each key, got {values.type}. Write it "
            f"anew."
        )
    if values.null_count:
        raise DataError(
            f"{path}: value must hold a list of numbers for each key, got {values.null_count:,} "
            f"nulls. Leave keys without a vector out."
        )
    lengths = pc.list_value_length(values).to_numpy()
    if len(lengths) and (lengths != lengths[0]).any():
        place = int(np.argmax(lengths != lengths[0]))
        raise DataError(
            f"{path}, row {place + 1}: lists must be equally long, got {lengths[place]} numbers "
            f"after {lengths[0]}. Mend the list."
        )
    numbers = values.flatten()
    if not (pa.types.is_floating(numbers.type) or pa.types.is_integer(numbers.type)):
        raise DataError(
            f"{path}: value must hold lists of numbers, got {values.type}. Write it anew."
        )
    width = int(lengths[0]) if len(lengths) else 0
    return keys, numbers.to_numpy(zero_copy_only=False).reshape(len(lengths), width)


def _read_npz(path: Path) -> tuple[pa.Array, NDArray[Any]]:
    with path.open("rb") as file:
        try:
            arrays = np.load(file, allow_pickle=False)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path}: must be a NumPy archive, got: {error}. Write it anew."
            ) from error
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError(
                f"{path}: must hold key and value, got one array. Save both by np.savez."
            )
        _check_parts(path, arrays.files)
        try:
            keys, values = (arrays[name] for name in _COLUMNS)
        except (ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{path}: must hold arrays of numbers or texts, got: {error}. Arrays of objects "
                f"are not read, as they may run code; write a Parquet file of them."
            ) from error
    return _as_array(keys, path), values


def _read_h5(path: Path) -> tuple[pa.Array, NDArray[Any]]:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading HDF5 needs h5py, got none. pip install 'tamis[hdf5]', or write a "
            f"Parquet file."
        ) from error
    try:
        with h5py.File(path, "r") as arrays:
            _check_parts(path, list(arrays))
            keys, values = (np.asarray(arrays[name][()]) for name in _COLUMNS)
    except (OSError, TypeError, KeyError) as error:
        raise DataError(f"{path}: must be an HDF5 file, got: {error}. Write it anew.") from error
    if keys.dtype.kind == "O" and all(isinstance(key, bytes) for key in keys.flat):
        keys = keys.astype(np.bytes_)  # texts of any length
    return _as_array(keys, path), values


def _check_parts(path: Path, names: list[str]) -> None:
    if not set(_COLUMNS) <= set(names):
        raise DataError(
            f"{path}: must hold key and value, the categories and their vectors, got "
            f"{', '.join(names) or 'nothing'}. Name them so."
        )


def _as_array(keys: NDArray[Any], path: Path) -> pa.Array:
    if keys.ndim != 1 or keys.dtype.kind not in "iuUS":
        raise DataError(
            f"{path}: key must hold one text or whole number for each vector, got {keys.dtype} of "
            f"shape {keys.shape}. Write it anew."
        )
    try:
        return pa.array(np.char.decode(keys, "utf-8") if keys.dtype.kind == "S" else keys)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: keys must be UTF-8, got: {error}. Write it anew.") from error


def check_vectors(schema: Schema, files: Mapping[str, Path]) -> None:
    """Check that there is a file for each field whose vectors are given, and for no other.

    Raises:
        ConfigError: One is missing, or is too much.
    """
    wanted = [item.name for item in schema.fields if item.vectors]
    for name in wanted:
        if name not in files:
            raise ConfigError(
                f"vectors: must name the file of field {name!r}, whose vectors are given, got "
                f"{', '.join(files) or 'none'}. Name it: --vectors {name}=FILE."
            )
    for name in files:
        if name not in wanted:
            raise ConfigError(
                f"vectors: must be for fields whose vectors are given, got {name!r}. Set vectors "
                f"of that field in the schema, to how many numbers a vector has. Such fields: "
                f"{', '.join(wanted) or 'none'}."
            )


def lacking_vectors(schema: Schema, counts: Mapping[str, FieldCounts]) -> list[str]:
    """Of each field most of whose values have no vector, that they do not.

    Args:
        schema: What the columns mean.
        counts: What encoding met, by field.
    """
    given = {item.name for item in schema.fields if item.vectors}
    found = []
    for item in schema.fields:
        met = counts.get(item.name)
        if (item.shares or item.name) not in given or met is None:
            continue
        values = met.rows - met.missing
        if 2 * met.unknown > values:
            found.append(
                f"{item.name}: {met.unknown / values:.0%} of its values have no vector, which is "
                f"zeros then; are the keys of the file what column {item.source!r} holds?"
            )
    return found


def has_rows(folder: Path) -> bool:
    """Whether a dataset's folder holds rows that :func:`write_rows` wrote."""
    return (folder / _FILE).exists()


def write_rows(folder: Path, rows: Mapping[str, NDArray[np.float32]]) -> None:
    """Write the rows of tables, by field, to a dataset's folder; nothing where there are none.

    Raises:
        StorageError: The disk is full.
    """
    if rows:
        artifacts.write_bytes(folder / _FILE, to_safetensors(dict(rows)))


def read_rows(folder: Path, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """What :func:`write_rows` wrote of some fields.

    Raises:
        ArtifactError: The file is not there, damaged or of other fields.
    """
    path = folder / _FILE
    if not path.exists():
        raise ArtifactError(
            f"{path}: must hold the vectors of {', '.join(names)}, got no such file: it was "
            f"removed, or the dataset was made with the encoders of a trained model, which has "
            f"them. Start from that model, or ingest the log anew."
        )
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path}: must hold the vectors of {', '.join(names)}, got: {error}. It was altered "
            f"after it was written; ingest the log anew."
        ) from error
