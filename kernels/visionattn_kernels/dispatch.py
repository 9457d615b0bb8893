"""The table of backends: which can run a problem, which is chosen, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

import torch
from torch import Tensor

from visionattn_kernels import choices
from visionattn_kernels.backends import gemm, native, plain, reference, tiled
from visionattn_kernels.operators import NO_FORWARD_MODE
from visionattn_kernels.problem import Problem
from visionattn_kernels.tracing import is_exporting, is_forward_mode


class Implementation(Protocol):
    """What the module of a backend holds."""

    def can_run(self, problem: Problem) -> str | None:
        """The reason why it cannot run a problem, or None."""

    def attention(self, problem: Problem, need_lse: bool) -> tuple[Tensor, Tensor | None]:
        """Output of a problem, and its log-sum-exp where that is asked for."""


@dataclass(frozen=True)
class Backend:
    """One implementation.

    Attributes:
        summary: What it is.
        load: Its module; imports it where that is costly.
    """

    summary: str
    load: Callable[[], Implementation]


# The compiler traces import statements in functions, but no other way to import.
def _load_triton() -> Implementation:
    from visionattn_kernels.backends import triton

    return triton


def _load_natten() -> Implementation:
    from visionattn_kernels.backends import natten

    return natten


def _load_flex() -> Implementation:
    from visionattn_kernels.backends import flex

    return flex


BACKENDS = {
    "triton": Backend("fused kernels with every bias", _load_triton),
    "native": Backend("fused kernels for CPUs, compiled on first use", lambda: native),
    "natten": Backend("NATTEN's fused kernels, without bias", _load_natten),
    "flex": Backend("torch's compiled flex attention with a block mask of the window", _load_flex),
    "tiled": Backend("tiles of queries against their joint key window, as batched matrix products", lambda: tiled),
    "gemm": Backend("scores and sums by batched matrix products; gradients of any order", lambda: gemm),
    "plain": Backend("tiles as plain operators, for torch.export and ONNX", lambda: plain),
    "reference": Backend(
        "explicit mask and plain softmax over all keys; memory grows with the square of the map", lambda: reference
    ),
}
"""By name; `choices.json` holds the orders of preference."""

PLAIN = ("plain", "reference")
"""Backends of torch's own operators, for `torch.export`, as other runtimes know none of ours, and for forward mode."""


def get_backend(name: str) -> Implementation:
    """Loads a backend by name. Raises ValueError for an unknown one."""
    if name not in BACKENDS:
        near = get_close_matches(name, BACKENDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}{hint}")
    return BACKENDS[name].load()


def choose(problem: Problem, backend: str | None = None) -> Implementation:
    """The backend to run a problem with.

    Args:
        problem: What to compute.
        backend: Asks for one by name; then no other one is taken in its place.

    Raises:
        ValueError: The named backend is unknown or cannot run the problem, or none can, or maps of any size are to be
            exported.
    """
    if is_exporting() and any(isinstance(n, torch.SymInt) for n in problem.size):
        raise ValueError(
            "torch.export needs one height and width of the maps, for a graph holds index tables of one size: "
            "leave both out of dynamic_shapes (the batch may be dynamic)"
        )
    reasons = []
    for name in _order(problem) if backend is None else (backend,):
        candidate = get_backend(name)
        reason = _refuse(name, problem)
        if reason is None:
            return candidate
        reasons.append(f"{name}: {reason}")
    raise ValueError(f"no backend can run this problem ({'; '.join(reasons)})")


def _refuse(name: str, problem: Problem) -> str | None:
    """The reason why a backend cannot run a problem, or None."""
    if is_forward_mode() and name not in PLAIN:
        return f"{NO_FORWARD_MODE}, which {' and '.join(PLAIN)} have"
    return get_backend(name).can_run(problem)


def _order(problem: Problem) -> list[str]:
    if is_exporting() or is_forward_mode():
        return [*PLAIN]
    return [name for name in choices.find(problem).order if name in BACKENDS]


def explain(problem: Problem, backend: str | None = None) -> str:
    """One line per backend, in order of preference: which one would run, and why each other one would not."""
    rule, lines, chosen = choices.find(problem), [], None
    order = _order(problem)
    for name in [*order, *(name for name in BACKENDS if name not in order)]:
        summary = BACKENDS[name].summary
        reason = _refuse(name, problem)
        if reason is not None:
            verdict = f"cannot run: {reason}"
        elif backend is not None:
            verdict = f"runs ({summary}): it is asked for" if name == backend else f"not asked for ({backend!r} is)"
        elif name not in order:
            verdict = f"not chosen: it runs on request ({summary})"
        elif chosen is None:
            chosen = name
            verdict = f"runs ({summary}): first that can in {rule}"
        else:
            verdict = f"not chosen: {chosen} comes first ({summary})"
        lines.append(f"{name}: {verdict}")
    return "\n".join(lines)
