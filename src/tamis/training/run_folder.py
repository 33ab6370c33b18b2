"""What identifies a run on disk: ``config.toml``, ``inputs/`` and ``run.json``."""

import datetime
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tamis import artifacts, config
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.schema import load_schema
from tamis.errors import ArtifactError, ConfigError
from tamis.training import runlog
from tamis.training.checkpoint import newest_step
from tamis.training.config import RunConfig, read_run_config

INPUTS_VERSION = 1
_CONFIG = "config.toml"
_BEFORE_CONFIG = {"run.json", "inputs"}
_DECIDES_LAST_BITS = ("tamis", "torch", "device_name", "vectors", "threads")
# Other models' weights that decide a run: where their fingerprint stands in run.json, what they are
# to it, and what there is instead where there are none.
_ORIGINS = (
    ("started_from", "it started from", "those of its seed"),
    ("taught_by", "taught it", "none"),
)


def is_opened(run: Path) -> bool:
    """Whether the folder holds a run; what was left before that point is written anew."""
    return (run / _CONFIG).exists()


def check_place(run: Path) -> None:
    """Check that a folder is a run, or free for one.

    Raises:
        ConfigError: A file stands there or above it, or a folder with anything else in it.
    """
    for place in (run, *run.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(
                f"{run}: must be a run folder or a free name for one, got a file {place}. Name "
                f"another folder."
            )
    found = {path.name for path in run.iterdir() if path.name[0] != "."} if run.exists() else set()
    is_run = {"run.json", _CONFIG} <= found
    # A run that was killed while it was opened has run.json, and perhaps a part of its inputs.
    is_half_opened = "run.json" in found and found <= _BEFORE_CONFIG
    if found and not is_run and not is_half_opened:
        raise ConfigError(
            f"{run}: must be a run folder or an empty one, got {min(found - {'run.json'})!r} in "
            f"it. Name another folder."
        )


def check_finished(run: Path) -> None:
    """Check that a folder holds a finished run.

    Raises:
        ArtifactError: It holds none, or an unfinished one; status and step are named.
    """
    if run.exists() and not run.is_dir():
        raise ArtifactError(f"{run}: must be a run folder, got a file. Name the run's folder.")
    if not (run / "run.json").exists():
        raise ArtifactError(
            f"{run}: must be a run folder with run.json, got none. Name another folder."
        )
    record = artifacts.read_json(run / "run.json")
    if not (run / "metrics.json").exists():
        raise ArtifactError(
            f"{run}: must be a finished run, got status {record['status']!r} at step "
            f"{newest_step(run / 'checkpoints'):,}. Give its training command again with "
            f"--run {run} to finish it."
        )


def check_run(
    dataset: Dataset, settings: RunConfig, run: Path, *, origin: Mapping[str, str] | None = None
) -> None:
    """Check that the folder holds this run and no other.

    Inputs that are damaged, or were not sealed by an earlier version, are written anew: the same
    dataset has the same.

    Args:
        dataset: What it is trained on.
        settings: Everything else that decides the result.
        run: Its folder.
        origin: Fingerprints of the weights that it started from and that it was taught by, as in
            :func:`open_run`.

    Raises:
        ConfigError: It is a run of another config, another dataset, another start or teacher.
    """
    check_config(settings, run)
    record = artifacts.read_json(run / "run.json")
    for name, role, nothing in _ORIGINS:
        before, now = record.get(name, ""), (origin or {}).get(name, "")
        if before != now:
            raise ConfigError(
                f"{run}: must be resumed with the weights that {role}, got "
                f"{now[:12] or nothing} instead of {before[:12] or nothing}. Give another run name."
            )
    fingerprint = record["dataset"]["fingerprint"]
    if fingerprint != dataset.fingerprint:
        raise ConfigError(
            f"{run}: must be of the same dataset, got fingerprint {dataset.fingerprint[:12]} "
            f"instead of {fingerprint[:12]}. Give another run name."
        )
    try:
        verified_inputs(run)
    except ArtifactError:
        _write_inputs(dataset, run / "inputs")


def check_config(settings: RunConfig, run: Path) -> None:
    """Check that a run was opened with these settings.

    Raises:
        ConfigError: It was opened with others.
    """
    # Parsed, so that a setting that a later version added has its default on both sides.
    found = read_run_config(run / _CONFIG).to_table()
    _check_same(settings.to_table(), found, run)


def verified_inputs(run: Path) -> dict[str, str]:
    """SHA-256 of each file of a run's ``inputs/`` by name, all of them checked.

    Raises:
        ArtifactError: They are not sealed, or one is missing, truncated or altered.
    """
    folder = run / "inputs"
    if not (folder / artifacts.MANIFEST).exists():
        raise ArtifactError(
            f"{folder}: must be sealed by a {artifacts.MANIFEST}, got none; an earlier tamis made "
            f"the run, or the file was removed. Train anew, or give the training command again "
            f"with --run {run}."
        )
    manifest = artifacts.read_manifest(folder, kind="inputs", version=INPUTS_VERSION, verify=True)
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def run_encoders(run: Path) -> Encoders:
    """The encoders of a run's ``inputs/``, which :func:`verified_inputs` checks."""
    folder = run / "inputs"
    return Encoders.load(folder / "encoders", load_schema(folder / "schema.toml"))


def open_run(
    dataset: Dataset,
    settings: RunConfig,
    run: Path,
    *,
    trained_until: int | None,
    origin: Mapping[str, str] | None = None,
) -> None:
    """Write what identifies the run, ``config.toml`` last, and what its model needs to predict.

    Args:
        dataset: What it is trained on.
        settings: Everything else that decides the result.
        run: Its folder.
        trained_until: Time of the last row that weights are learnt from, here or in the models of
            ``origin``; None where rows have no time.
        origin: Fingerprints of other models' weights: ``started_from``, where it did not start
            from those of its seed, and ``taught_by``, where a teacher labels rows.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    rows = {name: dataset.split(name).num_rows for name in dataset.split_names}
    identity = {
        "dataset": {
            "fingerprint": dataset.fingerprint,
            "rows": rows,
            # Absolute, so that the run can be evaluated from any folder.
            "path": str(dataset.folder.resolve()),
            "split": dataset.manifest.get("split", {}),
            # The dataset may be gone when a funnel is published.
            "trained_until": trained_until,
        },
        "commit": runlog.source_commit(),
        "seed": settings.training.seed,
        **(origin or {}),
        "status": "running",
    }
    artifacts.write_json(run / "run.json", identity)
    _write_inputs(dataset, run / "inputs")
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
            # An earlier version wrote less.
            if name in then and then[name] != now[name]
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


def _write_inputs(dataset: Dataset, inputs: Path) -> None:
    (inputs / artifacts.MANIFEST).unlink(missing_ok=True)
    # What was left of another dataset would be read as vocabularies of this one.
    shutil.rmtree(inputs / "encoders", ignore_errors=True)
    with artifacts.disk_errors(inputs):
        (inputs / "encoders").mkdir(parents=True)
        artifacts.copy_files(dataset.encoders_path, inputs / "encoders")
    artifacts.write_text(inputs / "schema.toml", dataset.schema.to_toml())
    artifacts.write_json(inputs / "spec.json", config.to_table(dataset.spec))
    artifacts.write_manifest(
        inputs,
        kind="inputs",
        version=INPUTS_VERSION,
        files=[
            *(inputs / "encoders").iterdir(),
            inputs / "schema.toml",
            inputs / "spec.json",
        ],
        payload={},
    )


def _check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], run: Path) -> None:
    flat_ours, flat_theirs = dict(_flat(ours)), dict(_flat(theirs))
    keys = flat_ours.keys() | flat_theirs.keys()
    # The name first: where the models differ, so do most of their settings.
    for key in sorted(keys, key=lambda key: (key != "model.name", key)):
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
