"""Torch's `flex_attention`, compiled, with a block mask made of the same window.

Queries and keys are flattened to sequences. Blocks of 128 x 128 in which no query sees a key are skipped; inside the
others the window's rule is evaluated per element. Needs torch's compiler and what that needs: Triton and compute
capability 8.0 on CUDA, a C++ compiler on CPUs, where there is no backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from visionattn_kernels.attention.devices import find_cpp_compiler, refuse_triton
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.device_tables import device_tables
from visionattn_kernels.graph_constants import graph_constant
from visionattn_kernels.selected import find_spoilt
from visionattn_kernels.tracing import is_transformed
from visionattn_kernels.window import AxisWindow, Window, tabulate_axis

BLOCK = 128
PAIRS_PER_STEP = 1 << 24  # of queries and keys, while the block mask is made
MAX_COMPILED = 256  # kinds of arguments
LISTS = tuple(f"{kind}_{what}" for kind in ("kv", "full_kv", "q", "full_q") for what in ("num_blocks", "indices"))
SMALLEST_DIM_CUDA = 16

Modifier = Callable[..., Tensor]


def can_run(problem: Problem) -> str | None:
    """Return why this backend cannot run the problem, or None."""
    p, device = problem, problem.q.device.type
    for name in ("rel_h", "rel_w", "extra_k"):
        if name in p.tensors:
            return f"it does not take {name}"
    if p.window.boundary == "zero" and not all(p.window.is_causal):
        return "it has no keys beyond the border, which boundary 'zero' asks for"
    if reason := p.refuse_dtype(torch.float16, torch.bfloat16, torch.float32):
        return reason
    if 0 in p.q.shape or 0 in p.v.shape:
        return "it does not take empty tensors"
    if is_transformed():
        return "torch.func does not reach through it"
    if device == "cpu":
        if p.needs_grad:
            return "it has no gradient on CPUs"
        if torch.compiler.is_compiling():
            return "it does not compile as a part of another graph on CPUs"
        if p.need_lse:
            return "it gives no log-sum-exp on CPUs"
        return None if find_cpp_compiler() else "torch's compiler finds no C++ compiler: install one or set $CXX"
    if device != "cuda":
        return f"it runs on CPUs and CUDA devices, and the maps are on {p.q.device}"
    if reason := refuse_triton(p.q.device):
        return f"torch's compiler needs Triton: {reason}"
    if min(p.q.shape[-1], p.v.shape[-1]) < SMALLEST_DIM_CUDA:
        return f"head_dim and v_dim must be >= {SMALLEST_DIM_CUDA} on CUDA; got {p.q.shape[-1]} and {p.v.shape[-1]}"
    if p.rpb is not None and p.needs_grad and torch.are_deterministic_algorithms_enabled():
        return "the gradient of rpb is summed in no fixed order, and deterministic algorithms are asked for"
    return None


def attention(problem: Problem, need_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Compute `softmax(scale q.k + rpb) v` over each query's window; see `Problem` for the shapes."""
    p, where = problem, (problem.window, problem.size, problem.q.device)
    # Without a graph to record, leaves are still refused on CPUs for requiring gradients.
    given = p.tensors if torch.is_grad_enabled() else {name: x.detach() for name, x in p.tensors.items()}
    # Torch multiplies by zeros, and on CPUs drops scores of NaN: its kernels get neither, and what saw them is marked.
    spoilt = {name: find_spoilt(given[name]) for name in "qkv"}
    spoilt["out"] = spoilt["q"] | _see_any(spoilt["k"] | spoilt["v"], *where)
    q, k, v = (given[name].masked_fill(spoilt[name][..., None], 0).flatten(1, 2).transpose(1, 2) for name in "qkv")
    score_mod = _add_bias(given["rpb"], *where) if "rpb" in given else None
    if torch.compiler.is_compiling():
        attend = _attend
    else:
        kinds = ((x.shape, x.stride(), x.dtype, x.requires_grad) for x in (q, k, v, *list(given.values())[3:]))
        attend = _compile(*where, p.scale, need_lse, torch.is_grad_enabled(), *kinds)
    out, lse = attend(q, k, v, score_mod, make_block_mask(*where), p.scale, need_lse)
    queries = p.q.shape[1:3]
    out = out.transpose(1, 2).unflatten(1, queries).masked_fill(spoilt["out"][..., None], torch.nan)
    if lse is not None:
        lse = lse.transpose(1, 2).unflatten(1, queries).masked_fill(spoilt["out"], torch.nan)
    return out, lse


def _see_any(marked: Tensor, window: Window, size: tuple[int, int], device: torch.device) -> Tensor:
    """Return which queries `[B, Q_h, Q_w, heads]` see any of the marked keys `[B, H, W, heads]`."""
    see_h, see_w = (tables[3] for tables in _tabulate(window, size, device))
    return torch.einsum("yi,bijn,xj->byxn", see_h, marked.to(see_h.dtype), see_w) > 0


def _attend(
    q: Tensor, k: Tensor, v: Tensor, score_mod: Modifier | None, mask: BlockMask, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor | None]:
    out, aux = flex_attention(q, k, v, score_mod, mask, scale, return_aux=AuxRequest(lse=need_lse))
    return out, aux.lse


@lru_cache(maxsize=MAX_COMPILED)
def _compile(*key: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Compile `_attend` for one kind of arguments."""
    # Torch keeps what it compiled with the code of a function, up to 8 times, and then runs it uncompiled.
    function = FunctionType(_attend.__code__.replace(), _attend.__globals__, _attend.__name__)
    return torch.compile(function, fullgraph=True, dynamic=False)


def _tabulate(window: Window, size: tuple[int, int], device: torch.device) -> list[tuple[Tensor, ...]]:
    """Return `start`, `stop` and `index` of `AxisTables` and `[Q, L]` visible keys, for rows and columns."""
    return _constant_tables(tuple(window.to_ints()), size, device)[:2]


@graph_constant
def _constant_tables(window: tuple[int, ...], size: tuple[int, int], device: torch.device) -> list[tuple[Tensor, ...]]:
    """Return the tables of rows, of columns, and `LISTS`, as plain tuples, which are constants to the compiler."""
    return _cached_tables(window, size, device)


@device_tables
def _cached_tables(ints: tuple[int, ...], size: tuple[int, int], device: torch.device) -> list[tuple[Tensor, ...]]:
    window = Window.from_ints(ints)
    found: list[tuple[Tensor, ...]] = []
    for axis, length in zip(window.axes, size, strict=True):
        tables = tabulate_axis(axis, length, device)
        visible = axis.visible(length)[0].to(device, torch.float32)
        found.append((tables.start, tables.stop, tables.index, visible))
    return [*found, _list_pairs(window, size, found)]


@device_tables
def make_block_mask(window: Window, size: tuple[int, int], device: torch.device) -> BlockMask:
    """Return the blocks of queries and keys that hold pairs of the window, with the rule inside them; cached."""
    *axes, blocks = _constant_tables(tuple(window.to_ints()), size, device)
    lists: dict[str, Any] = dict(zip(LISTS, blocks, strict=True))
    lengths = math.prod(window.num_queries(size)), math.prod(size)
    return BlockMask(lengths, **lists, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=_see(window, size, axes))


def _list_pairs(window: Window, size: tuple[int, int], axes: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return `LISTS`: how many blocks are seen in part or in full by each block on the other side, and which."""
    mask, device = _see(window, size, axes), axes[0][0].device
    (height, width), keys = window.num_queries(size), size[0] * size[1]
    queries, blocks = height * width, -(-keys // BLOCK)
    key = torch.arange(blocks * BLOCK, device=device)
    some, every = [], []
    step = max(1, PAIRS_PER_STEP // (BLOCK * len(key)))
    for first in range(0, -(-queries // BLOCK), step):
        query = torch.arange(first * BLOCK, min(first + step, -(-queries // BLOCK)) * BLOCK, device=device)[:, None]
        inside = (query < queries) & (key < keys)
        seen = mask(0, 0, query.clamp(max=queries - 1), key.clamp(max=keys - 1)) & inside
        seen = seen.unflatten(0, (-1, BLOCK)).unflatten(-1, (blocks, BLOCK))
        some.append(seen.any(-1).any(1))
        every.append(seen.all(-1).all(1))
    full = torch.cat(every)
    partial = torch.cat(some) & ~full
    lists = BlockMask.from_kv_blocks(*_list_blocks(partial), *_list_blocks(full), BLOCK, seq_lengths=(queries, keys))
    return tuple(getattr(lists, name) for name in LISTS)


def _list_blocks(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks of each row are set, and their numbers, before all others."""
    order = torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]


def _see(window: Window, size: tuple[int, int], axes: Sequence[tuple[Tensor, ...]]) -> Modifier:
    """Return the window's rule in flex attention's form."""
    (rows, columns), (_, width), (tables_h, tables_w) = window.axes, size, axes
    queries_w = window.num_queries(size)[1]

    def see(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_rows = _see_axis(rows, tables_h, query // queries_w, key // width)
        return in_rows & _see_axis(columns, tables_w, query % queries_w, key % width)

    return see


def _see_axis(axis: AxisWindow, tables: tuple[Tensor, ...], query: Tensor, key: Tensor) -> Tensor:
    (start, stop, *_), member = tables, key // axis.dilation
    same_group = (key - query * axis.query_stride) % axis.dilation == 0
    return same_group & (member >= start[query]) & (member < stop[query])


def _add_bias(rpb: Tensor, window: Window, size: tuple[int, int], device: torch.device) -> Modifier:
    """Return the relative bias in flex attention's form."""
    (rows, columns), (_, width) = window.axes, size
    index_h, index_w = (tables[2] for tables in _tabulate(window, size, device))
    queries_w = window.num_queries(size)[1]

    def add(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Keys that a query does not see are asked for too, and masked afterwards.
        offset_h = key // width // rows.dilation - index_h[query // queries_w] + rows.kernel_size - 1
        offset_w = key % width // columns.dilation - index_w[query % queries_w] + columns.kernel_size - 1
        offset_h = offset_h.clamp(0, 2 * rows.kernel_size - 2)
        return score + rpb[head, offset_h, offset_w.clamp(0, 2 * columns.kernel_size - 2)]

    return add
