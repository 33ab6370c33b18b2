"""What a finished run left on disk, read back for a page or a table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis import artifacts
from tamis.errors import ArtifactError


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The files of a run folder as plain values."""

    name: str
    """Name of the run."""
    config: str
    """Text of ``config.toml``."""
    run: dict[str, Any]
    """``run.json``: versions, device, seed, data fingerprint, parameters."""
    history: list[dict[str, Any]]
    """Lines of ``metrics.jsonl``, in order."""
    metrics: dict[str, Any]
    """``metrics.json``: ``metrics``, ``oracle`` and ``ne_gap``, each by split and task."""
    diagnostics: dict[str, Any]
    """``diagnostics.json``: reliability, slices and importance; empty when not computed."""


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        ArtifactError: The folder is no finished run, or one of its files is damaged.
    """
    if not (folder / "run.json").exists():
        raise ArtifactError(
            f"{folder}: must be a run folder with run.json, got none. Name another folder."
        )
    if not (folder / "metrics.json").exists():
        raise ArtifactError(
            f"{folder}: must be a finished run with metrics.json, got an unfinished one. "
            f"Give its training command again with --run {folder} to finish it."
        )
    diagnostics = folder / "diagnostics.json"
    return RunRecord(
        name=folder.resolve().name,
        config=_read_text(folder / "config.toml"),
        run=artifacts.read_json(folder / "run.json"),
        history=_read_lines(folder / "metrics.jsonl"),
        metrics=artifacts.read_json(folder / "metrics.json"),
        diagnostics=artifacts.read_json(diagnostics) if diagnostics.exists() else {},
    )


def describe_split(split: Mapping[str, Any]) -> str:
    """How rows were split, in words; empty where the dataset does not say.

    Args:
        split: Settings of the split, as a dataset's manifest and a run's ``run.json`` hold them.
    """
    if not split:
        return ""
    valid, test = (f"{100 * split[name]:g} %" for name in ("valid", "test"))
    shares = f"{valid} validation, {test} test"
    return {
        "time": f"by time: the last {test} of the rows test, the {valid} before them validation",
        "user": f"at random by user: {shares}",
        "ratio": f"at random by row: {shares}",
        "column": f"by the column {split['column']!r}",
        "auto": "as the logs were given",
    }[split["by"]]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path}: must exist, got no such file; a run has one. Put it back, or train anew."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path}: must be readable text, got {error}. Put it back, or train anew."
        ) from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ArtifactError(
                f"{path}: line {number} must be JSON, got {error}. Put it back, or train anew."
            ) from error
    return lines
