"""The call that ends what a compiler reads; importing it imports the compiler."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Found = TypeVar("Found")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def call_outside(
    function: Callable[Given, Found], *args: Given.args, **kwargs: Given.kwargs
) -> Found:
    """Call the function, with all that it calls, as if nothing were compiled."""
    return function(*args, **kwargs)
