"""What an importer gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tamis.data.schema import Schema


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A set-up of another library, in tamis' terms."""

    files: Path | Mapping[str, Path]
    """The log, or the log of each split."""
    schema: Schema
    """What its columns mean."""
    vectors: Mapping[str, Path] = field(default_factory=dict)
    """File of each field whose vectors are given."""
    recipe: Mapping[str, Any] | None = None
    """Model and training, where the set-up names them."""
    notes: tuple[str, ...] = ()
    """What could not be carried over, one sentence each."""
