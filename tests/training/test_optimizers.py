"""Row-wise optimizers against slow references, and what they leave alone."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models import catalog
from tamis.nn.embedding import EmbeddingTables
from tamis.testing.models import example_spec
from tamis.training.config import OptimizerConfig
from tamis.training.optimizers import (
    RowAdagrad,
    RowAdam,
    RowwiseAdagrad,
    build_optimizers,
    group_rows,
)


def _table(rows: int = 6, width: int = 3) -> nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(rows, width, generator=generator))


def _backward(table: nn.Parameter, ids: list[int], target: float) -> None:
    table.grad = None
    found = nn.functional.embedding(torch.tensor(ids, dtype=torch.int64), table, sparse=True)
    (found - target).square().sum().backward()


def test_group_rows_sums_gradients_of_equal_rows() -> None:
    groups = group_rows(torch.tensor([5, 2, 5]), num_table_rows=6)

    total = groups.sum(torch.tensor([[1.0, 2.0], [10.0, 20.0], [4.0, 8.0]]))

    # Row 2 has (10, 20) alone; row 5 has (1, 2) + (4, 8).
    assert groups.distinct.tolist() == [2, 5]
    assert total.tolist() == [[10.0, 20.0], [5.0, 10.0]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.sampled_from([10, 2**31 + 1]))
def test_group_rows_sums_like_a_loop(ids: list[int], num_table_rows: int) -> None:
    gradients = torch.arange(len(ids) * 2, dtype=torch.float32).view(-1, 2)
    expected: dict[int, torch.Tensor] = {}
    for row, gradient in zip(ids, gradients, strict=True):
        expected[row] = expected.get(row, torch.zeros(2)) + gradient

    groups = group_rows(torch.tensor(ids), num_table_rows=num_table_rows)

    assert groups.distinct.tolist() == sorted(expected)
    for row, gradient in zip(groups.distinct.tolist(), groups.sum(gradients), strict=True):
        assert torch.equal(gradient, expected[row])


@pytest.mark.parametrize(
    ("ids", "num_table_rows"),
    [
        ([2**24, 2**24 + 1, 2**24 + 2], 2**24 + 3),
        ([2**31 - 2, 2**31 - 1], 2**31),
        ([2**31 - 1, 2**31, 2**40], 2**40 + 1),
    ],
    ids=["beyond float32", "last int32", "beyond int32"],
)
def test_group_rows_keeps_neighbouring_large_ids_apart(ids: list[int], num_table_rows: int) -> None:
    groups = group_rows(torch.tensor(ids), num_table_rows=num_table_rows)

    assert groups.distinct.tolist() == ids
    assert groups.sum(torch.ones(len(ids), 1)).tolist() == [[1.0]] * len(ids)


def test_rows_beyond_2_to_24_of_a_real_table_move_alone() -> None:
    table = nn.Parameter(torch.zeros(2**24 + 3, 1))
    optimizer = RowwiseAdagrad([table], lr=0.5)
    ids = torch.tensor([2**24 + 1, 2**24 + 1], dtype=torch.int32)
    nn.functional.embedding(ids.to(torch.int64), table, sparse=True).sum().backward()

    optimizer.step()

    # One number a row, gradient 2: state 4, step 0.5 * 2 / 2.
    assert table[-4:].flatten().tolist() == pytest.approx([0.0, 0.0, -0.5, 0.0])
    assert int(table.count_nonzero()) == 1


def test_rowwise_adagrad_moves_a_row_as_written_down() -> None:
    table = nn.Parameter(torch.zeros(2, 2))
    optimizer = RowwiseAdagrad([table], lr=0.5, eps=0.0)
    table.grad = torch.sparse_coo_tensor(
        torch.tensor([[1]]), torch.tensor([[3.0, 4.0]]), (2, 2), check_invariants=True
    )

    optimizer.step()

    # state = mean(9, 16) = 12.5; step = 0.5 * (3, 4) / sqrt(12.5) = (0.424264, 0.565685).
    assert table[0].tolist() == [0.0, 0.0]
    assert table[1].tolist() == pytest.approx([-0.424264, -0.565685], abs=1e-6)


def test_rowwise_adagrad_equals_a_dense_loop_with_regularisation() -> None:
    table, reference = _table(), _table().detach().clone()
    optimizer = RowwiseAdagrad([table], lr=0.1, eps=1e-8, l2=0.01)
    state, last = torch.zeros(6), [0] * 6
    for step in range(5):
        ids = [step, 2, 2]
        gradient = torch.zeros(6, 3)
        for row in ids:
            gradient[row] += 2 * (reference[row] - 1.0)
        for row in set(ids):
            state[row] += gradient[row].square().mean()
            step_size = 0.1 / (state[row].sqrt() + 1e-8)
            shrunk = reference[row] * (1 - step_size * 0.01 * (step + 1 - last[row]))
            reference[row] = shrunk - step_size * gradient[row]
            last[row] = step + 1
        _backward(table, ids, 1.0)
        optimizer.step()

    assert torch.allclose(table, reference, atol=1e-6)


def test_row_adagrad_equals_torch_on_dense_gradients() -> None:
    table, dense = _table(), _table()
    ours = RowAdagrad([table], lr=0.1, eps=1e-10)
    theirs = torch.optim.Adagrad([dense], lr=0.1, eps=1e-10)
    for step in range(5):
        ids = [step, 3, 3, 0]
        _backward(table, ids, 0.5)
        dense.grad = table.grad.to_dense()
        ours.step()
        theirs.step()

    assert torch.allclose(table, dense, atol=1e-6)


def test_row_adam_equals_torch_sparse_adam() -> None:
    table, other = _table(), _table()
    ours = RowAdam([table], lr=0.01)
    theirs = torch.optim.SparseAdam([other], lr=0.01)
    for step in range(6):
        ids = [step, 1, 1]
        _backward(table, ids, 2.0)
        other.grad = table.grad.clone()
        ours.step()
        theirs.step()

    assert torch.allclose(table, other, atol=1e-6)


@pytest.mark.parametrize("kind", [RowwiseAdagrad, RowAdagrad, RowAdam])
def test_optimizer_leaves_rows_outside_the_batch_alone(
    kind: type[torch.optim.Optimizer],
) -> None:
    table = _table()
    before = table.detach().clone()
    optimizer = kind([table], lr=0.1, l2=0.5)
    _backward(table, [4, 1], 0.0)

    optimizer.step()

    assert torch.equal(table[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    assert not torch.equal(table[[1, 4]], before[[1, 4]])


@pytest.mark.parametrize("kind", [RowwiseAdagrad, RowAdagrad])
def test_l2_of_adagrad_makes_up_for_the_steps_that_a_row_missed(
    kind: type[torch.optim.Optimizer],
) -> None:
    table = nn.Parameter(torch.ones(3, 1))
    optimizer = kind([table], lr=0.5, l2=0.1)
    optimizer.state[table]["sum"].fill_(25.0)
    shares = []
    for ids in ([0, 1], [0], [0], [0, 1]):
        before = table.detach().clone()
        table.grad = torch.sparse_coo_tensor(
            torch.tensor([ids]), torch.zeros(len(ids), 1), (3, 1), check_invariants=True
        )
        optimizer.step()
        shares.append([round(1 - float(table.detach()[row] / before[row]), 4) for row in (0, 1)])

    # Step size 0.5 / 5, times 0.1: one hundredth a step. Row 1 is away for two steps and loses
    # three hundredths when it is back.
    assert shares == [[0.01, 0.01], [0.01, 0.0], [0.01, 0.0], [0.01, 0.03]]


def test_l2_of_adam_counts_the_steps_that_a_row_missed_in_its_gradient() -> None:
    table = nn.Parameter(torch.ones(3, 1))
    optimizer = RowAdam([table], lr=1e-9, l2=0.1, betas=(0.0, 0.0))
    seen = []
    for ids in ([0, 1], [0], [0], [0, 1]):
        optimizer.state[table]["exp_avg"].zero_()
        _backward(table, ids, 1.0)  # a gradient of 0 at 1, so that L2 is all there is
        optimizer.step()
        seen.append([round(float(optimizer.state[table]["exp_avg"][row]), 4) for row in (0, 1)])

    assert seen == [[0.1, 0.1], [0.1, 0.0], [0.1, 0.0], [0.1, 0.3]]


@pytest.mark.parametrize("kind", [RowwiseAdagrad, RowAdagrad])
def test_l2_of_a_row_that_is_first_seen_late_does_not_decide_its_sign(
    kind: type[torch.optim.Optimizer],
) -> None:
    table = nn.Parameter(torch.full((2, 1), 0.01))
    optimizer = kind([table], lr=0.05, l2=1e-5)
    gradient = torch.tensor([[-1e-6]])  # it wants the rows to grow
    for step in range(5000):
        row = torch.tensor([[0 if step < 4999 else 1]])
        table.grad = torch.sparse_coo_tensor(row, gradient, (2, 1), check_invariants=False)
        optimizer.step()

    assert table[1].item() > 0


def test_l2_of_adagrad_leaves_rows_without_a_gradient_as_they_start() -> None:
    table = nn.Parameter(torch.full((2, 3), 0.5))
    optimizer = RowwiseAdagrad([table], lr=0.05, l2=0.1)
    _backward(table, [1], 0.5)
    optimizer.step()

    assert torch.equal(table, torch.full((2, 3), 0.5))


def test_optimizer_refuses_a_dense_gradient() -> None:
    table = _table()
    table.grad = torch.ones_like(table)

    with pytest.raises(TypeError, match="gradients must be sparse, got a dense one"):
        RowwiseAdagrad([table], lr=0.1).step()


@pytest.mark.parametrize("kind", [RowwiseAdagrad, RowAdagrad, RowAdam])
def test_tables_looked_up_with_the_same_rows_move_as_if_each_were_alone(
    kind: type[torch.optim.Optimizer],
) -> None:
    together, alone = [_table(), _table(width=1), _table()], [_table(), _table(width=1), _table()]
    one = kind(together, lr=0.1, l2=0.1)
    many = [kind([table], lr=0.1, l2=0.1) for table in alone]
    for step in range(3):
        # The third table has rows of its own, as a sequence's table would.
        for tables in (together, alone):
            for table, ids in zip(tables, ([4, 1, 4], [4, 1, 4], [step, 1, 1]), strict=True):
                _backward(table, ids, 0.5)
        one.step()
        for optimizer in many:
            optimizer.step()

    for table, other in zip(together, alone, strict=True):
        assert torch.equal(table, other)


@pytest.mark.parametrize("kind", [RowwiseAdagrad, RowAdagrad, RowAdam])
def test_optimizer_passes_over_a_table_without_lookups(kind: type[torch.optim.Optimizer]) -> None:
    table = _table()
    before = table.detach().clone()
    _backward(table, [], 0.0)
    optimizer = kind([table, _table()], lr=0.1)

    optimizer.step()

    assert torch.equal(table, before)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=5))
def test_row_adam_with_every_row_in_the_batch_is_adam(steps: list[list[int]]) -> None:
    table, dense = _table(), _table()
    ours = RowAdam([table], lr=0.05)
    theirs = torch.optim.Adam([dense], lr=0.05)
    for ids in steps:
        _backward(table, [*range(6), *ids], 1.0)
        dense.grad = table.grad.to_dense()
        ours.step()
        theirs.step()

    # Lazy Adam differs from Adam only in rows that a batch leaves out.
    assert torch.allclose(table, dense, atol=1e-5)


def test_build_optimizers_gives_every_parameter_one_owner(spec: InputSpec) -> None:
    entry = catalog.entry("dhen")
    settings = entry.config(modules=("linear", "dcn_paper"), linear_bias=True, head_units=(8,))
    model = entry.model(settings, spec)

    optimizers = build_optimizers(
        model, OptimizerConfig(embedding="adam", dense_weight_decay=0.1, embedding_lr=0.3)
    )

    owned = [p for o in optimizers.values() for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in owned} == {id(p) for p in model.parameters()}
    assert len(owned) == len(list(model.parameters()))
    tables = [m.weight for m in model.modules() if isinstance(m, EmbeddingTables)]
    assert isinstance(optimizers["tables"], RowAdam)
    assert [id(p) for p in optimizers["tables"].param_groups[0]["params"]] == list(map(id, tables))
    assert optimizers["tables"].param_groups[0]["lr"] == 0.3
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay_by_name = {
        names[id(parameter)]: group["weight_decay"]
        for group in optimizers["dense"].param_groups
        for parameter in group["params"]
    }
    assert decay_by_name["layers.0.mixers.0.map.weight"] == 0.1
    assert decay_by_name["head.layers.0.weight"] == 0.1
    for spared in ("layers.0.mixers.0.map.bias", "layers.0.mixers.1.bias", "layers.0.norm.weight"):
        assert decay_by_name[spared] == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in catalog.CATALOG if name not in ("cetnet", "early_stage")]
    + [
        ("cetnet", {"members": ({"name": "dcn_v2"}, {"name": "din"})}),
        *(("early_stage", {"bottom": bottom}) for bottom in ("shared", "mmoe", "ple", "dot")),
    ],
)
def test_decoupled_decay_falls_on_weight_matrices_alone(name: str, options: dict[str, Any]) -> None:
    entry = catalog.entry(name)
    model = entry.model(entry.config(**options), example_spec(num_tasks=2))

    optimizer = build_optimizers(model, OptimizerConfig(dense_weight_decay=0.1))["dense"]

    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    dense = {name: p for name, p in model.named_parameters() if id(p) in decay}
    assert {name for name, p in dense.items() if decay[id(p)]} == {
        name for name, p in dense.items() if p.ndim > 1 and "bias" not in name
    }


def test_dense_l2_is_adam_with_the_weight_in_the_gradient(spec: InputSpec) -> None:
    entry = catalog.entry("dhen")
    model = entry.model(entry.config(modules=("linear",), head_units=(8,)), spec)
    settings = OptimizerConfig(dense_l2=0.01, dense_lr=0.1)
    optimizer = build_optimizers(model, settings)["dense"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [parameter.detach().double() for parameter in parameters]
    for place, parameter in enumerate(parameters):
        # Of the sign of the weight: where the two cancelled, rounding would decide the step.
        parameter.grad = torch.where(parameter < 0, -1e-3, 1e-3) * (place + 1)

    optimizer.step()

    for place, (parameter, old) in enumerate(zip(parameters, before, strict=True)):
        gradient = torch.where(old < 0, -1e-3, 1e-3) * (place + 1) + 0.01 * old
        # The first step of Adam, whose moments are the gradient and its square.
        expected = old - 0.1 * gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(parameter.double(), expected, atol=1e-5)


def test_dense_l2_and_decoupled_decay_exclude_each_other() -> None:
    with pytest.raises(
        ConfigError, match=r"dense_l2: must be 0 beside a decoupled decay, got 0\.01"
    ):
        OptimizerConfig(dense_l2=0.01, dense_weight_decay=0.1)
