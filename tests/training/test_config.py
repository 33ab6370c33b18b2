"""A run's configuration: complete, strict, and round as a trip."""

import pytest

from tamis.errors import ConfigError
from tamis.training.config import run_config_from_table


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
        ({"model": {"name": "dehn"}}, r"got 'dehn'. Did you mean 'dhen'\?"),
        ({"model": {"name": "lr"}, "trainning": {}}, r"trainning: .* Did you mean 'training'\?"),
        (
            {"model": {"name": "dcn_v2", "droput": 0.1}},
            r"model.droput: must be a known key, got 'droput'. Did you mean 'dropout'\?",
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
    ],
)
def test_wrong_setting_says_where_and_what(table: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config_from_table(table)
