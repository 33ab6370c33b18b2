"""What autocast does to an input, done once for several layers that share it."""

import torch
from torch import Tensor


def in_autocast_type(x: Tensor) -> Tensor:
    """The tensor as a matrix product would read it: in autocast's type where autocast is on.

    Layers that share an input cast it once each, and autograd then adds their gradients in float32.
    """
    if torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def compiles_by_shape(x: Tensor) -> bool:
    """Whether products of the tensor have a kernel for each shape, compiled when the shape is new.

    So it is under autocast on a CPU; what makes new shapes in every step rounds their sizes there,
    or computes in float32.
    """
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
