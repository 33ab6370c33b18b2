"""Multi-embedding DCN-V2 against its equations, written as loops."""

import numpy as np
import pytest
import torch

from tamis.errors import ConfigError
from tamis.models.dcn_v2 import DCNv2, DCNv2Config
from tamis.models.multi_embedding import MultiEmbedding, MultiEmbeddingConfig

_SMALL: dict = {"embedding_dim": 3, "num_cross_layers": 2}


@pytest.mark.parametrize("num_tables", [1, 3])
@pytest.mark.parametrize("units", [(12,), (12, 10)])
def test_logits_equal_the_equations(reference, units: tuple[int, ...], num_tables: int) -> None:
    config = MultiEmbeddingConfig(num_tables=num_tables, hidden_units=units, **_SMALL)
    model = reference.build(MultiEmbedding, config)

    def logits(row: int) -> np.ndarray:
        hidden = []
        for inputs, cross, first in zip(model.inputs, model.crosses, model.firsts, strict=True):
            tokens = reference.embeddings(inputs.tables, row)
            x0 = np.concatenate([*tokens, reference.numbers(row)])
            x = x0
            for layer in cross.layers:
                x = x0 * reference.linear(layer, x) + x
            hidden.append(reference.mlp(first, x, num_hidden=1))
        assert len(hidden) == num_tables
        return reference.mlp(model.top, np.mean(hidden, axis=0), num_hidden=len(units) - 1)

    reference.check(model, logits)


def test_with_one_table_it_is_a_stacked_dcn_v2(reference) -> None:
    config = MultiEmbeddingConfig(num_tables=1, hidden_units=(12, 10), **_SMALL)
    model = reference.build(MultiEmbedding, config)
    settings = DCNv2Config(structure="stacked", hidden_units=(12, 10), **_SMALL)
    plain = reference.build(DCNv2, settings)
    with torch.no_grad():
        pairs = [
            (model.inputs[0], plain.inputs),
            (model.crosses[0], plain.cross),
            (model.firsts[0].layers[0], plain.deep.layers[0]),
            (model.top.layers[0], plain.deep.layers[2]),
            (model.top.layers[2], plain.head),
        ]
        for mine, other in pairs:
            other.load_state_dict(mine.state_dict())

        found, expected = model(reference.batch).logits, plain(reference.batch).logits

    torch.testing.assert_close(found, expected)


def test_tables_start_apart_and_are_as_many_as_told(reference) -> None:
    model = MultiEmbedding(MultiEmbeddingConfig(num_tables=3, **_SMALL), reference.spec)

    tables = [inputs.tables.weight for inputs in model.inputs]

    assert len(tables) == 3
    assert not torch.equal(tables[0], tables[1])


def test_a_hidden_layer_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"model.hidden_units: must hold a layer, got none"):
        MultiEmbeddingConfig(hidden_units=())
