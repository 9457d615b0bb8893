"""Tests of backends: inputs for a window, results with all gradients, and the bound on their error."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from visionattn_kernels.attention.api import windowed_attention
from visionattn_kernels.window import Window

TINY = {torch.float64: 1e-11, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 2e-2}
"""Error, relative to the largest value, that is always granted: a result may happen to be exact in the eager one."""


def make_inputs(
    window: Window,
    size: tuple[int, int],
    *,
    batch: int = 2,
    heads: int = 2,
    head_dim: int = 8,
    v_dim: int | None = None,
    rpb: bool = False,
    rel: bool = False,
    num_extra: int = 0,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Make random tensors by argument name of `windowed_attention`, all requiring gradients.

    Args:
        window: Which keys a query sees.
        size: Height and width of the key map.
        batch: Images.
        heads: Attention heads.
        head_dim: Channels of a query's head.
        v_dim: Channels of a value's head; `head_dim` by default.
        rpb: Adds a relative bias table.
        rel: Adds relative logits by row and column.
        num_extra: Number of extra keys and values.
        dtype: Of every tensor.
        device: Where they lie.
        seed: Of the random numbers.
    """
    v_dim = head_dim if v_dim is None else v_dim
    queries, tables = window.num_queries(size), tuple(2 * k - 1 for k in window.kernel_size)
    shapes: dict[str, tuple[int, ...]] = {
        "q": (batch, *queries, heads, head_dim),
        "k": (batch, *size, heads, head_dim),
        "v": (batch, *size, heads, v_dim),
    }
    if rpb:
        shapes["rpb"] = (heads, *tables)
    if rel:
        shapes |= {"rel_h": (batch, *queries, heads, tables[0]), "rel_w": (batch, *queries, heads, tables[1])}
    if num_extra:
        shapes |= {"extra_k": (batch, num_extra, heads, head_dim), "extra_v": (batch, num_extra, heads, v_dim)}
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def run_with_gradients(
    window: Window,
    inputs: Mapping[str, Tensor],
    backend: str | None,
    dtype: torch.dtype | None = None,
    seed: int = 1,
    scale: float | None = None,
) -> dict[str, Tensor]:
    """Return output, log-sum-exp and gradient of each input under random output gradients, in float64 on the CPU.

    Args:
        window: Which keys a query sees.
        inputs: Arguments of `windowed_attention` by name.
        backend: Which one computes.
        dtype: Casts the inputs first.
        seed: Of the output gradients.
        scale: Of the products `q.k`, as in `windowed_attention`.
    """
    leaves = {name: x.detach().to(dtype or x.dtype).requires_grad_() for name, x in inputs.items()}
    q, k, v = (leaves[name] for name in "qkv")
    rest = {name: x for name, x in leaves.items() if name not in ("q", "k", "v")}
    out, lse = windowed_attention(q, k, v, window, **rest, scale=scale, return_lse=True, backend=backend)
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in (out, lse)]
    found = torch.autograd.grad((out, lse), list(leaves.values()), grads)
    results = {"out": out, "lse": lse, **{f"grad_{name}": g for name, g in zip(leaves, found, strict=True)}}
    return {name: x.detach().double().cpu() for name, x in results.items()}


Granted = dict[str, tuple[Tensor, float]]
"""Each result as it should be, and by how much a backend may differ from it."""


def assert_matches_reference(
    window: Window,
    inputs: Mapping[str, Tensor],
    backend: str,
    dtype: torch.dtype = torch.float64,
    scale: float | None = None,
    slack: float = 2,
) -> None:
    """Compare a backend with the reference in float64: outputs and every gradient, see `grant`.

    Raises:
        AssertionError: Names the result, its error and the bound.
    """
    granted = grant(window, inputs, dtype, scale, slack)
    assert_is_granted(window, inputs, backend, granted, dtype, scale)


def grant(
    window: Window,
    inputs: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float64,
    scale: float | None = None,
    slack: float = 2,
) -> Granted:
    """Return outputs and gradients of the reference in float64, and what a backend may differ from each.

    That is `slack` times the error of the eager reference in the same dtype, or `TINY` if that is more.
    """
    rounded = {name: x.detach().to(dtype) for name, x in inputs.items()}
    truth = run_with_gradients(window, rounded, "reference", torch.float64, scale=scale)
    eager = run_with_gradients(window, rounded, "reference", scale=scale)
    granted = {}
    for name, expected in truth.items():
        if expected.numel():
            tiny = TINY[dtype] * max(1.0, expected.abs().max().item())
            granted[name] = expected, max(tiny, slack * (eager[name] - expected).abs().max().item())
    return granted


def assert_is_granted(
    window: Window,
    inputs: Mapping[str, Tensor],
    backend: str,
    granted: Granted,
    dtype: torch.dtype = torch.float64,
    scale: float | None = None,
) -> None:
    """Compare a backend with what `grant` returned.

    Raises:
        AssertionError: Names the result, its error and the bound.
    """
    ours = run_with_gradients(window, inputs, backend, dtype, scale=scale)
    for name, (expected, bound) in granted.items():
        error = (ours[name] - expected).abs().max().item()
        # Written so that NaN fails.
        assert error <= bound, f"{name} of {backend} is off by {error:.3g}, bound {bound:.3g}, for {window}"
