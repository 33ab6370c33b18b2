"""The lazy moving average against one that averages every weight at every step."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tamis.data.schema import CategoricalInput, InputSpec, Table, Task
from tamis.nn.embedding import EmbeddingTables
from tamis.nn.frequency import StreamingFrequency
from tamis.nn.residual_index import IndexLearning, ResidualIndex
from tamis.training.averaging import WeightAverage
from tamis.training.optimizers import RowAdam, RowwiseAdagrad

_SPEC = InputSpec(
    tables=(Table(name="user", num_rows=7),),
    categorical=(CategoricalInput(name="user", table="user"),),
    numeric=(),
    sequences=(),
    tasks=(Task(name="click"),),
)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = EmbeddingTables(_SPEC, 3, init_std=1.0)
        self.norm = nn.BatchNorm1d(3)
        self.out = nn.Linear(3, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.norm(self.tables.lookup(ids)[:, 0]))


def _values(model: nn.Module) -> dict[str, Tensor]:
    floats = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    return {name: value.detach().clone() for name, value in floats.items()}


@pytest.mark.parametrize("kind", [RowwiseAdagrad, RowAdam])
@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_average_is_that_of_every_weight_at_every_step(kind: type, decay: float) -> None:
    torch.manual_seed(0)
    model = _Model()
    optimizers = [
        kind([model.tables.weight], lr=0.1),
        torch.optim.AdamW([*model.norm.parameters(), *model.out.parameters()], lr=0.1),
    ]
    average = WeightAverage(model, decay=decay, total_steps=40)
    expected = _values(model)

    for step in range(1, 41):
        # Row 6 never comes; row 5 comes once in ten steps.
        ids = torch.randint(0, 5 + (step % 10 == 0), (8, 1))
        model.zero_grad(set_to_none=True)
        model(ids).square().sum().backward()
        average.before_update(step - 1)
        for optimizer in optimizers:
            optimizer.step()
        weights = _values(model)
        rate = min(decay, (1 + step) / (10 + step))
        for name, value in weights.items():
            expected[name] = rate * expected[name] + (1 - rate) * value
        if step % 7 == 0:  # an evaluation in between changes nothing
            with average.swapped_in(step):
                found = _values(model)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
                assert not torch.equal(found[name], weights[name])
            assert all(torch.equal(value, weights[k]) for k, value in _values(model).items())


def test_statistics_of_batch_norm_are_averaged() -> None:
    model = _Model()
    average = WeightAverage(model, decay=0.5, total_steps=2)
    model.norm.running_mean.fill_(4.0)  # as the forward pass of the first step does
    average.before_update(0)

    with average.swapped_in(1):
        # The first decay is 2 / 11: 2 / 11 of 0 and 9 / 11 of 4.
        assert model.norm.running_mean.tolist() == pytest.approx([36 / 11] * 3)

    assert model.norm.running_mean.tolist() == [4.0] * 3


def test_weights_come_back_when_an_evaluation_fails() -> None:
    model = _Model()
    average = WeightAverage(model, decay=0.5, total_steps=2)
    with torch.no_grad():
        model.out.weight.fill_(1.0)

    with pytest.raises(KeyboardInterrupt), average.swapped_in(1):
        raise KeyboardInterrupt

    assert model.out.weight.tolist() == [[1.0] * 3]


def test_average_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    model = _Model()
    one = WeightAverage(model, decay=0.9, total_steps=9)
    with torch.no_grad():
        model.tables.weight.add_(1.0)
    with one.swapped_in(3):
        pass
    other = WeightAverage(model, decay=0.9, total_steps=9)

    other.load_state({name: value.clone() for name, value in one.state().items()})

    with one.swapped_in(5):
        expected = _values(model)
    with other.swapped_in(5):
        assert all(torch.equal(value, expected[k]) for k, value in _values(model).items())


@pytest.mark.parametrize("learning", ["lti", "em"])
def test_index_is_not_averaged_across_the_clusterings_that_set_it_anew(
    learning: IndexLearning,
) -> None:
    index = ResidualIndex(
        (3,), 4, learning=learning, start_steps=2, cluster_steps=1, cluster_rows=20
    ).train()
    average = WeightAverage(index, decay=0.9, total_steps=3)
    for step in range(3):
        average.before_update(step)
        index.advance(torch.randn(20, 4, generator=torch.Generator().manual_seed(step)))
    before = {name: value.clone() for name, value in index.state_dict().items()}

    with average.swapped_in(3):
        assert all(torch.equal(value, before[name]) for name, value in index.state_dict().items())


def test_vectors_that_are_given_are_not_averaged() -> None:
    spec = replace(_SPEC, tables=(replace(_SPEC.tables[0], vectors=4),))
    average = WeightAverage(EmbeddingTables(spec, 3), decay=0.5, total_steps=2)

    names = [name for name in average.state() if name.startswith("average.")]
    assert names == ["average.given.0.project.weight", "average.weight"]


def test_counts_of_items_are_not_averaged() -> None:
    frequency = StreamingFrequency(5)
    average = WeightAverage(frequency, decay=0.9, total_steps=3)
    for step in range(3):
        average.before_update(step)
        frequency.observe(torch.tensor([0, 1, 1, 2]))
    before = {name: value.clone() for name, value in frequency.state_dict().items()}

    with average.swapped_in(3):
        for name, value in frequency.state_dict().items():
            assert torch.equal(value, before[name])
