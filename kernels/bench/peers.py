"""Contenders on a problem: this library, and others' implementations of the same function."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.bench.measure import Run
from kernels.bench.problems import HaloLayer, Problem
from kernels.bench.report import package_version
from kernels.bench.script import first_line
from visionattn_kernels import Window, windowed_attention
from visionattn_kernels.window import AxisWindow

PEERS = ("gather", "flex", "sdpa-full", "sdpa-flash", "sdpa-cudnn", "natten", "timm")
OURS, EARLIER, TIMM = "visionattn", "earlier", "timm"
MAX_GATHERED_BYTES = 16 << 30
"""Of the gathered keys and values and the gradients of both: the peer holds all four at once."""


@dataclass(frozen=True)
class Contender:
    """An implementation of one problem.

    Attributes:
        name: What it is called in the tables.
        version: Of the package that it comes from.
        build: Makes what is timed; plans, masks and compilation happen here or in the first run.
        same_function: Whether its output must equal the window's (full attention computes another function).
        backward: Whether it has one on this device.
        ours: Whether it is this library.
    """

    name: str
    version: str
    build: Callable[[], Run]
    same_function: bool = True
    backward: bool = True
    ours: bool = False


def ours(problem: Problem, backend: str | None = None) -> Contender:
    """Return this library, with the backend that it chooses or a named one."""

    def run(*tensors: Tensor) -> Tensor:
        out = windowed_attention(
            **problem.arguments(*tensors),  # type: ignore[arg-type]
            window=problem.window,
            backend=backend,
        )
        assert isinstance(out, Tensor)
        return problem.to_output(out)

    return Contender(backend or OURS, package_version(OURS), lambda: run, ours=True)


def peers(problem: Problem, device: torch.device, dtype: torch.dtype) -> Iterator[Contender]:
    """Yield all other implementations on this device, and full attention, which computes more."""
    window, size, cuda = problem.window, problem.size, device.type == "cuda"
    torch_version = torch.__version__
    if isinstance(problem, HaloLayer):
        layer = problem
        if (timm_version := package_version("timm")) != "absent":
            yield Contender("timm", timm_version, lambda: timm_layer(layer, device))
        return
    if window.boundary == "shift" and gathered_bytes(problem, dtype) <= MAX_GATHERED_BYTES:
        yield Contender("gather", torch_version, lambda: gather(window, size, device))
    yield Contender("flex", torch_version, lambda: flex(window, size, device, problem.rpb), backward=cuda)
    if problem.rpb:
        return
    for name in ("sdpa-flash", "sdpa-cudnn") if cuda else ("sdpa-full",):
        yield Contender(name, torch_version, lambda name=name: full_attention(name), same_function=False)  # type: ignore[misc]
    if window.boundary == "shift" and (natten_version := find_natten()) is not None:
        yield Contender("natten", natten_version, lambda: natten(window), backward=cuda)


def gathered_bytes(problem: Problem, dtype: torch.dtype) -> int:
    """Count the bytes of gathered keys and values and of the gradients of both."""
    elements = problem.batch * math.prod(problem.size) * problem.heads * problem.head_dim
    return 4 * elements * math.prod(problem.window.kernel_size) * dtype.itemsize


@lru_cache(maxsize=64)
def gather(window: Window, size: tuple[int, int], device: torch.device) -> Run:
    """Return neighborhood attention in plain torch: one gathered copy of the keys per query, no tiles."""
    (see_h, offset_h), (see_w, offset_w) = (a.visible(n) for a, n in zip(window.axes, size, strict=True))
    rows, columns = (see.nonzero()[:, 1].view(len(see), -1) for see in (see_h, see_w))  # [H, k_h], [W, k_w]
    index = (rows[:, None, :, None] * size[1] + columns[None, :, None, :]).flatten(2).flatten(0, 1).to(device)
    row_offset, column_offset = (o.gather(1, x) for o, x in ((offset_h, rows), (offset_w, columns)))
    bias_row = row_offset[:, None, :, None].to(device)
    bias_column = column_offset[None, :, None, :].to(device)

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None = None) -> Tensor:
        near_k, near_v = k.flatten(1, 2)[:, index], v.flatten(1, 2)[:, index]  # [B, L, keys, heads, dim]
        scores = torch.einsum("blhc,blkhc->blhk", q.flatten(1, 2) * q.shape[-1] ** -0.5, near_k)
        if rpb is not None:
            scores = scores + rpb[:, bias_row, bias_column].flatten(3).flatten(1, 2).transpose(0, 1)
        return torch.einsum("blhk,blkhc->blhc", scores.softmax(-1), near_v).view(*q.shape[:-1], -1)

    return attend


def flex(window: Window, size: tuple[int, int], device: torch.device, rpb: bool) -> Run:
    """Return compiled `flex_attention` on row-major tokens: window as block mask, bias as score modification.

    Both are arithmetic alone, without tables in memory.
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    from visionattn_kernels.attention.flex import make_block_mask

    (rows, columns), (height, width) = window.axes, size

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_rows, _ = relate(rows, height, query // width, key // width)
        in_columns, _ = relate(columns, width, query % width, key % width)
        return in_rows & in_columns

    blocks = make_block_mask(window, size, device)  # in steps; torch's own holds all pairs of positions at once
    block_mask = BlockMask.from_kv_blocks(
        blocks.kv_num_blocks,
        blocks.kv_indices,
        blocks.full_kv_num_blocks,
        blocks.full_kv_indices,
        BLOCK_SIZE=blocks.BLOCK_SIZE,
        mask_mod=mask,
        seq_lengths=blocks.seq_lengths,
    )

    def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None) -> Tensor:
        def add_bias(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            assert table is not None
            _, row = relate(rows, height, query // width, key // width)
            _, column = relate(columns, width, query % width, key % width)
            return score + table[head, row, column]

        out = flex_attention(q, k, v, score_mod=add_bias if rpb else None, block_mask=block_mask)
        assert isinstance(out, Tensor)
        return out

    torch.compiler.reset()  # a second map size would be compiled with dynamic shapes, which is slower
    compiled = torch.compile(attend, dynamic=False)

    def run(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Tensor:
        q, k, v = (x.flatten(1, 2).transpose(1, 2).contiguous() for x in (q, k, v))
        return compiled(q, k, v, table).transpose(1, 2).unflatten(1, size)

    return run


def relate(axis: AxisWindow, length: int, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether queries see keys on an axis with a query at each position, and the entries of relative tables."""
    if axis.dilation == 1:
        start, stop = axis.interval(query, torch.full_like(query, length))
        same_group = key >= 0
    else:
        group = query % axis.dilation
        same_group = key % axis.dilation == group
        query, key = query // axis.dilation, key // axis.dilation
        start, stop = axis.interval(query, (length - group + axis.dilation - 1) // axis.dilation)
    offset = (key - query + axis.kernel_size - 1).clamp(0, 2 * axis.kernel_size - 2)
    return same_group & (key >= start) & (key < stop), offset


def full_attention(name: str) -> Run:
    """Return attention over the whole map: more work, by torch's kernel `name` or, for "sdpa-full", its choice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"sdpa-flash": [SDPBackend.FLASH_ATTENTION], "sdpa-cudnn": [SDPBackend.CUDNN_ATTENTION]}.get(name)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.flatten(1, 2).transpose(1, 2).contiguous() for x in (q, k, v))
        if backends is None:
            return F.scaled_dot_product_attention(q, k, v)
        with sdpa_kernel(backends):
            return F.scaled_dot_product_attention(q, k, v)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v).transpose(1, 2).unflatten(1, q.shape[1:3])

    return run


@lru_cache(maxsize=1)
def find_natten() -> str | None:
    """Return NATTEN's version, with a note if it lacks its kernels; None if it cannot be imported, with a message."""
    found = package_version("natten")
    if found == "absent":
        return None
    try:
        module = importlib.import_module("natten")
    except Exception as failure:  # such as a library of another torch
        print(f"natten {found} cannot be imported and is left out: {first_line(failure)}", file=sys.stderr)
        return None
    return found if getattr(module, "HAS_LIBNATTEN", False) else f"{found} (no libnatten)"


def natten(window: Window) -> Run:
    """Return NATTEN, with the backend that it chooses."""
    from natten.functional import na1d, na2d

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[1] == 1:
            (_, kernel), (_, stride), (_, dilation) = window.kernel_size, window.stride, window.dilation
            return na1d(q[:, 0], k[:, 0], v[:, 0], kernel, stride=stride, dilation=dilation)[:, None]
        return na2d(q, k, v, window.kernel_size, stride=window.stride, dilation=window.dilation)

    return attend


def timm_layer(problem: HaloLayer, device: torch.device) -> Run:
    """Return the layer `HaloAttn` of timm; the problem's parameters replace its own, without a copy."""
    from timm.layers.halo_attn import HaloAttn

    layer = HaloAttn(
        problem.heads * problem.head_dim,
        num_heads=problem.heads,
        dim_head=problem.head_dim,
        block_size=problem.block_size,
        halo_size=problem.halo_size,
        device=device,
    )
    places: list[tuple[nn.Module, str]] = [
        (layer.q, "weight"),
        (layer.kv, "weight"),
        (layer.pos_embed, "height_rel"),
        (layer.pos_embed, "width_rel"),
    ]
    for module, name in places:
        delattr(module, name)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        for (module, name), parameter in zip(places, parameters, strict=True):
            setattr(module, name, parameter)
        out = layer(x)
        assert isinstance(out, Tensor)
        return out

    return run
