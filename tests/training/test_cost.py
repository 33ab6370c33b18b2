"""Parameters and operations against counts worked out by hand."""

import pytest
import torch

from tamis.data.batch import Batch
from tamis.data.schema import CategoricalInput, InputSpec, Table, Task
from tamis.models import catalog
from tamis.training.cost import count_forward_flops, count_parameters

_SPEC = InputSpec(
    numeric=("price",),
    categorical=(
        CategoricalInput(name="city", table="city"),
        CategoricalInput(name="shop", table="shop"),
    ),
    sequences=(),
    tables=(Table(name="city", num_rows=30), Table(name="shop", num_rows=40)),
    tasks=(Task(name="click"),),
)
_BATCH = Batch(
    numeric=torch.ones(5, 1),
    ids=torch.ones(5, 2, dtype=torch.int32),
    labels=torch.zeros(5, 1),
    weights=torch.ones(5),
)


def _model(name: str, **settings: object) -> torch.nn.Module:
    entry = catalog.entry(name)
    return entry.model(entry.config(**settings), _SPEC)


def test_count_parameters_parts_tables_from_the_rest() -> None:
    # 70 table rows of width 1; one numeric weight and one bias.
    assert count_parameters(_model("lr")) == {"tables": 70, "dense": 2, "total": 72}


def test_flops_of_a_deep_and_cross_network() -> None:
    model = _model("dcn_v2", embedding_dim=4, num_cross_layers=2, hidden_units=(8, 6))
    # Flat input 2*4 + 1 = 9: two 9 x 9 crosses, 9 x 8, 8 x 6 and the output over 9 + 6.
    multiplications = 2 * 81 + 72 + 48 + 15

    assert count_forward_flops(model, _BATCH) == 2 * multiplications


def test_flops_hold_attention() -> None:
    def flops(**settings: object) -> float:
        return count_forward_flops(_model("dhen", embedding_dim=4, **settings), _BATCH)

    # Three tokens (two fields, the dense side): scores and mixing cost 3*3*4 products each;
    # projections 3*4*12 and 3*4*4, the feed-forward layer 3*4*16*2; the token map is in both.
    attention = flops(modules=("attention",), num_layers=1, attention_units=16)
    linear = flops(modules=("linear",), num_layers=1)
    assert attention - linear == 2 * (2 * 36 + 144 + 48 + 384)


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_model_as_it_was(training: bool) -> None:
    model = _model("dcn_v2", norm="batch").train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    count_forward_flops(model, _BATCH)

    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
