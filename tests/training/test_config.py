"""A run's configuration: complete, strict, and round as a trip."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tamis.data.dataset import Dataset
from tamis.errors import ConfigError
from tamis.training.config import read_run_config, run_config_from_table
from tamis.training.loop import train


def test_config_survives_a_round_trip() -> None:
    config = run_config_from_table(
        {
            "model": {"name": "dhen", "layers": [["dot"], ["linear", "linear"]]},
            "training": {"seed": 3},
        }
    )

    again = run_config_from_table(config.to_table())

    assert again == config
    assert again.model.layers == (("dot",), ("linear", "linear"))
    assert again.to_table()["optimizer"]["embedding"] == "rowwise_adagrad"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, r"model.name: must be a model of the catalog, got None"),
        ({"model": {"name": "dhenn"}}, r"got 'dhenn'. Did you mean 'dhen'\?"),
        ({"model": {"name": "lr"}, "trainning": {}}, r"trainning: .* Did you mean 'training'\?"),
        (
            {"model": {"name": "dcn_v2", "droput": 0.1}},
            r"model.droput: must be a known key, got 'droput'. Did you mean 'dropout'\?",
        ),
        ({"modl": {"name": "lr"}}, r"modl: must be a known key, .* Did you mean 'model'\?"),
        (
            {"model": {"name": "lr"}, "max_epochs": 1},
            r"max_epochs: must be a known key, .* Did you mean 'training.max_epochs'\?",
        ),
        (
            {"model": {"name": "dcn_v2", "dense_lr": 0.1}},
            r"model.dense_lr: must be a known key, .* Did you mean 'optimizer.dense_lr'\?",
        ),
        (
            {"model": {"name": "dcn_v2"}, "training": {"dropout": 0.1}},
            r"training.dropout: must be a known key, .* Did you mean 'model.dropout'\?",
        ),
        (
            {"model": {"name": "lr"}, "training": {"batch_size": "big"}},
            r"training.batch_size: must be of type int, got 'big'",
        ),
        (
            {"model": {"name": "lr"}, "optimizer": {"embedding": "adamw"}},
            r"optimizer.embedding: must be one of .*Did you mean 'adam'\?",
        ),
        (
            {"model": {"name": "lr"}, "optimizer": {"dense_lr": 0.0}},
            r"dense_lr: must be positive, got 0.0",
        ),
        ({"model": "lr"}, r"model: must be a table, got 'lr'. Write it as \[model\]"),
        ({"model": {"name": 3}}, r"model.name: must be a model of the catalog, got 3. Use one of"),
        (
            {"model": {"name": "lr", "width": 3}},
            r"model.width: must be a known key, got 'width'. model takes no keys; remove it",
        ),
        (
            {"model": {"name": "lr"}, "training": {"seed": -1}},
            r"training: seed: must be in \[0, 2\*\*63\), got -1",
        ),
        (
            {"model": {"name": "lr"}, "training": {"seed": 2**63}},
            r"training: seed: must be in \[0, 2\*\*63\), got 9223372036854775808",
        ),
        *(
            (
                {"model": {"name": "lr"}, "training": {"task_weights": weights}},
                r"training: task_weights: must be finite, at least 0 and not all 0, got \[",
            )
            for weights in ([1.0, -1.0], [float("nan"), 1.0], [float("inf")], [0.0, 0.0])
        ),
    ],
)
def test_wrong_setting_says_where_and_what(table: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config_from_table(table)


def test_wrong_setting_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('[model]\nname = "lr"\n[training]\npatiense = 1\n')

    with pytest.raises(ConfigError, match=r"s.toml: training.patiense: must be a known key"):
        read_run_config(path)


def test_largest_seed_trains(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    training = {"seed": 2**63 - 1, "max_epochs": 1, "batch_size": 100}
    settings = run_config_from_table({"model": {"name": "lr"}, "training": training})

    assert train(make_dataset(train=200), settings, tmp_path / "run").status == "finished"
    assert read_run_config(tmp_path / "run" / "config.toml") == settings
