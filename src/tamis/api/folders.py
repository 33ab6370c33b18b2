"""Folders that calls make where none is named, and the names that they make them from."""

import itertools
from pathlib import Path


def next_folder(parent: str, name: str) -> Path:
    """The first of ``parent/name-1``, ``parent/name-2``, ... that does not exist."""
    for number in itertools.count(1):
        folder = Path(parent) / f"{name}-{number}"
        if not folder.exists():
            return folder
    raise AssertionError("a counter does not end")


def named(path: Path) -> Path:
    """A path whose last part is its name: ``.`` and ``..`` and the root are resolved."""
    return path if path.name not in ("", "..") else path.resolve()
