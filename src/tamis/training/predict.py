"""From a trained model to probabilities, and from a run folder to a trained model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tamis import artifacts, config
from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Task
from tamis.errors import ArtifactError, ConfigError
from tamis.models import catalog
from tamis.models.output import probabilities_of
from tamis.models.trained import TrainedModel
from tamis.models.weights import load_weights, save_weights
from tamis.nn.precision import has_fast_bfloat16
from tamis.training.config import RunConfig, read_run_config
from tamis.training.run_folder import verified_inputs

BEST_WEIGHTS = "best"
WEIGHTS_FILE = "model.safetensors"


def choose_device(name: str) -> torch.device:
    """Device of a config's ``device`` setting.

    Raises:
        ConfigError: The name is no device, or this machine has none of that kind.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"training.device: must be auto, cpu or cuda, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"training.device: must be at hand, got {name!r} on a machine without CUDA. Use auto."
        )
    return device


def choose_precision(
    name: Literal["auto", "float32", "bfloat16"], device: torch.device
) -> torch.dtype:
    """Type of matrix products; ``auto`` takes bfloat16 only where hardware multiplies it fast."""
    if name == "float32":
        return torch.float32
    if name == "bfloat16":
        return torch.bfloat16
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    tasks: tuple[Task, ...],
    device: torch.device,
    precision: torch.dtype,
) -> NDArray[np.float64]:
    """Predictions for every row, in the order of the batches.

    The model is put into evaluation mode and back into its former mode.

    Returns:
        (N, T) float64: probabilities of binary tasks, values of regression tasks.
    """
    parts = []
    with evaluation_mode(model):
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16, precision == torch.bfloat16):
                logits = model(batch.to(device)).logits
            parts.append(probabilities_of(logits, tasks).cpu().numpy())
    return np.concatenate(parts) if parts else np.empty((0, len(tasks)))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model as it is at inference, and afterwards in its former mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def load_run_config(run: Path) -> RunConfig:
    """The config of a run.

    Raises:
        ArtifactError: The folder is no run.
        ConfigError: The config is damaged.
    """
    if not (run / "config.toml").exists():
        raise ArtifactError(
            f"{run}: must be a run folder with config.toml, got none. Name another folder."
        )
    return read_run_config(run / "config.toml")


def load_run_spec(run: Path) -> InputSpec:
    """The inputs that a run's model was built for.

    Raises:
        ArtifactError: The run's ``inputs/`` are not sealed, or damaged.
    """
    verified_inputs(run)
    return config.from_table(InputSpec, artifacts.read_json(run / "inputs" / "spec.json"))


def load_model(run: Path, *, device: torch.device) -> tuple[nn.Module, InputSpec]:
    """The model of a finished run with the weights that it chose.

    Raises:
        ArtifactError: The run is unfinished, or its weights or inputs are damaged.
    """
    model = load_trained(run)
    return model.module.to(device), model.spec


def load_trained(run: Path) -> TrainedModel:
    """The model of a finished run, on the CPU, with what it was built from.

    Raises:
        ArtifactError: The run is unfinished, or its weights or inputs are damaged.
    """
    spec, settings = load_run_spec(run), load_run_config(run)
    module = catalog.entry(settings.model_name).model(settings.model, spec)
    load_best_weights(run, module)
    training = {name: part for name, part in settings.to_table().items() if name != "model"}
    return TrainedModel(
        name=settings.model_name,
        config=settings.model,
        spec=spec,
        module=module,
        training=training,
        trained_until=artifacts.read_json(run / "run.json")["dataset"].get("trained_until"),
    )


def save_best_weights(run: Path, model: nn.Module, *, step: int) -> None:
    """Keep the weights of a step as the ones that the run chooses.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    best = run / "checkpoints" / BEST_WEIGHTS
    save_weights(best / WEIGHTS_FILE, model)
    artifacts.write_manifest(
        best, kind="weights", version=1, files=[best / WEIGHTS_FILE], payload={"step": step}
    )


def load_best_weights(run: Path, model: nn.Module) -> None:
    """Put the weights that a run chose into its model.

    Raises:
        ArtifactError: There are none, or they are damaged.
    """
    best = run / "checkpoints" / BEST_WEIGHTS
    artifacts.read_manifest(best, kind="weights", version=1, verify=True)
    load_weights(best / WEIGHTS_FILE, model)
