"""The ads of a funnel: their codes in a log, what the auction knows of them, what models read.

ads.json          ways of billing, in the order of their codes, and sequence groups
ads.safetensors   a column for each attribute and field
raw.arrow         the ads' columns of the log, where they were read
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from tamis import artifacts
from tamis.data.dataset import EncodedRows
from tamis.errors import ArtifactError, DataError
from tamis.funnel.ads import AdTable
from tamis.funnel.value import BILLING
from tamis.models.weights import load_tensors, save_tensors

_GROUPS, _COLUMNS, _RAW = "ads.json", "ads.safetensors", "raw.arrow"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Inventory:
    """All N ads, by ad row."""

    codes: NDArray[np.int64]
    """(N,) of the role ``item`` in a log; no two alike."""
    attributes: AdTable
    """What the auction knows; billing is in the words of ``value.BILLING``."""
    rows: EncodedRows
    """Item fields of each, as ``AdFeatures.of_rows`` takes them."""
    popularity: NDArray[np.float64]
    """(N,) finite; how often each ad was clicked, say. It orders the ads where the first stage
    falls back."""
    raw: pa.Table | None = None
    """N rows: each ad's id and item fields as the log has them, by the log's columns; ``rows`` are
    these, encoded. None: they were not read, and the ads have codes but no ids."""

    def __post_init__(self) -> None:
        counts = {
            "codes": len(self.codes),
            "rows": self.rows.num_rows,
            "popularity": len(self.popularity),
            **({} if self.raw is None else {"raw": self.raw.num_rows}),
        }
        for name, count in counts.items():
            if count != len(self.attributes):
                raise DataError(
                    f"inventory: {name} must be one for each of {len(self.attributes)} ads, got "
                    f"{count}. Make all columns from one list of ads."
                )
        if len(np.unique(self.codes)) < len(self.codes):
            raise DataError(
                f"inventory: codes must differ, got {len(self.codes)} of which "
                f"{len(np.unique(self.codes))} differ. List every ad once."
            )
        unknown = ~np.isin(self.attributes.billing, BILLING)
        if unknown.any():
            raise DataError(
                f"inventory: billing must be one of {BILLING}, got "
                f"{self.attributes.billing[int(np.argmax(unknown))].item()!r} for ad "
                f"{int(np.argmax(unknown))}. Say what each ad pays for."
            )

    def __len__(self) -> int:
        return len(self.codes)

    def with_ads(self, more: "Inventory") -> "Inventory":
        """These ads, in the rows that they have, and more after them.

        Raises:
            DataError: An ad is there already, or the new ones lack a field that these have.
        """
        attributes = {
            name: np.concatenate([getattr(ads, name) for ads in (self.attributes, more.attributes)])
            for name in ("bid", "billing", "advertiser", "quality")
        }
        rows = joined_ads([self.rows, more.rows])
        have_raw = self.raw is not None and more.raw is not None
        return Inventory(
            codes=np.concatenate([self.codes, more.codes]),
            attributes=AdTable(**attributes),
            rows=replace(rows, row=np.arange(rows.num_rows)),
            popularity=np.concatenate([self.popularity, more.popularity]),
            raw=pa.concat_tables([self.raw, more.raw]) if have_raw else None,
        )

    def without_ads(self, codes: NDArray[np.int64]) -> "Inventory":
        """The other ads, in their order; they move up.

        Raises:
            DataError: An ad is not there.
        """
        strange = ~np.isin(codes, self.codes)
        if strange.any():
            raise DataError(
                f"inventory: ads to remove must be there, got {np.count_nonzero(strange)} of "
                f"{len(codes)} that are not, such as code {codes[strange][0]}. Remove an ad once."
            )
        kept = ~np.isin(self.codes, codes)
        ads = self.attributes
        return Inventory(
            codes=self.codes[kept],
            attributes=AdTable(
                bid=ads.bid[kept],
                billing=ads.billing[kept],
                advertiser=ads.advertiser[kept],
                quality=ads.quality[kept],
            ),
            rows=replace(self.rows.select(kept), row=np.arange(int(kept.sum()))),
            popularity=self.popularity[kept],
            raw=None if self.raw is None else self.raw.filter(pa.array(kept)),
        )


def joined_ads(parts: Sequence[EncodedRows]) -> EncodedRows:
    """Item fields of several lists of ads, one after another: those of the first list.

    Raises:
        DataError: A later list lacks one of them.
    """
    first = parts[0]
    names = {*first.numeric, *first.ids, *first.sequences}
    for part in parts[1:]:
        missing = sorted(names - {*part.numeric, *part.ids, *part.sequences})
        if missing:
            raise DataError(
                f"ads: rows must hold the item field {missing[0]!r} as the ads before do, got none "
                f"of it. Encode all ads with one schema."
            )

    def joined(name: str, column: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, column)[name] for part in parts])

    return EncodedRows(
        row=np.concatenate([part.row for part in parts]),
        numeric={name: joined(name, "numeric") for name in first.numeric},
        ids={name: joined(name, "ids") for name in first.ids},
        sequences={
            name: (
                np.concatenate([part.sequences[name][0] for part in parts]),
                np.concatenate([part.sequences[name][1] for part in parts]),
            )
            for name in first.sequences
        },
    )


def write_inventory(folder: Path, inventory: Inventory) -> None:
    """Write ads into an existing folder, which the caller seals.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    ads, rows = inventory.attributes, inventory.rows
    columns: dict[str, NDArray[Any]] = {
        "codes": inventory.codes,
        "popularity": inventory.popularity,
        "bid": ads.bid,
        "billing": np.searchsorted(BILLING, ads.billing).astype(np.uint8),
        "advertiser": ads.advertiser,
        "quality": ads.quality,
        **{f"numeric.{name}": values for name, values in rows.numeric.items()},
        **{f"ids.{name}": values for name, values in rows.ids.items()},
    }
    for name, (events, lengths) in rows.sequences.items():
        columns |= {f"events.{name}": events, f"lengths.{name}": lengths}
    # A copy where a column is a view of another, as safetensors takes no part of a memory.
    tensors = {name: torch.from_numpy(np.array(values)) for name, values in columns.items()}
    save_tensors(folder / _COLUMNS, tensors)
    if inventory.raw is not None:
        with (
            artifacts.atomic_path(folder / _RAW) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, inventory.raw.schema) as writer,
        ):
            writer.write_table(inventory.raw)
    artifacts.write_json(folder / _GROUPS, {"billing": BILLING, "sequences": list(rows.sequences)})


def read_inventory(folder: Path) -> Inventory:
    """Read what :func:`write_inventory` wrote; every number is the same.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    columns = {name: tensor.numpy() for name, tensor in load_tensors(folder / _COLUMNS).items()}
    record = artifacts.read_json(folder / _GROUPS)
    try:
        attributes = AdTable(
            bid=columns["bid"],
            billing=np.array(record["billing"])[columns["billing"]],
            advertiser=columns["advertiser"],
            quality=columns["quality"],
        )
        rows = EncodedRows(
            row=np.arange(len(columns["codes"])),
            numeric=_starting_with("numeric.", columns),
            ids=_starting_with("ids.", columns),
            sequences={
                name: (columns[f"events.{name}"], columns[f"lengths.{name}"])
                for name in record["sequences"]
            },
        )
        return Inventory(
            codes=columns["codes"],
            attributes=attributes,
            rows=rows,
            popularity=columns["popularity"],
            raw=_read_raw(folder / _RAW),
        )
    except (KeyError, TypeError, IndexError, DataError) as error:
        raise ArtifactError(
            f"{folder}: must hold whole columns of ads, got {error}. Publish anew."
        ) from error


def _read_raw(path: Path) -> pa.Table | None:
    if not path.exists():
        return None
    try:
        with pa.OSFile(str(path), "rb") as source:
            table = pa.ipc.open_file(source).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(
            f"{path}: must be whole columns of ads, got {error}. Publish anew."
        ) from error
    return table


def _starting_with(prefix: str, columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): values
        for name, values in columns.items()
        if name.startswith(prefix)
    }
