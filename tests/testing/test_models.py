"""The conformance suite finds what it is there to find."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tamis.data.batch import Batch, Jagged
from tamis.data.schema import InputSpec
from tamis.models.output import Output
from tamis.nn.embedding import EmbeddingTables, FieldTokens, FirstOrder
from tamis.nn.length_groups import LengthGroups
from tamis.nn.side_tokens import SideTokens
from tamis.testing.models import (
    check_bfloat16,
    check_empty_histories,
    check_gradients,
    check_labels_and_weights,
    check_memorises,
    check_model,
    check_padding,
    check_rows_are_independent,
    check_shape,
    check_sparse_gradients,
    example_spec,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config:
    pass


def _model(logits_of: Callable[[nn.Module, Batch], torch.Tensor]) -> type[nn.Module]:
    class Model(nn.Module):
        def __init__(self, config: _Config, spec: InputSpec) -> None:
            super().__init__()
            self.linear = FirstOrder(spec)

        def forward(self, batch: Batch) -> Output:
            return Output(logits=logits_of(self, batch))

    return Model


def test_suite_accepts_a_sound_model() -> None:
    check_model(_Config, _model(lambda model, batch: model.linear(batch)))


def test_suite_lets_a_model_leave_out_a_side_that_it_says_it_does_not_read() -> None:
    class Model(nn.Module):
        def __init__(self, config: _Config, spec: InputSpec) -> None:
            super().__init__()
            self.tokens = SideTokens(spec, 4)
            self.heads = nn.ModuleList(nn.Linear(4, len(spec.tasks)) for _ in range(2))

        def forward(self, batch: Batch) -> Output:
            sides = [self.tokens(batch, side).sum(1) for side in ("user", "item")]
            logits = [head(x) for head, x in zip(self.heads, sides, strict=True)]
            return Output(logits=logits[0] + logits[1])

    check_model(_Config, Model, sides=("user", "item"))
    with pytest.raises(AssertionError, match="rows of the batch and no others"):
        check_model(_Config, Model)


def test_suite_refuses_a_model_whose_rows_depend_on_the_batch() -> None:
    broken = _model(lambda model, batch: model.linear(batch) + batch.numeric.mean())

    with pytest.raises(AssertionError, match="must not depend on the rows beside it") as raised:
        check_model(_Config, broken)
    assert "Inputs: 2 numeric and 3 categorical fields, 1 histories, 1 tasks." in (
        raised.value.__notes__
    )


def test_suite_sees_through_a_last_layer_that_starts_from_zeros() -> None:
    class Model(nn.Module):
        def __init__(self, config: _Config, spec: InputSpec) -> None:
            super().__init__()
            self.linear = FirstOrder(spec)
            self.head = nn.Linear(len(spec.tasks), len(spec.tasks))
            nn.init.zeros_(self.head.weight)

        def forward(self, batch: Batch) -> Output:
            x = self.linear(batch)
            return Output(logits=self.head(x + x.mean()))

    with pytest.raises(AssertionError, match="must not depend on the rows beside it"):
        check_model(_Config, Model)


def test_suite_tells_noise_from_rows_that_are_mixed() -> None:
    broken = _model(lambda model, batch: model.linear(batch) + torch.rand(()))

    with pytest.raises(AssertionError, match="does forward draw numbers"):
        check_model(_Config, broken)


def test_suite_refuses_probabilities() -> None:
    broken = _model(lambda model, batch: model.linear(batch).sigmoid())

    with pytest.raises(AssertionError, match="logits must not all lie in"):
        check_model(_Config, broken)


def test_suite_says_on_which_inputs_a_model_fails_otherwise() -> None:
    broken = _model(lambda model, batch: model.linear(batch) + batch.numeric.amax(1, keepdim=True))

    with pytest.raises(IndexError) as raised:
        check_model(_Config, broken)
    assert raised.value.__notes__ == [
        "Inputs: 0 numeric and 3 categorical fields, 1 histories, 1 tasks."
    ]


def test_suite_refuses_a_model_of_the_wrong_shape() -> None:
    broken = _model(lambda model, batch: model.linear(batch)[:, 0])

    with pytest.raises(AssertionError, match="logits must be"):
        check_model(_Config, broken)


def test_suite_refuses_a_forward_that_writes_on_self() -> None:
    def remember(model: nn.Module, batch: Batch) -> torch.Tensor:
        model.last = batch
        return model.linear(batch)

    with pytest.raises(AssertionError, match="must not write on self"):
        check_model(_Config, _model(remember))


def test_suite_refuses_a_parameter_without_gradient() -> None:
    broken = _model(lambda model, batch: model.linear(batch).detach() + model.linear.bias)

    with pytest.raises(AssertionError, match="must get a gradient"):
        check_model(_Config, broken)


def test_suite_checks_the_settings_that_it_is_given() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        is_sound: bool = True

    class Model(nn.Module):
        def __init__(self, config: Config, spec: InputSpec) -> None:
            super().__init__()
            self.linear = FirstOrder(spec)
            self.is_sound = config.is_sound

        def forward(self, batch: Batch) -> Output:
            logits = self.linear(batch)
            return Output(logits=logits if self.is_sound else logits.detach())

    check_model(Config, Model)
    with pytest.raises(AssertionError, match="must carry gradients"):
        check_model(Config, Model, Config(is_sound=False))


def _builder(logits_of: Callable[[nn.Module, Batch], torch.Tensor]) -> Callable:
    """Builds a model of tokens and a linear part, for checks that run one by one."""

    class Model(nn.Module):
        def __init__(self, spec: InputSpec) -> None:
            super().__init__()
            self.linear = FirstOrder(spec)
            self.tokens = FieldTokens(spec, 2)

        def forward(self, batch: Batch) -> Output:
            return Output(logits=logits_of(self, batch))

    return Model


def _sound(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model.linear(batch) + model.tokens(batch).square().sum((1, 2)).unsqueeze(1)


def _root_of_0(parameter: torch.Tensor) -> torch.Tensor:
    """0, whose backward pass multiplies 0 by infinity."""
    return (0 * parameter).sqrt().sum()


def _not_a_number_in_a_dense_gradient(model: nn.Module, batch: Batch) -> torch.Tensor:
    return _sound(model, batch) + _root_of_0(model.tokens.numeric_bias)


def _not_a_number_in_a_sparse_gradient(model: nn.Module, batch: Batch) -> torch.Tensor:
    return _sound(model, batch) + _root_of_0(model.tokens.tables.lookup(batch.ids))


def _infinity_in_a_dense_gradient(model: nn.Module, batch: Batch) -> torch.Tensor:
    # The derivative of the root of x - x.detach() is infinite, and nothing multiplies it by 0.
    bias = model.tokens.numeric_bias
    return _sound(model, batch) + (bias - bias.detach()).sqrt().sum()


@pytest.mark.parametrize(
    "check", [check_shape, check_gradients, check_empty_histories, check_bfloat16]
)
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_not_a_number_in_a_dense_gradient, "tokens.numeric_bias: gradient must be finite"),
        (_not_a_number_in_a_sparse_gradient, "tokens.tables.weight: gradient must be finite"),
        (_infinity_in_a_dense_gradient, "tokens.numeric_bias: gradient must be finite"),
        (lambda model, batch: _sound(model, batch) / 0, "logits must be finite|finite logits"),
        (
            lambda model, batch: _sound(model, batch) * torch.nan,
            "logits must be finite|finite logits",
        ),
    ],
)
def test_suite_refuses_what_is_not_finite(check: Callable, broken: Callable, message: str) -> None:
    spec = example_spec(num_tasks=2)

    check(_builder(_sound), spec)
    with pytest.raises(AssertionError, match=message):
        check(_builder(broken), spec)


def test_suite_refuses_a_gradient_that_is_not_finite_without_events() -> None:
    def norm_of_histories(model: nn.Module, batch: Batch) -> torch.Tensor:
        pooled = model.tokens.tables.pool("history", batch.sequences["history"])
        weighed = pooled * model.tokens.numeric_weight
        return _sound(model, batch) + weighed.square().sum().sqrt()

    build = _builder(norm_of_histories)
    spec = example_spec(num_tasks=2)

    # The root of a sum of squares has a gradient unless all of them are 0.
    check_shape(build, spec)
    check_gradients(build, spec)
    with pytest.raises(AssertionError, match="must be finite with at most 0 events per history"):
        check_empty_histories(build, spec)


class _ShiftedTables(EmbeddingTables):
    """Reads the row beside the one that it is asked for: as many rows, but others."""

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        return super().lookup((ids + 1) % 50)


class _LazyTables(EmbeddingTables):
    """Reads the first row of the batch for every row."""

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        return super().lookup(ids[:1].expand_as(ids))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (_ShiftedTables, r"rows \[\d+.*\] are not of the batch, \[\d+.*\] are missing"),
        (_LazyTables, r"rows \[\] are not of the batch, \[\d+.*\] are missing"),
    ],
)
def test_suite_refuses_gradients_of_other_rows(tables: type, message: str) -> None:
    def build(spec: InputSpec) -> nn.Module:
        model = _builder(_sound)(spec)
        model.tokens.tables = tables(spec, 2)
        return model

    spec = example_spec(num_tasks=2)

    check_sparse_gradients(_builder(_sound), spec)
    with pytest.raises(AssertionError, match=f"tokens.tables.weight: .*{message}"):
        check_sparse_gradients(build, spec)


def test_suite_refuses_dense_gradients_of_tables() -> None:
    def read_everything(model: nn.Module, batch: Batch) -> torch.Tensor:
        return model.linear(batch) + model.tokens.tables.weight.sum()

    with pytest.raises(AssertionError, match=r"tokens.tables.weight must get a sparse gradient"):
        check_sparse_gradients(_builder(read_everything), example_spec(num_tasks=2))


def test_suite_finds_what_a_models_own_start_keeps_from_learning() -> None:
    class Model(nn.Module):
        """Noise would move both factors away from 0; a step moves neither."""

        def __init__(self, config: _Config, spec: InputSpec) -> None:
            super().__init__()
            self.linear = FirstOrder(spec)
            self.scale, self.shift = (nn.Parameter(torch.zeros(1)) for _ in range(2))

        def forward(self, batch: Batch) -> Output:
            return Output(logits=self.linear(batch) + self.scale * self.shift)

    def build(spec: InputSpec) -> nn.Module:
        return Model(_Config(), spec)

    with pytest.raises(AssertionError, match=r"scale must get a gradient .* after a step"):
        check_gradients(build, example_spec())


def _sum_of_padded(model: nn.Module, batch: Batch, *, masked: bool) -> torch.Tensor:
    history = batch.sequences["history"]
    groups = LengthGroups(history.offsets, history.values.shape[0])
    padded = groups.pad(model.tokens.tables.lookup_events("history", history)[:, 0])
    factors = [valid.float() if masked else torch.ones(valid.shape) for valid in groups.valid]
    sums = [
        (part * factor.unsqueeze(2)).sum((1, 2))
        for part, factor in zip(padded, factors, strict=True)
    ]
    return _sound(model, batch) + groups.join(sums).unsqueeze(1)


def test_suite_refuses_a_model_that_reads_padding() -> None:
    def build(masked: bool) -> Callable:
        return _builder(lambda model, batch: _sum_of_padded(model, batch, masked=masked))

    spec = example_spec(num_tasks=2)
    # Zeros add nothing to a sum, so that nothing else tells the two apart.
    for masked in (True, False):
        check_rows_are_independent(build(masked), spec)

    check_padding(build(masked=True), spec)
    with pytest.raises(AssertionError, match="what stands in padding must change nothing"):
        check_padding(build(masked=False), spec)


class _FirstGroupTables(EmbeddingTables):
    """Learns from the first sequence group alone."""

    def pool(self, name: str, history: Jagged) -> torch.Tensor:
        pooled = super().pool(name, history)
        return pooled if name == "history" else pooled.detach()


def test_suite_refuses_a_model_that_learns_nothing_from_the_second_sequence_group() -> None:
    def build(spec: InputSpec) -> nn.Module:
        model = _builder(_sound)(spec)
        model.tokens.tables = _FirstGroupTables(spec, 2)
        return model

    check_sparse_gradients(build, example_spec(num_tasks=2))
    with pytest.raises(
        AssertionError, match=r"rows \[\] are not of the batch, \[\d+.*\] are missing"
    ):
        check_sparse_gradients(build, example_spec(num_tasks=2, sequences=2))


def _with_loss(loss_of: Callable[[torch.Tensor, Batch], torch.Tensor]) -> Callable:
    """Builds a model with an auxiliary loss, which is made of its logits (B, T) and the batch."""

    class Model(nn.Module):
        def __init__(self, spec: InputSpec) -> None:
            super().__init__()
            self.linear = FirstOrder(spec)

        def forward(self, batch: Batch) -> Output:
            logits = self.linear(batch)
            return Output(logits=logits, auxiliary_losses={"own": loss_of(logits, batch)})

    return Model


def _known_and_weighted(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    weights = batch.weights.unsqueeze(1) * ~batch.labels.isnan()
    return ((logits - batch.labels.nan_to_num()).square() * weights).mean()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda logits, batch: (logits - batch.labels).square().mean(),
            "the loss must be finite with labels that are missing",
        ),
        (
            # 0 / 0 where there is no label; else a mean over those that there are.
            lambda logits, batch: logits[~batch.labels.isnan()].square().mean(),
            "the loss must be finite with no label at all",
        ),
        (
            lambda logits, batch: (
                _known_and_weighted(logits, batch) + logits.sum() * 0 / batch.weights.sum()
            ),
            "the loss must be finite with rows of weight 0 alone",
        ),
        (
            lambda logits, batch: (logits - batch.labels.nan_to_num()).square().mean(),
            "labels of rows of weight 0 must not move its gradient",
        ),
    ],
)
def test_suite_refuses_losses_that_learn_what_nobody_observed(loss: Callable, message: str) -> None:
    spec = example_spec(num_tasks=2)

    check_labels_and_weights(_with_loss(_known_and_weighted), spec)
    with pytest.raises(AssertionError, match=message):
        check_labels_and_weights(_with_loss(loss), spec)


@pytest.mark.parametrize(
    "read", [lambda batch: batch.labels.nan_to_num(), lambda batch: batch.weights.unsqueeze(1)]
)
def test_suite_refuses_logits_that_know_labels_or_weights(read: Callable) -> None:
    spec = example_spec(num_tasks=2)

    with pytest.raises(AssertionError, match="must depend neither on labels nor on weights"):
        check_labels_and_weights(
            _builder(lambda model, batch: _sound(model, batch) + read(batch)), spec
        )


def test_suite_refuses_a_model_that_cannot_learn_rows_by_heart() -> None:
    spec = example_spec()

    check_memorises(_builder(_sound), spec)
    # Each parameter learns, but from logits up to 1 no row gets a loss below log(1 + 1 / e) = 0.31.
    bounded = _builder(lambda model, batch: _sound(model, batch).tanh())
    check_gradients(bounded, spec)
    with pytest.raises(AssertionError, match=r"64 rows must be learnt .* a log loss of 0\.3[1-9]"):
        check_memorises(bounded, spec)


def test_suite_learns_rows_with_the_step_sizes_that_it_is_given() -> None:
    linear = _model(lambda model, batch: model.linear(batch))
    spec = example_spec()

    def check(embedding_lr: float) -> None:
        check_memorises(lambda spec: linear(_Config(), spec), spec, embedding_lr=embedding_lr)

    check(0.2)
    with pytest.raises(AssertionError, match=r"embedding_lr=0\.02 and dense_lr=0\.003 not suit"):
        check(0.02)
