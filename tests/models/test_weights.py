"""Weights on disk: the same bits, and refusals of what is damaged or another model's."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tamis.errors import ArtifactError
from tamis.models.weights import (
    load_tensors,
    load_weights,
    save_tensors,
    save_weights,
    weights_fingerprint,
)


def test_weights_are_the_same_bits(tmp_path: Path) -> None:
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    first(torch.randn(5, 3))
    save_weights(tmp_path / "w.safetensors", first)

    load_weights(tmp_path / "w.safetensors", second)

    assert first.state_dict().keys() == second.state_dict().keys()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert second.running_mean is not None
    assert second.running_mean.abs().min() > 0  # buffers too


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    save_tensors(tmp_path / "t.safetensors", {"turned": whole.T, "empty": whole[:0]})

    found = load_tensors(tmp_path / "t.safetensors")

    assert found["turned"].tolist() == whole.T.tolist()
    assert found["empty"].shape == (0, 4)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", nn.Linear(2, 3))

    with pytest.raises(ArtifactError, match=r"(?s)must fit the model .*size mismatch"):
        load_weights(tmp_path / "w.safetensors", nn.Linear(2, 4))


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"half")

    for name in ("w.safetensors", "none.safetensors"):
        with pytest.raises(ArtifactError, match=rf"{name}: must be whole safetensors"):
            load_tensors(tmp_path / name)


def test_fingerprint_tells_weights_apart() -> None:
    def model(last: float, dtype: torch.dtype = torch.float32) -> nn.Module:
        linear = nn.Linear(2, 1, bias=False).to(dtype)
        nn.init.constant_(linear.weight, 0.5)
        with torch.no_grad():
            linear.weight[0, 1] = last
        return linear

    assert weights_fingerprint(model(0.5)) == weights_fingerprint(model(0.5))
    others = (model(-0.5), model(0.5, torch.float64), nn.Sequential(model(0.5)))
    assert len({weights_fingerprint(other) for other in (model(0.5), *others)}) == 4
