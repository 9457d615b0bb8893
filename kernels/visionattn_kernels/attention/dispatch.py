"""Backends: which can run a problem, which is chosen, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

import torch
from torch import Tensor

from visionattn_kernels.attention import gemm, native, plain, reference, tiled
from visionattn_kernels.attention.devices import describe_device
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.operators import NO_FORWARD_MODE
from visionattn_kernels.tracing import is_exporting, is_forward_mode


class Implementation(Protocol):
    """The two functions of a backend module."""

    def can_run(self, problem: Problem) -> str | None:
        """Return why it cannot run a problem, or None."""

    def attention(self, problem: Problem, need_lse: bool) -> tuple[Tensor, Tensor | None]:
        """Return the output `[B, Q_h, Q_w, heads, v_dim]`, and the log-sum-exp `[B, Q_h, Q_w, heads]` if asked for."""


@dataclass(frozen=True)
class Backend:
    """One implementation.

    Attributes:
        summary: One line for `explain`.
        load: Returns its module, imported late if that is costly.
    """

    summary: str
    load: Callable[[], Implementation]


# The compiler traces import statements in functions, but no other way to import.
def _load_triton() -> Implementation:
    from visionattn_kernels.attention import triton

    return triton


def _load_natten() -> Implementation:
    from visionattn_kernels.attention import natten

    return natten


def _load_flex() -> Implementation:
    from visionattn_kernels.attention import flex

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
"""By name; `ORDER` says which is preferred."""


@dataclass(frozen=True)
class Order:
    """An order of preference, and the problems that it holds for; a condition that is None always holds.

    Attributes:
        names: Backends, the preferred one first.
        because: Why.
        measured: Whether the order is that of measured times.
        max_keys: Largest map, in keys.
        dtypes: Of q.
        needs_grad: Whether autograd records the problem.
    """

    names: tuple[str, ...]
    because: str
    measured: bool = False
    max_keys: int | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    needs_grad: bool | None = None

    def fits(self, problem: Problem) -> bool:
        """Return whether all conditions hold."""
        return (
            (self.max_keys is None or problem.size[0] * problem.size[1] <= self.max_keys)
            and (self.dtypes is None or problem.q.dtype in self.dtypes)
            and (self.needs_grad is None or problem.needs_grad == self.needs_grad)
        )

    def describe(self, device: str) -> str:
        """Return one line: whether it was measured, its conditions, and why."""
        conditions = [
            *([] if self.max_keys is None else [f"up to {self.max_keys} keys"]),
            *([] if self.dtypes is None else [" or ".join(str(x).removeprefix("torch.") for x in self.dtypes)]),
            *([] if self.needs_grad is None else [f"{'with' if self.needs_grad else 'without'} gradients"]),
        ]
        for_what = ", ".join([device, *conditions])
        return f"the {'measured' if self.measured else 'unmeasured'} order for {for_what}: {self.because}"


OTHER = "other"

ORDER: dict[str, tuple[Order, ...]] = {
    "cpu": (
        Order(
            ("native", "reference", "tiled", "gemm"),
            "where all scores of a map are few, plain products with a backward of plain products beat tiles",
            measured=True,
            max_keys=49,
            dtypes=(torch.float32,),
            needs_grad=True,
        ),
        Order(
            ("native", "tiled", "gemm", "reference"),
            "so their times rank, over the stages of NAT-Tiny and HaloNet, forward and backward",
            measured=True,
        ),
    ),
    "cuda": (
        Order(
            ("triton", "natten", "flex", "tiled", "gemm", "reference"),
            "kernels that are compiled for the problem come first, of these the one with every bias",
        ),
    ),
    OTHER: (Order(("tiled", "gemm", "reference"), "these run anywhere; the one with the least memory comes first"),),
}
"""By type of device; the first order that fits a problem counts. kernels/README.md says how each was measured."""

PLAIN = ("plain", "reference")
"""Backends of plain torch operators, for `torch.export` (other runtimes know none of ours) and for forward mode."""


def get_backend(name: str) -> Implementation:
    """Return a backend by name. Raises ValueError for an unknown one."""
    if name not in BACKENDS:
        near = get_close_matches(name, BACKENDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}{hint}")
    return BACKENDS[name].load()


def choose(problem: Problem, backend: str | None = None) -> Implementation:
    """Return the backend to run a problem with.

    Args:
        problem: What to compute.
        backend: Name of a backend, which is then never replaced by another.

    Raises:
        ValueError: The named backend is unknown or cannot run the problem, none can, or maps of no fixed size are
            exported.
    """
    refuse_open_sizes(problem)
    reasons = []
    for name in _order(problem) if backend is None else (backend,):
        candidate = get_backend(name)
        reason = _refuse(name, problem)
        if reason is None:
            return candidate
        reasons.append(f"{name}: {reason}")
    raise ValueError(f"no backend can run this problem ({'; '.join(reasons)})")


def refuse_open_sizes(problem: Problem) -> None:
    """Refuse to export maps of no fixed size. Raises ValueError."""
    if is_exporting() and any(isinstance(n, torch.SymInt) for n in problem.size):
        raise ValueError(
            "torch.export needs one height and width of the maps, for a graph holds index tables of one size: "
            "leave both out of dynamic_shapes (the batch may be dynamic)"
        )


def _refuse(name: str, problem: Problem) -> str | None:
    """Return why a backend cannot run a problem, or None."""
    if is_forward_mode() and name not in PLAIN:
        return f"{NO_FORWARD_MODE}, which {' and '.join(PLAIN)} have"
    return get_backend(name).can_run(problem)


def _order(problem: Problem) -> list[str]:
    if is_exporting() or is_forward_mode():
        return [*PLAIN]
    return [*find_order(problem).names]


def find_order(problem: Problem) -> Order:
    """Return the first order that fits; the last one of each device type fits every problem."""
    return next(order for order in ORDER.get(problem.q.device.type, ORDER[OTHER]) if order.fits(problem))


def explain(problem: Problem, backend: str | None = None) -> str:
    """Return one line per backend, in order of preference: the one that would run, and why the others would not."""
    rule = find_order(problem).describe(describe_device(problem.q.device))
    order, lines, chosen = _order(problem), [], None
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
