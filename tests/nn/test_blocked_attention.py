"""Attention in blocks of rows is attention made of whole tensors."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from tamis.models.flops import counted_flops
from tamis.nn.attention import SequenceAttention, self_attend
from tamis.nn.blocked_attention import blocked_attention

ROWS, LENGTH, HEADS, WIDTH = 700, 20, 2, 8  # three blocks on one thread
SCALE = 0.5


@contextlib.contextmanager
def _two_threads() -> Iterator[None]:
    """Where attention is in blocks."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def projected() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, LENGTH, 3 * HEADS * WIDTH, generator=generator)


@pytest.fixture
def lengths() -> torch.Tensor:
    return torch.randint(1, LENGTH + 1, (ROWS,), generator=torch.Generator().manual_seed(1))


def _attended(
    projected: torch.Tensor, lengths: torch.Tensor, *, rotary: bool, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed values, and the gradient of some function of them."""
    projected = projected.clone().requires_grad_()
    valid = torch.arange(LENGTH) < lengths.unsqueeze(1)
    mixed = self_attend(
        projected, valid, num_heads=HEADS, scale=SCALE, rotary=rotary, causal=causal
    )
    (mixed * torch.linspace(-1, 1, mixed.numel()).view_as(mixed)).sum().backward()
    assert projected.grad is not None
    return mixed.detach(), projected.grad


@pytest.mark.parametrize("rows", ["padded", "full", "some empty"])
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_blocks_equal_the_whole(
    projected: torch.Tensor, lengths: torch.Tensor, rows: str, rotary: bool, causal: bool
) -> None:
    if rows == "full":
        lengths = torch.full_like(lengths, LENGTH)
    if rows == "some empty":
        lengths = lengths.clone()
        lengths[::7] = 0
    whole = _attended(projected, lengths, rotary=rotary, causal=causal)
    with _two_threads():
        blocks = _attended(projected, lengths, rotary=rotary, causal=causal)

    for found, expected in zip(blocks, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradient_is_that_of_finite_differences(projected: torch.Tensor) -> None:
    projected = projected[:2, :4]
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    direction = torch.randn(projected.shape, generator=torch.Generator().manual_seed(2))
    weights = torch.randn(2, 4, HEADS * WIDTH, generator=torch.Generator().manual_seed(3))

    def value(step: float) -> torch.Tensor:
        mixed = blocked_attention(projected + step * direction, valid, num_heads=HEADS, scale=SCALE)
        return (mixed * weights).sum()

    changing = projected.clone().requires_grad_()
    (blocked_attention(changing, valid, num_heads=HEADS, scale=SCALE) * weights).sum().backward()
    assert changing.grad is not None

    expected = (value(0.01) - value(-0.01)) / 0.02
    torch.testing.assert_close((changing.grad * direction).sum(), expected, rtol=1e-3, atol=0)


def test_projections_in_bfloat16_are_read_in_float32(
    projected: torch.Tensor, lengths: torch.Tensor
) -> None:
    valid = torch.arange(LENGTH) < lengths.unsqueeze(1)
    rounded = projected.bfloat16().requires_grad_()
    exact = rounded.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = blocked_attention(rounded, valid, num_heads=HEADS, scale=SCALE)
    expected = blocked_attention(exact, valid, num_heads=HEADS, scale=SCALE)
    found.sum().backward()
    expected.sum().backward()

    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert rounded.grad is not None
    assert exact.grad is not None
    assert torch.equal(rounded.grad, exact.grad.bfloat16())


def test_operations_are_counted_as_those_of_the_whole(projected: torch.Tensor) -> None:
    whole, _ = counted_flops(lambda: self_attend(projected, num_heads=HEADS))
    with _two_threads():
        blocks, _ = counted_flops(lambda: self_attend(projected, num_heads=HEADS))

    assert blocks == whole == 2 * (2 * ROWS * HEADS * LENGTH * LENGTH * WIDTH)


def test_no_rows_and_second_derivatives() -> None:
    module, tokens = SequenceAttention(8, 2), torch.randn(2, 3, 8, requires_grad=True)
    with _two_threads():
        nothing = module(torch.zeros(0, 3, 8), torch.zeros(0, 3, dtype=torch.bool))
        nowhere = module(torch.zeros(3, 0, 8), torch.zeros(3, 0, dtype=torch.bool))
        mixed = module(tokens, torch.ones(2, 3, dtype=torch.bool))

    assert nothing.shape == (0, 3, 8)
    assert nowhere.shape == (3, 0, 8)
    (first,) = torch.autograd.grad(mixed.square().sum(), tokens, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
