"""Checkpoints: weights, optimizer state, generators and progress, from which a run goes on exactly.

A checkpoint is a folder ``step-<n>`` of safetensors and JSON, sealed by a manifest with hashes. It
is built under another name and moved into place, so a killed process leaves the previous one.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tamis import artifacts, config
from tamis.errors import ArtifactError
from tamis.models.weights import load_tensors, load_weights, save_tensors, save_weights
from tamis.training.averaging import WeightAverage
from tamis.training.schedules import Progress

CHECKPOINT_VERSION = 1
_KEPT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainee:
    """Everything that training changes."""

    model: nn.Module
    """The model."""
    optimizers: Mapping[str, torch.optim.Optimizer]
    """Optimizers by name."""
    progress: Progress
    """Where the run stands."""
    average: WeightAverage | None = None
    """Moving average of the weights, where the run keeps one."""


def save_checkpoint(folder: Path, trainee: Trainee) -> Path:
    """Write ``folder/step-<n>``; of the others only the newest of an earlier step is kept.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    target = folder / f"step-{trainee.progress.step:010d}"
    draft = folder / f".{target.name}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    with artifacts.disk_errors(folder):
        draft.mkdir(parents=True)
    try:
        save_weights(draft / "model.safetensors", trainee.model)
        tensors, scalars = _optimizer_state(trainee.optimizers)
        tensors |= _generator_state()
        if trainee.average is not None:
            tensors |= {f"ema.{name}": value for name, value in trainee.average.state().items()}
        save_tensors(draft / "state.safetensors", tensors)
        state = {"progress": config.to_table(trainee.progress), "optimizers": scalars}
        artifacts.write_json(draft / "state.json", state)
        artifacts.write_manifest(
            draft,
            kind="checkpoint",
            version=CHECKPOINT_VERSION,
            files=list(draft.iterdir()),
            payload={"step": trainee.progress.step},
        )
        shutil.rmtree(target, ignore_errors=True)
        artifacts.move_into_place(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    found = _checkpoints(folder)
    newest = found.index(target)
    # Those of later steps were damaged, and passed over when the run was resumed.
    for other in found[:newest] + found[newest + _KEPT :]:
        shutil.rmtree(other)
    return target


def load_newest_checkpoint(folder: Path, trainee: Trainee) -> tuple[Path | None, list[str]]:
    """Put a trainee back to the newest checkpoint that is whole.

    Returns:
        The checkpoint, or None where there is none; and a message for each damaged one that was
        passed over.

    Raises:
        ArtifactError: There are checkpoints but none of them is whole.
    """
    damaged = []
    found = _checkpoints(folder)
    for checkpoint in found:
        try:
            artifacts.read_manifest(
                checkpoint, kind="checkpoint", version=CHECKPOINT_VERSION, verify=True
            )
        except ArtifactError as error:
            damaged.append(str(error))
            continue
        _restore(checkpoint, trainee)
        return checkpoint, damaged
    if found:
        raise ArtifactError(
            f"{folder}: must hold a whole checkpoint, got {len(found)} damaged: "
            f"{' '.join(damaged)} Remove the run folder to start anew."
        )
    return None, damaged


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint; 0 where there is none."""
    return next((int(path.name.removeprefix("step-")) for path in _checkpoints(folder)), 0)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True) if folder.exists() else []


def _optimizer_state(
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by ``optimizer.parameter.entry``, and what is not a tensor, as JSON values."""
    tensors, scalars = {}, {}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()["state"]
        for index, entries in state.items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{index}.{key}"] = value
                else:
                    scalars[f"{name}.{index}.{key}"] = value
    return tensors, scalars


def _generator_state() -> dict[str, Tensor]:
    state = {"generator.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for index, value in enumerate(torch.cuda.get_rng_state_all()):
            state[f"generator.cuda.{index}"] = value
    return state


def _restore(checkpoint: Path, trainee: Trainee) -> None:
    load_weights(checkpoint / "model.safetensors", trainee.model)
    tensors = load_tensors(checkpoint / "state.safetensors")
    state = json.loads((checkpoint / "state.json").read_text())
    for name, optimizer in trainee.optimizers.items():
        loaded = optimizer.state_dict()
        entries: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            parts = key.split(".", 3)
            if parts[0] == "optimizer" and parts[1] == name:
                entries.setdefault(int(parts[2]), {})[parts[3]] = tensor
        for key, value in state["optimizers"].items():
            owner, index, entry = key.split(".", 2)
            if owner == name:
                entries.setdefault(int(index), {})[entry] = value
        loaded["state"] = entries
        optimizer.load_state_dict(loaded)
        # It turns every entry into the parameter's type; counts must stay integers.
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, values in entries.items():
            for entry, value in values.items():
                if isinstance(value, Tensor) and not value.is_floating_point():
                    kept = optimizer.state[parameters[index]]
                    kept[entry] = value.to(kept[entry].device)
    if trainee.average is not None:
        trainee.average.load_state(
            {k.removeprefix("ema."): value for k, value in tensors.items() if k.startswith("ema.")}
        )
    torch.set_rng_state(tensors["generator.cpu"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"generator.cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"generator.cuda.{index}"], index)
    restored = config.from_table(Progress, state["progress"])
    for field in dataclasses.fields(Progress):
        setattr(trainee.progress, field.name, getattr(restored, field.name))
