"""Tensors on disk as safetensors, and the weights of a model among them; nothing is unpickled."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tamis import artifacts
from tamis.errors import ArtifactError, StorageError


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's parameters and buffers as safetensors, atomically.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    save_tensors(path, {name: value.detach() for name, value in model.state_dict().items()})


def load_weights(path: Path, model: nn.Module) -> None:
    """Read weights into a model of the same config.

    Raises:
        ArtifactError: The file is damaged or belongs to another model.
    """
    tensors = load_tensors(path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path}: must fit the model of its config, got {error}. Train it anew, or read it "
            f"with the version of tamis that trained it."
        ) from error


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers by name, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name, atomically.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    plain = {name: tensor.to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        with artifacts.atomic_path(path) as temporary:
            safetensors.torch.save_file(plain, temporary)
    except SafetensorError as error:  # safetensors has its own word for a full disk
        raise StorageError(
            f"{path}: must be writable, got {error}. Free space; what stood there before is "
            f"unharmed."
        ) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: must be whole safetensors, got {error}.") from error
