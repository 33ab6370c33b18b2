"""The call that ends what a compiler reads; importing it imports the compiler."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def call_outside(
    function: Callable[_Given, _Found], *args: _Given.args, **kwargs: _Given.kwargs
) -> _Found:
    """Call the function, with all that it calls, as if nothing were compiled."""
    return function(*args, **kwargs)
