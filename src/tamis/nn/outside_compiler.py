"""Parts of models that ``torch.compile`` leaves alone, at no cost to whoever compiles nothing.

``torch.compiler.disable`` imports the whole compiler where it decorates: a second or two for every
process that only predicts or serves.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


def outside_compiler(function: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
    """The function, which runs as it is written wherever a compiled model calls it."""

    @functools.wraps(function)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Found:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        # There is a compiler, so that its import costs nothing any more.
        from tamis.nn.outside_call import call_outside

        return call_outside(function, *args, **kwargs)

    return call
