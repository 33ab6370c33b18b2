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
