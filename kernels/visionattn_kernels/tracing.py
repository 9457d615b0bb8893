"""The states of torch that change how an operator must run: traces, transforms, forward mode, autocast.

Torch has no public way to ask for some of them. This file alone uses private names of torch for that;
`tests/kernels/test_tracing.py` fails if one of them moves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

Build = TypeVar("Build", bound=Callable[..., Any])


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which tensors keep their dtypes."""
    # If autocast is off, a trace is spared the context. Autocast does not know the meta device.
    enabled = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


def is_forward_mode() -> bool:
    """Return whether forward-mode derivatives are being taken; operators would silently drop the tangent."""
    return bool(forward_ad._current_level >= 0)


def is_transformed() -> bool:
    """Return whether a transform of `torch.func`, such as vmap or grad, is active."""
    return torch._C._are_functorch_transforms_active()


def is_exporting() -> bool:
    """Return whether `torch.export` is tracing.

    The compiler of torch 2.11 replaces `torch.compiler.is_exporting()` by True in every trace. The flag behind it is
    right in every version.
    """
    return torch.compiler._is_exporting_flag


def outside_modes(build: Build) -> Build:
    """Decorate a function that makes tables for a cache, so that they are ordinary tensors whoever calls first.

    Tensors made in inference mode could take part in no gradient, and those made under fake tensors or a trace hold no
    numbers. The function must name the device and dtype of its tables.
    """

    @wraps(build)
    def run(*args: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():  # it traces through, and makes the tables constants itself
            return build(*args)
        with _disable_current_modes(), torch.inference_mode(False):
            return build(*args)

    return run  # type: ignore[return-value]
