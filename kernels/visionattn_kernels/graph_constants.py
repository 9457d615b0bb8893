"""Functions whose results `torch.compile` takes for constants.

Torch's own decorator imports the compiler, 900 modules, when a function is defined. Here that waits until the compiler
traces one of them, and is loaded anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

FUNCTIONS: list[Callable[..., Any]] = []


def graph_constant(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that returns the same for the same arguments, and that the compiler cannot trace."""
    FUNCTIONS.append(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            import visionattn_kernels.graph_marks  # noqa: F401  the compiler runs import statements
        return function(*args, **kwargs)

    return call
