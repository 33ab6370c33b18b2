"""What a compiler leaves alone: run as written, with gradients; where none works, none is there."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from tamis.nn.outside_compiler import outside_compiler


class _Counted(nn.Module):
    """Multiplies by how many numbers it is given, which no compiler may take for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[bool] = []

    @outside_compiler
    def times(self, x: Tensor, *, more: float = 0.0) -> Tensor:
        """The product."""
        self.seen.append(torch.compiler.is_compiling())
        return x * self.weight * (len(x.tolist()) + more)

    def forward(self, x: Tensor) -> Tensor:
        return self.times(x + 1, more=0.5) * 2


def test_function_stays_what_it_is() -> None:
    assert _Counted.times.__name__ == "times"
    assert _Counted.times.__doc__ == "The product."
    assert _Counted()(torch.ones(3)).tolist() == [14.0] * 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # PyTorch's own
def test_compiled_model_calls_it_as_it_is_written() -> None:
    torch.compiler.reset()
    model = _Counted()
    compiled = torch.compile(model, backend="eager", dynamic=True)
    for size in (2, 3):
        assert compiled(torch.ones(size)).tolist() == [4 * (size + 0.5)] * size
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(torch.ones(7)).sum().backward()

    assert model.seen == [False] * 3
    assert model.weight.grad is not None
    assert model.weight.grad.item() == 7 * 4 * 7.5


def test_models_and_the_server_need_no_compiler() -> None:
    # Importing it takes longer than all of tamis.
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, tamis.models.catalog, tamis.serving.server; "
            "sys.exit('torch._dynamo' in sys.modules)",
        ],
        check=True,
    )
