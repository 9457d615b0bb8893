"""The table of backends: which can run a problem, which is chosen, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor

from visionattn_kernels.backends import reference, tiled
from visionattn_kernels.problem import Problem


@dataclass(frozen=True)
class Backend:
    """One implementation.

    Attributes:
        summary: What it is.
        can_run: The reason why it cannot run a problem, or None.
        attention: Output of a problem, and its log-sum-exp where that is asked for.
    """

    summary: str
    can_run: Callable[[Problem], str | None]
    attention: Callable[[Problem, bool], tuple[Tensor, Tensor | None]]


BACKENDS = {
    "tiled": Backend(
        "tiles of queries against their joint key window, as batched matrix products", tiled.can_run, tiled.attention
    ),
    "reference": Backend(
        "explicit mask and plain softmax over all keys; memory grows with the square of the map",
        reference.can_run,
        reference.attention,
    ),
}
"""By name, in order of preference."""


def get_backend(name: str) -> Backend:
    """Loads a backend by name. Raises ValueError for an unknown one."""
    if name not in BACKENDS:
        near = get_close_matches(name, BACKENDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}{hint}")
    return BACKENDS[name]


def choose(problem: Problem, backend: str | None = None) -> Backend:
    """The backend to run a problem with.

    Args:
        problem: What to compute.
        backend: Asks for one by name; then no other one is taken in its place.

    Raises:
        ValueError: The named backend is unknown or cannot run the problem, or none can.
    """
    reasons = []
    for name in BACKENDS if backend is None else (backend,):
        candidate = get_backend(name)
        reason = candidate.can_run(problem)
        if reason is None:
            return candidate
        reasons.append(f"{name}: {reason}")
    raise ValueError(f"no backend can run this problem ({'; '.join(reasons)})")


def explain(problem: Problem, backend: str | None = None) -> str:
    """One line per backend: which one would run the problem, and why each other one would not."""
    lines, chosen = [], None
    for name, candidate in BACKENDS.items():
        reason = candidate.can_run(problem)
        if reason is not None:
            lines.append(f"{name}: cannot run: {reason}")
        elif backend is not None and backend != name:
            lines.append(f"{name}: not asked for ({backend!r} is)")
        elif chosen is None:
            chosen = name
            lines.append(f"{name}: runs ({candidate.summary})")
        else:
            lines.append(f"{name}: not chosen: {chosen} comes first ({candidate.summary})")
    return "\n".join(lines)
