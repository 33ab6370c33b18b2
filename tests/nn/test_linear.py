"""Linear maps under autocast: what they compute, and in how many shapes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tamis.nn.linear import Linear, linear

_WIDE = (64, 96)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class _Shapes(torch.utils._python_dispatch.TorchDispatchMode):
    """Rows of all products."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.rows.append(args[-2].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(0,), (1,), (17,), (4096,), (5001,), (3, 7), (40, 51)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_value_and_gradients_are_those_of_the_product(
    shape: tuple[int, ...], has_bias: bool
) -> None:
    into, out = _WIDE
    x, weight = _draw(*shape, into).requires_grad_(), _draw(out, into, seed=1).requires_grad_()
    bias = _draw(out, seed=2).requires_grad_() if has_bias else None
    toward = _draw(*shape, out, seed=3)

    found = {}
    for name, function in (("ours", linear), ("plain", F.linear)):
        with torch.autocast("cpu", torch.bfloat16):
            value = function(x, weight, bias)
        given = [x, weight] if bias is None else [x, weight, bias]
        gradients = torch.autograd.grad((value.float() * toward).sum(), given)
        found[name] = [value, *gradients]

    for ours, plain in zip(found["ours"], found["plain"], strict=True):
        assert ours.dtype == plain.dtype
        # Both round the same factors; sums of many rows are rounded to 8 bits in the end.
        torch.testing.assert_close(ours, plain, rtol=2.0**-7, atol=1e-2 * (1 + len(x) ** 0.5))


def test_rows_of_many_numbers_make_few_shapes() -> None:
    layer = Linear(*_WIDE)
    with _Shapes() as seen, torch.autocast("cpu", torch.bfloat16):
        for rows in range(5000, 6000, 7):
            layer(_draw(rows, 64))

    assert len(seen.rows) == len(range(5000, 6000, 7))
    assert set(seen.rows) <= {5120, 5632, 6144}


@pytest.mark.parametrize("rows", [1, 15, 512, 1000, 2048, 100_000])
def test_rows_grow_by_an_eighth_at_most(rows: int) -> None:
    with _Shapes() as seen, torch.autocast("cpu", torch.bfloat16):
        Linear(*_WIDE)(_draw(rows, 64))

    (padded,) = seen.rows
    assert rows <= padded <= rows * 9 / 8


def test_few_weights_are_exact_and_without_autocast_nothing_changes() -> None:
    small, x = Linear(16, 48), _draw(33, 16)
    exact = F.linear(x, small.weight, small.bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(small(x), exact)
        assert small(x.bfloat16()).dtype == torch.float32
    large, x = nn.Linear(64, 96), _draw(33, 64)
    assert torch.equal(linear(x, large.weight, large.bias), large(x))
