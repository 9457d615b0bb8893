"""Problems whose kernels are compiled for a GPU that is not there: those that are measured, and further shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kernels.bench.problems import HaloLayer, Problem, attention_problems
from visionattn_kernels import Window
from visionattn_kernels.attention import problem as attention


@dataclass(frozen=True)
class Shape(Problem):
    """A problem that is compiled, not run.

    Attributes:
        rel: Whether there are logits of each query by offset, `rel_h` and `rel_w`.
        extra: Keys that every query sees.
        need_lse: Whether the log-sum-exp has a gradient.
    """

    rel: bool = False
    extra: int = 0
    need_lse: bool = False

    EVERY: ClassVar[str] = "every-bias"
    """First word of the name of the problem that uses all kernels with every bias."""


def compiled_problems() -> list[Problem]:
    """Return all problems: shapes of the networks first."""
    measured = attention_problems(torch.device("cuda"), None, quick=False)
    return [*measured, *_halo(), *_neighborhoods(), *_rare()]


def _halo() -> list[Problem]:
    """Return HaloNet's attention with relative logits: masked as in the paper, and stages with wider heads."""
    masked, zero = Window.halo(8, 3), Window.halo(8, 3, "zero")
    half = Window.halo(8, 3, query_stride=2)
    return [
        Shape("halonet B128 64x64 h4 c16 b8 h3 rel", masked, (64, 64), 128, 4, 16, rel=True),
        Shape("halonet B128 64x64 h2 c64 b8 h3 rel", masked, (64, 64), 128, 2, 64, rel=True),
        Shape("halonet B128 64x64 h2 c64 b8 h3 rel zero", zero, (64, 64), 128, 2, 64, rel=True),
        Shape("halonet B128 32x32 h8 c16 b8 h3 r2 rel", half, (32, 32), 128, 8, 16, rel=True),
    ]


def _neighborhoods() -> list[Problem]:
    """Return stage 1 of NAT with other windows and head dims, all with relative bias."""
    shapes = [(3, 32), (5, 32), (9, 32), (13, 32), (7, 8), (7, 20), (7, 24), (7, 48), (7, 64), (7, 128)]
    return [
        Problem(f"nat-1 B128 56x56 h2 c{c} k{k} d1 rpb", Window.neighborhood(k), (56, 56), 128, 2, c, True)
        for k, c in shapes
    ]


def _rare() -> list[Problem]:
    """Return rules that are not plain, and the problem that uses every kernel."""
    causal, strided = Window.sequence(256, is_causal=True), Window.neighborhood(7, dilation=2, query_stride=2)
    return [
        Problem("causal B8 L4096 h8 c64 w256", causal, (1, 4096), 8, 8, 64),
        Problem("strided B128 28x28 h4 c32 k7 d2 r2 rpb", strided, (28, 28), 128, 4, 32, True),
        Shape("extra B128 14x14 h8 c32 k7 x4 rpb", Window.neighborhood(7), (14, 14), 128, 8, 32, True, extra=4),
        Shape(
            f"{Shape.EVERY} B2 28x28 h2 c32 k7 x3 rpb rel lse",
            Window.neighborhood(7),
            (28, 28),
            2,
            2,
            32,
            True,
            rel=True,
            extra=3,
            need_lse=True,
        ),
    ]


def make_problem(case: Problem, dtype: torch.dtype) -> attention.Problem:
    """Return a problem of the kernels with tensors that nobody may read; a kernel does not depend on the batch."""
    batch = min(case.batch, 2)
    maps = (batch, *case.size, case.heads, case.head_dim)
    queries = (batch, *case.window.num_queries(case.size), case.heads)
    tables = [2 * k - 1 for k in case.window.kernel_size]
    shape = case if isinstance(case, Shape) else None
    shapes: dict[str, tuple[int, ...]] = {"q": (*queries, case.head_dim), "k": maps, "v": maps}
    if case.rpb:
        shapes["rpb"] = (case.heads, *tables)
    if isinstance(case, HaloLayer) or (shape and shape.rel):
        shapes |= {"rel_h": (*queries, tables[0]), "rel_w": (*queries, tables[1])}
    if shape and shape.extra:
        tokens = (batch, shape.extra, case.heads, case.head_dim)
        shapes |= {"extra_k": tokens, "extra_v": tokens}
    tensors = {name: torch.empty(size, dtype=dtype) for name, size in shapes.items()}
    need_lse = shape is not None and shape.need_lse
    return attention.Problem(**tensors, window=case.window, scale=case.head_dim**-0.5, need_lse=need_lse)
