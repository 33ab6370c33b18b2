"""What identifies a run on disk: ``config.toml``, ``inputs/`` and ``run.json``."""

import datetime
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tamis import artifacts, config
from tamis.data.dataset import Dataset
from tamis.errors import ConfigError
from tamis.training import runlog
from tamis.training.config import RunConfig, run_config_from_table

_CONFIG = "config.toml"
_DECIDES_LAST_BITS = ("tamis", "torch", "device_name", "threads")


def is_opened(run: Path) -> bool:
    """Whether the folder holds a run; what was left before that point is written anew."""
    return (run / _CONFIG).exists()


def check_run(dataset: Dataset, settings: RunConfig, run: Path) -> None:
    """Check that the folder holds this run and no other.

    Raises:
        ConfigError: It is a run of another config or another dataset.
    """
    # Parsed, so that a setting that a later version added has its default on both sides.
    found = run_config_from_table(config.read_toml(run / _CONFIG)).to_table()
    _check_same(settings.to_table(), found, run)
    fingerprint = artifacts.read_json(run / "run.json")["dataset"]["fingerprint"]
    if fingerprint != dataset.fingerprint:
        raise ConfigError(
            f"{run}: must be of the same dataset, got fingerprint {dataset.fingerprint[:12]} "
            f"instead of {fingerprint[:12]}. Give another run name."
        )


def open_run(dataset: Dataset, settings: RunConfig, run: Path) -> None:
    """Write what identifies the run, ``config.toml`` last, and what its model needs to predict.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    inputs = run / "inputs"
    shutil.copytree(dataset.encoders_path, inputs / "encoders", dirs_exist_ok=True)
    artifacts.write_text(inputs / "schema.toml", dataset.schema.to_toml())
    artifacts.write_json(inputs / "spec.json", config.to_table(dataset.spec))
    rows = {name: dataset.split(name).num_rows for name in dataset.split_names}
    identity = {
        "dataset": {"fingerprint": dataset.fingerprint, "rows": rows, "path": str(dataset.path)},
        "commit": runlog.source_commit(),
        "seed": settings.training.seed,
        "status": "running",
    }
    artifacts.write_json(run / "run.json", identity)
    artifacts.write_text(run / _CONFIG, config.write_toml(settings.to_table()))


def begin_work(run: Path, device: torch.device) -> list[str]:
    """Record that a process works on the run, and remove what a killed one left half-written.

    Returns:
        A message for each thing that differs from the process that started the run and that can
        change the last bits of the result.
    """
    # Only the holder of the folder's lock gets here, so nobody is writing these.
    for draft in list(run.rglob(".*.tmp")):
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)
    before = artifacts.read_json(run / "run.json")
    now = {**runlog.environment(device), "commit": runlog.source_commit()}
    times = {"started": before.get("started", timestamp())}
    messages = []
    if "environment" in before:
        then = {**before["environment"], "commit": before["commit"]}
        messages = [
            f"{name}: the run was started with {then.get(name)}, it goes on with {now[name]}; "
            f"its result may differ in the last bits"
            for name in (*_DECIDES_LAST_BITS, "commit")
            if then.get(name) != now[name]
        ]
        times["resumed"] = timestamp()
    environment = {name: value for name, value in now.items() if name != "commit"}
    update_run_json(run, status="running", environment=environment, **times)
    return messages


def update_run_json(run: Path, **entries: object) -> None:
    """Set entries of ``run.json``."""
    artifacts.write_json(run / "run.json", {**artifacts.read_json(run / "run.json"), **entries})


def timestamp() -> str:
    """Now, in UTC, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], run: Path) -> None:
    flat_ours, flat_theirs = dict(_flat(ours)), dict(_flat(theirs))
    for key in sorted(flat_ours.keys() | flat_theirs.keys()):
        if flat_ours.get(key) != flat_theirs.get(key):
            raise ConfigError(
                f"{run}: must be resumed with its own config, got {key}={flat_ours.get(key)!r} "
                f"instead of {flat_theirs.get(key)!r}. Give another run name."
            )


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
