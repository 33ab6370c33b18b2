"""Checkpoints: what was saved comes back to the bit, and nothing else does."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tamis.data.schema import InputSpec
from tamis.errors import ArtifactError
from tamis.models import catalog
from tamis.training.checkpoint import (
    Trainee,
    load_newest_checkpoint,
    newest_step,
    save_checkpoint,
)
from tamis.training.config import OptimizerConfig
from tamis.training.optimizers import build_optimizers
from tamis.training.schedules import Progress


@pytest.fixture
def make_trainee(spec: InputSpec) -> Callable[..., Trainee]:
    def make(seed: int, embedding: Any = "rowwise_adagrad") -> Trainee:
        entry = catalog.entry("deepfm")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = entry.model(entry.config(hidden_units=(8,)), spec)
        optimizers = build_optimizers(
            model, OptimizerConfig(embedding=embedding, embedding_l2=0.01)
        )
        return Trainee(model=model, optimizers=optimizers, progress=Progress())

    return make


def _work(trainee: Trainee, steps: int) -> None:
    """Move every parameter by gradients that torch's generator draws."""
    for _ in range(steps):
        for parameter in trainee.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for parameter in trainee.optimizers["tables"].param_groups[0]["params"]:
            rows = torch.randint(0, parameter.shape[0], (5,))
            parameter.grad = torch.sparse_coo_tensor(
                rows[None],
                torch.randn(5, parameter.shape[1]),
                parameter.shape,
                check_invariants=True,
            )
        for optimizer in trainee.optimizers.values():
            optimizer.step()
        trainee.progress.step += 1


def _weights(trainee: Trainee) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainee.model.state_dict().items()}


@pytest.mark.parametrize("embedding", ["rowwise_adagrad", "adagrad", "adam"])
def test_trainee_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
    make_trainee: Callable[..., Trainee], tmp_path: Path, embedding: str
) -> None:
    first = make_trainee(0, embedding)
    _work(first, 3)
    first.progress.best_value, first.progress.loss_sum = 0.1 + 0.2, 1 / 3
    save_checkpoint(tmp_path, first)
    _work(first, 2)
    torch.manual_seed(99)
    second = make_trainee(1, embedding)

    checkpoint, damaged = load_newest_checkpoint(tmp_path, second)
    _work(second, 2)

    assert checkpoint == tmp_path / "step-0000000003"
    assert damaged == []
    # 0.1 + 0.2 and 1 / 3 have no short decimal form: JSON must give all their digits back.
    assert second.progress == first.progress
    expected = _weights(first)
    for name, value in _weights(second).items():
        assert torch.equal(value, expected[name]), name


def test_only_the_two_newest_checkpoints_are_kept(
    make_trainee: Callable[..., Trainee], tmp_path: Path
) -> None:
    trainee = make_trainee(0)
    for _ in range(4):
        _work(trainee, 1)
        save_checkpoint(tmp_path, trainee)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-0000000003",
        "step-0000000004",
    ]


def test_name_of_a_checkpoint_is_on_the_disk_before_an_earlier_one_is_removed(
    make_trainee: Callable[..., Trainee],
    tmp_path: Path,
    synced: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainee = make_trainee(0)
    before: list[bool] = []
    remove = shutil.rmtree

    def record(path: Path, **options: bool) -> None:
        if path.name == "step-0000000001":
            before.append(tmp_path.stat().st_ino in synced)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", record)
    for _ in range(3):
        _work(trainee, 1)
        synced.clear()
        save_checkpoint(tmp_path, trainee)

    assert before == [False, True]  # nothing to remove before the first, and after the third


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "altered", "removed"])
def test_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    make_trainee: Callable[..., Trainee], tmp_path: Path, name: str, damage: str
) -> None:
    trainee = make_trainee(0)
    _work(trainee, 1)
    save_checkpoint(tmp_path, trainee)
    expected = _weights(trainee)
    _work(trainee, 1)
    path = save_checkpoint(tmp_path, trainee) / name
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content[:-2] + b"!" + content[-1:])
    other = make_trainee(1)

    checkpoint, damaged = load_newest_checkpoint(tmp_path, other)

    assert checkpoint == tmp_path / "step-0000000001"
    assert len(damaged) == 1
    assert name in damaged[0]
    assert other.progress.step == 1
    assert all(torch.equal(value, expected[key]) for key, value in _weights(other).items())


def test_damaged_checkpoint_of_a_later_step_takes_no_place_of_a_whole_one(
    make_trainee: Callable[..., Trainee], tmp_path: Path
) -> None:
    trainee = make_trainee(0)
    _work(trainee, 4)
    save_checkpoint(tmp_path, trainee)
    _work(trainee, 4)
    (save_checkpoint(tmp_path, trainee) / "state.json").unlink()
    checkpoint, _ = load_newest_checkpoint(tmp_path, trainee)
    assert checkpoint == tmp_path / "step-0000000004"

    kept = []
    for _ in range(2):
        _work(trainee, 1)
        save_checkpoint(tmp_path, trainee)
        kept.append((newest_step(tmp_path), sorted(path.name for path in tmp_path.iterdir())))

    assert kept == [
        (5, ["step-0000000004", "step-0000000005"]),
        (6, ["step-0000000005", "step-0000000006"]),
    ]


def test_unsealed_checkpoint_does_not_count(
    make_trainee: Callable[..., Trainee], tmp_path: Path
) -> None:
    trainee = make_trainee(0)
    (save_checkpoint(tmp_path, trainee) / "manifest.json").unlink()

    with pytest.raises(ArtifactError, match="must hold a whole checkpoint, got 1 damaged"):
        load_newest_checkpoint(tmp_path, trainee)


def test_folder_without_checkpoints_leaves_the_trainee_alone(
    make_trainee: Callable[..., Trainee], tmp_path: Path
) -> None:
    trainee = make_trainee(0)
    before = _weights(trainee)

    assert load_newest_checkpoint(tmp_path / "none", trainee) == (None, [])
    assert all(torch.equal(value, before[key]) for key, value in _weights(trainee).items())


def test_full_disk_leaves_the_checkpoint_before_it(
    make_trainee: Callable[..., Trainee], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainee = make_trainee(0)
    save_checkpoint(tmp_path, trainee)
    _work(trainee, 1)

    def fail(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", fail)
        with pytest.raises(
            ArtifactError, match=r"No space left.*what stood there before is unharmed"
        ):
            save_checkpoint(tmp_path, trainee)

    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000000"]
    assert load_newest_checkpoint(tmp_path, make_trainee(1))[1] == []


def test_counts_of_steps_stay_integers(
    make_trainee: Callable[..., Trainee], tmp_path: Path
) -> None:
    saved, loaded = make_trainee(0), make_trainee(1)
    _work(saved, 3)
    save_checkpoint(tmp_path, saved)

    load_newest_checkpoint(tmp_path, loaded)

    # A float32 could not count beyond 2**24 steps.
    for values in loaded.optimizers["tables"].state.values():
        assert values["decayed_at"].dtype == torch.int32
        assert values["decays"].dtype == torch.int64
        assert int(values["decays"]) == 3
