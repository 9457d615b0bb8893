"""Whether Triton's interpreter can run the kernels here, and how it does so in less than half of its time."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from visionattn_kernels.attention import triton as backend
from visionattn_kernels.attention.devices import TRITON_INSTALLED


def find_reason() -> str | None:
    """Return why it cannot, None if it can."""
    if not TRITON_INSTALLED:
        return "triton is not installed"
    import triton

    if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        return "the interpreter of Triton 3.6 fails with NumPy 2.4"
    return None if backend.INTERPRETED else "TRITON_INTERPRET is not set"


NOT_INTERPRETED = find_reason()


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Leave out what the interpreter repeats without effect, and its check of every sum and product for overflow.

    It replaces the functions of Triton's language when a kernel is launched, and once more at each call of a function
    in that kernel: once per launch is enough.
    """
    from triton.runtime import interpreter

    check_overflow(patch, False)
    patch.setattr(interpreter, "_patch_lang", once_per_launch(interpreter._patch_lang))


def check_overflow(patch: pytest.MonkeyPatch, check: bool) -> None:
    """Say whether the interpreter computes every sum and product of integers in 64 bits too, and compares."""
    from triton.runtime.interpreter import InterpreterOptions, interpreter_builder

    patch.setattr(interpreter_builder, "options", InterpreterOptions(sanitize_overflow=check))


def once_per_launch(replace: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``replace`` for the first function of a launch that sees a module of Triton's language."""
    import triton.language as tl
    from triton.runtime.interpreter import _LangPatchScope

    replaced: set[str] = set()

    @cache
    def modules_of(function: Any) -> set[str]:
        return {x.__name__ for x in function.__globals__.values() if x is tl or x is tl.core}

    def replace_once(function: Any) -> Any:
        if modules_of(function) <= replaced:
            return _LangPatchScope()
        scope = replace(function)
        restore = scope.restore

        def end() -> None:
            restore()
            replaced.clear()

        scope.restore = end
        replaced.update(modules_of(function))
        return scope

    return replace_once
