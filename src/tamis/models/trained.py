"""A trained model of the catalog as it leaves its run: everything needed to build it again.

model.json          name, config and tasks, and how it was trained where that is known
model.safetensors   weights
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tamis import artifacts, config
from tamis.data.schema import InputSpec
from tamis.errors import ArtifactError, ConfigError
from tamis.models import catalog
from tamis.models.weights import load_weights, save_weights

_MODEL, _WEIGHTS = "model.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainedModel:
    """A model and what it was built from."""

    name: str
    """Name in the catalog."""
    config: Any
    """The catalog's config class of that name."""
    spec: InputSpec
    """Its inputs and tasks."""
    module: nn.Module
    """The model with its weights, on the CPU."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained, in the words of its run's recipe without ``[model]``, for whoever trains
    it further; empty: not known."""
    trained_until: int | None = None
    """Time of the last row that it, or a model that taught it, has learnt from, microseconds since
    1970 UTC; None: its rows had no time, or it is of a bundle, which says it of all its stages."""


def write_model(folder: Path, model: TrainedModel) -> None:
    """Write a model into an existing folder, which the caller seals.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    record = {
        "name": model.name,
        "config": config.to_table(model.config),
        "spec": config.to_table(model.spec),
        **({"training": model.training} if model.training else {}),
    }
    artifacts.write_json(folder / _MODEL, record)
    save_weights(folder / _WEIGHTS, model.module)


def read_model(folder: Path) -> TrainedModel:
    """Read what :func:`write_model` wrote; every weight is the same.

    Raises:
        ArtifactError: A file is missing or damaged, or of a model that this tamis does not know.
    """
    record = artifacts.read_json(folder / _MODEL)
    try:
        name = record["name"]
        entry = catalog.entry(name)
        settings = config.from_table(entry.config, record["config"], where="model")
        spec = config.from_table(InputSpec, record["spec"], where="spec")
        module = entry.model(settings, spec)
        # Bundles that were published before it was kept do not say.
        training = dict(record.get("training", {}))
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / _MODEL}: must describe a model that this tamis can build, got {error}. "
            f"Read it with the tamis that wrote it, or publish anew."
        ) from error
    load_weights(folder / _WEIGHTS, module)
    return TrainedModel(
        name=name, config=settings, spec=spec, module=module.eval(), training=training
    )
