"""NATTEN's fused CUDA kernels, where the installed package has them: `libnatten`, without bias.

Never its `flex` path, which on CPUs holds all scores of the map: a problem without a kernel is refused.
"""

from __future__ import annotations

from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.tracing import is_transformed

try:
    import natten
    from natten.backends import choose_backend
except ImportError:
    natten = None


def can_run(problem: Problem) -> str | None:
    """Return why this backend cannot run the problem, or None."""
    p, window = problem, problem.window
    for name in p.tensors:
        if name not in ("q", "k", "v"):
            return f"it does not take {name}"
    if window.boundary != "shift":
        return f"its windows move inward at the border; boundary is {window.boundary!r}"
    if window.query_stride != (1, 1):
        return f"it has as many queries as keys; query_stride is {window.query_stride}"
    for k, d, length in _axes(p):
        if k < 2 or k * d > length:
            return f"kernel_size must be >= 2 and kernel_size * dilation <= {length}; got {k} and {d}"
    if p.scale == 0:
        return "it takes a scale of 0 for none given"
    if p.need_lse and p.needs_grad:
        return "it drops the gradient of the log-sum-exp"
    if is_transformed():
        return "torch.func does not reach through it"
    if p.q.device.type != "cuda":
        return f"its kernels run on CUDA devices, and the maps are on {p.q.device}"
    if natten is None:
        return "natten is not installed: pip install 'visionattn[natten]', which compiles it where CUDA and CMake are"
    if not natten.HAS_LIBNATTEN:
        return f"natten {natten.__version__} is installed without libnatten, its kernels"
    if not _kernel(p):
        return f"it has no kernel for head_dim {p.q.shape[-1]}, v_dim {p.v.shape[-1]}, {p.q.dtype} on this device"
    return None


def attention(problem: Problem, need_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Compute `softmax(scale q.k) v` over each query's window; see `Problem` for the shapes."""
    p, w = problem, problem.window
    one_row = p.size[0] == 1
    attend, first = (natten.na1d, 1) if one_row else (natten.na2d, 0)
    out, lse = attend(
        *((p.q[:, 0], p.k[:, 0], p.v[:, 0]) if one_row else (p.q, p.k, p.v)),
        w.kernel_size[first:],
        stride=w.stride[first:],
        dilation=w.dilation[first:],
        is_causal=w.is_causal[first:],
        scale=p.scale,
        backend=_kernel(p),
        return_lse=True,
    )
    if one_row:
        out, lse = out[:, None], lse[:, None]
    return out, lse.float() if need_lse else None


def _axes(problem: Problem) -> list[tuple[int, int, int]]:
    """Return kernel, dilation and length of each axis; a map of one row is a sequence."""
    axes = list(zip(problem.window.kernel_size, problem.window.dilation, problem.size, strict=True))
    return axes[1:] if axes[0][0] == axes[0][2] == 1 else axes


def _kernel(problem: Problem) -> str | None:
    """Return the name of NATTEN's kernel for these tensors, by NATTEN's own rules."""
    try:
        name = choose_backend(problem.q, problem.k, problem.v, torch_compile=False)
    except NotImplementedError:
        return None
    return None if name == "flex-fna" else str(name)
