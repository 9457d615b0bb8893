"""Check of correctness before timing: outputs and gradients of some queries against an explicit softmax in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bench.problems import Problem
from visionattn_kernels import Window

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest error, relative to the largest value (or 1) of the same tensor."""

MAX_SCORES = {"cpu": 1 << 25, "cuda": 1 << 28}
"""Scores of the queries that are compared: 0.25 and 2 GiB, of which autograd holds several."""


@dataclass(frozen=True)
class Gate:
    """Expected results of a problem's first image, at the queries that are compared.

    Attributes:
        problem: The problem.
        tensors: Its tensors, as contenders get them.
        queries: `[S]` flat positions of the compared queries.
        grad: `[S, heads, head_dim]` gradient of the output at those; it is zero elsewhere.
        out: `[S, heads, head_dim]` the output, in float64.
        grads: Gradients of the tensors (maps: of the first image) in float64.
    """

    problem: Problem
    tensors: tuple[Tensor, ...]
    queries: Tensor
    grad: Tensor
    out: Tensor
    grads: tuple[Tensor, ...]

    @classmethod
    def create(cls, problem: Problem, tensors: tuple[Tensor, ...]) -> Gate:
        """Compute the expected results."""
        device, dtype = tensors[0].device, tensors[0].dtype
        queries = choose_queries(problem, MAX_SCORES[device.type]).to(device)
        first = [x[:1] if i < problem.num_maps else x for i, x in enumerate(tensors)]
        leaves = [x.detach().double().requires_grad_() for x in first]
        grad = torch.randn(len(queries), problem.heads, problem.head_dim, device=device).to(dtype)
        out = attend_rows(problem.arguments(*leaves), problem.window, queries)
        grads = torch.autograd.grad(out, leaves, grad.double())
        return cls(problem, tensors, queries, grad, out.detach(), grads)

    def errors(self, run: Callable[..., Tensor], backward: bool) -> dict[str, float]:
        """Return relative errors of the output and, with `backward`, of gradients; `run` maps tensors to the output."""
        tensors = self.tensors if backward else tuple(x.detach() for x in self.tensors)
        out = self.problem.to_heads_last(run(*tensors))[0].flatten(0, 1)[self.queries]
        found = {"output": _relative_error(out, self.out)}
        if backward:
            grads = torch.autograd.grad(out, self.tensors, self.grad)
            for i, (grad, expected) in enumerate(zip(grads, self.grads, strict=True)):
                one = grad[:1] if i < self.problem.num_maps else grad
                found[f"gradient of tensor {i}"] = _relative_error(one, expected)
        return found

    @property
    def tolerance(self) -> float:
        """Return the largest error that passes."""
        return TOLERANCE[self.tensors[0].dtype]


def choose_queries(problem: Problem, max_scores: int) -> Tensor:
    """Return flat positions of queries: all, or as many as `max_scores` allows, including the corners of the map."""
    height, width = problem.window.num_queries(problem.size)
    keys = [n + 2 * axis.margin(n) for axis, n in zip(problem.window.axes, problem.size, strict=True)]
    count = max(4, max_scores // (problem.heads * keys[0] * keys[1]))
    if count >= height * width:
        return torch.arange(height * width)
    corners = torch.tensor([0, width - 1, (height - 1) * width, height * width - 1])
    drawn = torch.randperm(height * width, generator=torch.Generator().manual_seed(0))[: count - 4]
    return torch.cat([corners, drawn]).unique()


def attend_rows(arguments: dict[str, Tensor], window: Window, queries: Tensor) -> Tensor:
    """Compute `windowed_attention` of one image at some queries only, written out: `[S, heads, head_dim]`.

    Args:
        arguments: Its tensors by name, of one image.
        window: Which keys a query sees.
        queries: `[S]` flat positions in the query map.
    """
    q, k, v = (arguments[name][0] for name in ("q", "k", "v"))
    y, x = queries // q.shape[1], queries % q.shape[1]
    axes = [(axis, n, axis.margin(n)) for axis, n in zip(window.axes, k.shape[:2], strict=True)]
    # Of the compared queries only: a sequence of 32,768 keys has tables of 8 GiB.
    (see_h, offset_h), (see_w, offset_w) = (axis.visible(n, at) for (axis, n, _), at in zip(axes, (y, x), strict=True))
    margin_h, margin_w = (margin for _, _, margin in axes)
    k, v = (F.pad(m, (0, 0, 0, 0, margin_w, margin_w, margin_h, margin_h)) for m in (k, v))

    # Letters: n head, s query, i j key, c channel.
    scores = torch.einsum("snc,ijnc->nsij", q[y, x] * q.shape[-1] ** -0.5, k)
    if "rpb" in arguments:
        scores = scores + arguments["rpb"][:, offset_h[:, :, None], offset_w[:, None, :]]
    if "rel_h" in arguments:
        rows, columns = (arguments[name][0, y, x].transpose(0, 1) for name in ("rel_h", "rel_w"))  # [n, s, R]
        scores = scores + rows.gather(-1, offset_h.expand(len(rows), -1, -1))[..., :, None]
        scores = scores + columns.gather(-1, offset_w.expand(len(rows), -1, -1))[..., None, :]
    visible = see_h[:, :, None] & see_w[:, None, :]
    probs = scores.masked_fill(~visible, -torch.inf).flatten(-2).softmax(-1)
    return torch.einsum("nsk,knc->snc", probs, v.flatten(0, 1))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    error = (found.detach().double() - expected).abs().max() / expected.abs().max().clamp(min=1)
    return float(error)
