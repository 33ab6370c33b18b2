"""Multi-task models give what the code of AdaTT's authors gives with the same weights.

The numbers are outputs of ``mtl_lib.py`` (github.com/facebookresearch/AdaTT, commit 0efdd82): two
tasks, levels of experts [4, 3] and [2], inputs and weights as below. Which number becomes which
weight follows one order, level by level: of every expert the matrices and biases of its layers,
then of every gate its matrix and bias, then the weights of native experts, unit by unit.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tamis.models import catalog
from tamis.nn.experts import Fusion, FusionLevel, Stitch
from tamis.testing.models import example_spec

_INPUT = torch.tensor([[1.0, -0.5, 0.25], [-0.75, 2.0, 0.5]])
# Of that input these two make zeros, and dead units are right whatever weighs them.
_OTHER_INPUTS = dict.fromkeys(
    ("mmoe, 3", "cross_st"), torch.tensor([[-2.0, 1.0, 2.0], [2.0, -0.5, -2.0]])
)
_OUTPUTS: dict[str, list[list[list[float]]]] = {
    "att_sp, 1 each": [
        [[1.253888, 0.35729], [2.318221, 0.158015]],
        [[0.488401, 1.060952], [2.225335, 0.318055]],
    ],
    "att_sp, 2 each": [
        [[0.625879, 0.364241], [-0.577395, -0.666817]],
        [[0.570283, 0.317798], [0.016908, -0.260946]],
    ],
    "att_g, 1 each and 1": [
        [[0.044044, 0.091613], [0.23403, 0.486788]],
        [[0.032683, 0.051517], [0.156252, 0.246298]],
    ],
    "att_g, 1 each and 2": [
        [[0.301708, 0.898532], [0.292665, 0.561819]],
        [[0.336772, 1.014042], [0.178269, 0.560767]],
    ],
    "att_g, 2, 1 and 2": [
        [[0.177037, 0.164245], [-0.600254, 0.094431]],
        [[0.290361, 0.118118], [-0.699767, 0.020179]],
    ],
    "ple, 1 each and 2": [
        [[0.64051, 0.464329], [0.271372, 0.411346]],
        [[0.441722, 0.492324], [0.244035, 0.352818]],
    ],
    "ple, 2 each and 1": [
        [[0.518251, 0.010953], [0.697131, 0.172653]],
        [[0.623895, 0.047898], [0.680003, 0.110776]],
    ],
    "mmoe, 3": [
        [[0.032315, 0.201086], [0.07951, 0.494761]],
        [[0.048854, 0.00791], [0.0471, 0.015696]],
    ],
    "cross_st": [
        [[-0.116803, -0.128949], [-0.012034, -0.029772]],
        [[-0.470748, -0.864169], [-0.048502, -0.089037]],
    ],
}


def _weights(level: FusionLevel) -> Iterator[Tensor]:
    """What the level has learnt, in the order of the numbers."""
    experts = level.experts
    for expert in range(sum(experts.counts)):
        for weight, bias in zip(experts.weights, experts.biases, strict=True):
            yield weight[expert]
            yield bias[expert]
    if isinstance(level, Stitch):
        yield level.mix
        return
    assert isinstance(level, Fusion)
    assert level.gates is not None
    for gate in level.gates.maps:
        assert isinstance(gate, nn.Linear)
        yield gate.weight
        yield gate.bias
    if level.native is not None:
        for _, value in sorted(level.native.values.items()):
            yield value


def _fill(levels: nn.ModuleList) -> None:
    first = 0
    for level in levels:
        assert isinstance(level, FusionLevel)
        for weight in _weights(level):
            place = torch.arange(first, first + weight.numel(), dtype=torch.float64)
            weight.copy_((0.8 * torch.sin(0.37 * place * place + place)).reshape(weight.shape))
            first += weight.numel()


@pytest.mark.parity
@pytest.mark.parametrize(
    ("official", "name", "settings"),
    [
        ("att_sp, 1 each", "adatt", {"task_experts": (1,)}),
        ("att_sp, 2 each", "adatt", {"task_experts": (2,)}),
        ("att_g, 1 each and 1", "adatt", {"task_experts": (1,), "shared_experts": 1}),
        (
            "att_g, 1 each and 2",
            "adatt",
            {"task_experts": (1,), "shared_experts": 2, "native": "official"},
        ),
        (
            "att_g, 2, 1 and 2",
            "adatt",
            {"task_experts": (2, 1), "shared_experts": 2, "native": "official"},
        ),
        ("ple, 1 each and 2", "ple", {"task_experts": 1, "shared_experts": 2}),
        ("ple, 2 each and 1", "ple", {"task_experts": 2, "shared_experts": 1}),
        ("mmoe, 3", "mmoe", {"num_experts": 3}),
        ("cross_st", "cross_stitch", {}),
    ],
)
def test_outputs_are_those_of_the_authors_code(official: str, name: str, settings: dict) -> None:
    spec = example_spec(num_tasks=2, num_numeric=3, num_categorical=0, sequences=False)
    entry = catalog.entry(name)
    model = entry.model(entry.config(expert_units=((4, 3), (2,)), **settings), spec)

    with torch.no_grad():
        _fill(model.stack.levels)
        found = torch.stack(model.stack(_OTHER_INPUTS.get(official, _INPUT)), dim=1)

    # The outputs were written with six digits behind the point.
    torch.testing.assert_close(found, torch.tensor(_OUTPUTS[official]), atol=2e-6, rtol=1e-5)
