"""Models as they serve in bfloat16: weights rounded once, a layer's sum and ReLU in its product."""

import copy
import itertools
from typing import TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tamis.nn.linear import FEW_WEIGHTS, Linear
from tamis.nn.precision import has_fast_bfloat16

_Model = TypeVar("_Model", bound=nn.Module)


def rounded(model: _Model) -> _Model:
    """A copy of a model that gives what the model gives under autocast to bfloat16, sooner.

    Autocast rounds every weight in every call, and writes a hidden layer out twice: as the product,
    and as its ReLU. On the few rows of a request that is a third of the time. Call the copy under
    autocast all the same: what is no linear map is left to it.

    Args:
        model: On the CPU, in evaluation mode. The copy shares what is not rounded with it, such as
            embeddings.
    """
    shared: dict[int, object] = {
        id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())
    }
    copied = copy.deepcopy(model, shared)
    for part in [*copied.modules()]:
        for name, layer in [*part.named_children()]:
            if _is_rounded(layer):
                setattr(part, name, RoundedLinear(layer))
        if isinstance(part, nn.Sequential):
            _fuse(part)
    return copied


def _is_rounded(layer: nn.Module) -> TypeGuard[nn.Linear]:
    # Nothing of another class, which may read its weights in another way; and of ours only what
    # autocast has a part in.
    return type(layer) is nn.Linear or (
        type(layer) is Linear and layer.weight.numel() >= FEW_WEIGHTS
    )


def linear_relu(
    x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "*B O"]:
    """``relu(x W' + b)``, on a CPU in bfloat16 without a second pass over the product."""
    kinds = {x.dtype, weight.dtype} if bias is None else {x.dtype, weight.dtype, bias.dtype}
    if kinds == {torch.bfloat16} and not torch.is_grad_enabled() and _can_fuse(x, weight):
        fused: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "relu", [], "")
        return fused
    return F.relu(F.linear(x, weight, bias))


def linear_add_relu(
    x: Float[Tensor, "B I"], weight: Float[Tensor, "O I"], other: Float[Tensor, "B O"]
) -> Float[Tensor, "B O"]:
    """``relu(x W' + other)``, on a CPU in bfloat16 without rounding the product before the sum."""
    kinds = {x.dtype, weight.dtype, other.dtype}
    if kinds == {torch.bfloat16} and not torch.is_grad_enabled() and _can_fuse(x, weight):
        fused: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, "add")
        return F.relu(fused, inplace=True)
    return F.relu(other + F.linear(x, weight))


class RoundedLinear(nn.Linear):
    """A linear map, and its ReLU if it has one, whose weights autocast finds rounded."""

    def __init__(self, linear: nn.Linear) -> None:
        """Round the map's weights; where autocast is off, those as they were are used."""
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.has_relu = False
        self._weight = linear.weight.detach().to(torch.bfloat16)
        self._bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """``x W' + b``, or the ReLU of it."""
        layer = linear_relu if self.has_relu else F.linear
        if torch.is_autocast_enabled(x.device.type):
            # Rows as they come: requests have few numbers of candidates, whose kernels are kept,
            # and padding them takes a twelfth of all that a request takes.
            return layer(x.to(torch.bfloat16), self._weight, self._bias)
        return layer(x, self.weight, self.bias)


def _fuse(layers: nn.Sequential) -> None:
    """Let each linear map that a ReLU follows do that too."""
    found: list[nn.Module] = []
    for layer in layers:
        before = found[-1] if found else None
        if type(layer) is nn.ReLU and isinstance(before, RoundedLinear):
            before.has_relu = True
        else:
            found.append(layer)
    del layers[:]
    layers.extend(found)


def _can_fuse(x: Tensor, weight: Tensor) -> bool:
    # oneDNN takes a thousand times as long on a weight that is a slice of another.
    return (
        x.device.type == "cpu"
        and weight.is_contiguous()
        and has_fast_bfloat16(x.device)
        and not torch.compiler.is_exporting()
    )
