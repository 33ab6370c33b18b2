"""From a run folder back to the model, and from logits to probabilities."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tamis.data.dataset import Dataset
from tamis.data.loader import Loader
from tamis.errors import ArtifactError, ConfigError
from tamis.training.config import RunConfig, run_config_from_table
from tamis.training.loop import train
from tamis.training.predict import (
    choose_device,
    choose_precision,
    load_model,
    load_run_config,
    predict,
)

_CPU = torch.device("cpu")


def _settings() -> RunConfig:
    return run_config_from_table(
        {
            "model": {"name": "deepfm", "hidden_units": [8], "dropout": 0.5},
            "training": {"batch_size": 64, "max_epochs": 1, "precision": "float32"},
        }
    )


@pytest.fixture
def run(make_dataset: Callable[..., Dataset], tmp_path: Path) -> tuple[Dataset, Path]:
    dataset = make_dataset(train=300)
    train(dataset, _settings(), tmp_path / "run")
    return dataset, tmp_path / "run"


def test_loaded_model_predicts_what_the_run_wrote(run: tuple[Dataset, Path]) -> None:
    dataset, folder = run

    model, spec = load_model(folder, device=_CPU)
    loader = Loader(dataset.split("test"), spec, batch_size=7, shuffle=False)
    found = predict(model, loader.epoch(0), tasks=spec.tasks, device=_CPU, precision=torch.float32)

    with pa.memory_map(str(folder / "predictions" / "test.arrow")) as source:
        written = pa.ipc.open_file(source).read_all()
    assert found.dtype == np.float64
    # Batches of 7 rows and of 4,096 add up in another order: equal but for float32 rounding.
    for index, task in enumerate(spec.tasks):
        expected = written[f"prediction:{task.name}"].to_numpy()
        np.testing.assert_allclose(found[:, index], expected, rtol=1e-5)
    assert load_run_config(folder) == _settings()


def test_predicting_switches_dropout_off_and_back_on(run: tuple[Dataset, Path]) -> None:
    dataset, folder = run
    model, spec = load_model(folder, device=_CPU)
    model.train()
    split = dataset.split("test")

    first, second = (
        predict(
            model,
            Loader(split, spec, batch_size=50, shuffle=False).epoch(0),
            tasks=spec.tasks,
            device=_CPU,
            precision=torch.float32,
        )
        for _ in range(2)
    )

    assert np.array_equal(first, second)
    assert model.training


def test_no_batches_give_no_rows(run: tuple[Dataset, Path]) -> None:
    model, spec = load_model(run[1], device=_CPU)

    found = predict(model, [], tasks=spec.tasks, device=_CPU, precision=torch.float32)

    assert found.shape == (0, 2)


def test_unfinished_run_has_no_model(run: tuple[Dataset, Path]) -> None:
    (run[1] / "checkpoints" / "best" / "manifest.json").unlink()

    with pytest.raises(ArtifactError, match=r"must be finished weights with a manifest.json"):
        load_model(run[1], device=_CPU)


def test_altered_weights_are_refused(run: tuple[Dataset, Path]) -> None:
    path = run[1] / "checkpoints" / "best" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(ArtifactError, match="must have sha256"):
        load_model(run[1], device=_CPU)


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"must be a run folder with config.toml"):
        load_run_config(tmp_path)


@pytest.mark.parametrize("name", ["cuda", "gpu"])
def test_device_that_is_not_there_is_refused(name: str) -> None:
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")

    with pytest.raises(ConfigError, match=rf"training.device: must be .*got '{name}'"):
        choose_device(name)


def test_precision_on_a_cpu_is_float32_without_fast_bfloat16() -> None:
    is_fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()

    assert choose_precision("auto", _CPU) == (torch.bfloat16 if is_fast else torch.float32)
    assert choose_precision("bfloat16", _CPU) == torch.bfloat16
    assert choose_precision("float32", _CPU) == torch.float32


@pytest.mark.parametrize("name", ["schema.toml", "spec.json", "encoders/encoders.json"])
def test_altered_inputs_are_refused(run: tuple[Dataset, Path], name: str) -> None:
    path = run[1] / "inputs" / name
    path.write_bytes(path.read_bytes() + b" ")

    with pytest.raises(ArtifactError, match=rf"inputs/{name}: must hold \d+ bytes"):
        load_model(run[1], device=_CPU)


def test_inputs_that_are_not_sealed_are_refused(run: tuple[Dataset, Path]) -> None:
    (run[1] / "inputs" / "manifest.json").unlink()

    with pytest.raises(ArtifactError, match=r"inputs: must be sealed by .* Train anew, or give"):
        load_model(run[1], device=_CPU)


def test_damaged_config_of_a_run_is_named(run: tuple[Dataset, Path]) -> None:
    (run[1] / "config.toml").write_text('[model]\nname = "deepfm"\ndroput = 0.5\n')

    with pytest.raises(ConfigError, match=r"run/config.toml: model.droput: must be a known key"):
        load_run_config(run[1])
