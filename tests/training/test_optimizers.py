"""Row-wise optimizers against slow references, and what they leave alone."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tamis.training.optimizers import RowAdagrad, RowAdam, RowwiseAdagrad, sum_duplicate_rows


def _table(rows: int = 6, width: int = 3) -> nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(rows, width, generator=generator))


def _backward(table: nn.Parameter, ids: list[int], target: float) -> None:
    table.grad = None
    found = nn.functional.embedding(torch.tensor(ids), table, sparse=True)
    (found - target).square().sum().backward()


def test_sum_duplicate_rows_adds_gradients_of_equal_rows() -> None:
    rows, total = sum_duplicate_rows(
        torch.tensor([5, 2, 5]), torch.tensor([[1.0, 2.0], [10.0, 20.0], [4.0, 8.0]])
    )

    # Row 2 has (10, 20) alone; row 5 has (1, 2) + (4, 8).
    assert rows.tolist() == [2, 5]
    assert total.tolist() == [[10.0, 20.0], [5.0, 10.0]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_sum_duplicate_rows_equals_a_loop(ids: list[int]) -> None:
    gradients = torch.arange(len(ids) * 2, dtype=torch.float32).view(-1, 2)
    expected: dict[int, torch.Tensor] = {}
    for row, gradient in zip(ids, gradients, strict=True):
        expected[row] = expected.get(row, torch.zeros(2)) + gradient

    rows, total = sum_duplicate_rows(torch.tensor(ids), gradients)

    assert rows.tolist() == sorted(expected)
    for row, gradient in zip(rows.tolist(), total, strict=True):
        assert torch.equal(gradient, expected[row])


def test_sum_duplicate_rows_keeps_ids_beyond_2_to_24_apart() -> None:
    ids = torch.tensor([2**24, 2**24 + 1, 2**40])

    rows, _ = sum_duplicate_rows(ids, torch.ones(3, 1))

    assert rows.tolist() == [2**24, 2**24 + 1, 2**40]


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
    state = torch.zeros(6)
    for step in range(5):
        ids = [step, 2, 2]
        gradient = torch.zeros(6, 3)
        for row in ids:
            gradient[row] += 2 * (reference[row] - 1.0)
        for row in set(ids):
            full = gradient[row] + 0.01 * reference[row]
            state[row] += full.square().mean()
            reference[row] -= 0.1 * full / (state[row].sqrt() + 1e-8)
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


def test_optimizer_refuses_a_dense_gradient() -> None:
    table = _table()
    table.grad = torch.ones_like(table)

    with pytest.raises(TypeError, match="gradients must be sparse, got a dense one"):
        RowwiseAdagrad([table], lr=0.1).step()
