"""Estimate the time of a compiled kernel from its machine code. No clock has confirmed it: it ranks tiles, no more.

A kernel takes at least the longest of these, each at the full rate of its part of the GPU:

- issue: instructions of all warps, one per clock and scheduler;
- mufu: exponentials and other special functions;
- tensor: multiply-adds of the tensor cores;
- l2: wide loads of the loop, as if none hit the first-level cache;
- dram: each map read or written once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton.plan import Tile, key_tiles, query_tiles

PRODUCTS = {"forward": (1, 1), "query": (2, 1), "key": (2, 2), "token": (2, 2), "offset": (1, 1)}
"""Matrix products of a kernel, by head dims of keys and of values."""

MAPS = {"forward": 4, "query": 6, "key": 6, "token": 3, "offset": 4}
"""Maps of the size of the queries that a kernel reads and writes."""


class Machine(NamedTuple):
    """Rates of one GPU.

    Attributes:
        multiprocessors: How many there are.
        clock: In Hz, as it holds under load.
        mufu: Special functions per clock and multiprocessor.
        tensor: Multiply-adds of half precision per clock and multiprocessor, by instruction.
        l2: Bytes per second from the second-level cache.
        dram: Bytes per second from memory.
    """

    multiprocessors: int
    clock: float
    mufu: int
    tensor: dict[str, int]
    l2: float
    dram: float


MACHINES = {
    "sm_80": Machine(108, 1.35e9, 16, {"HMMA": 1024}, 4.0e12, 1.9e12),
    "sm_90": Machine(132, 1.7e9, 16, {"HGMMA": 2048, "HMMA": 1024}, 5.5e12, 3.3e12),
}
"""A100 and H100 (SXM)."""

LANES = 4 * 32
"""Instructions of threads that a multiprocessor issues per clock."""


def block_dims(problem: Problem) -> tuple[int, int]:
    """Return head dims of keys and of values as they lie in a program."""
    key, value = (max(16, triton.next_power_of_2(x.shape[-1])) for x in (problem.k, problem.v))
    return key, value


def multiplies_per_score(kind: str, problem: Problem) -> int:
    """Return the multiply-adds of matrix products that a score costs."""
    return sum(n * dim for n, dim in zip(PRODUCTS[kind], block_dims(problem), strict=True))


def count_useful(kind: str, problem: Problem) -> int:
    """Count the scores of one image and head that the rule asks for."""
    if kind == "token":
        assert problem.extra_k is not None
        return math.prod(problem.q.shape[1:3]) * problem.extra_k.shape[1]
    return problem.window.count_pairs(problem.size)


def count_visited(kind: str, problem: Problem, tile: Tile) -> tuple[int, int]:
    """Count the scores of one image and head that programs compute, and those of rectangles where none is masked."""
    queries, keys = math.prod(tile.query), math.prod(tile.key)
    if kind == "token":
        assert problem.extra_k is not None
        blocks = -(-math.prod(problem.q.shape[1:3]) // queries) * -(-problem.extra_k.shape[1] // keys)
        return blocks * queries * keys, 0
    turns = inside = queries * keys
    for axis, length, query, key in zip(problem.window.axes, problem.size, tile.query, tile.key, strict=True):
        tiles, step = (
            (key_tiles(axis, length, key), query) if kind == "key" else (query_tiles(axis, length, query), key)
        )
        lo, hi, every_lo, every_hi = tiles[:, 2:].unbind(1)
        turns *= int((-(lo - hi).div(step, rounding_mode="floor")).sum())
        # Rectangles begin at lo; the first inside is the first that begins at every_lo or later.
        whole = (every_hi - lo).div(step, rounding_mode="floor") + (lo - every_lo).div(step, rounding_mode="floor")
        inside *= int(whole.clamp(min=0).sum())
    return turns, inside


class Figures(NamedTuple):
    """Figures of the code that the estimate needs: instructions of threads, and bytes, per score.

    Attributes:
        issued: Instructions of the loop, on average.
        mufu: Special functions of the loop.
        loaded: Bytes of wide loads of the loop.
        outside: Instructions outside of the loop, of all programs of one image and head together.
        tensor_core: As `assembly.tensor_core` says.
    """

    issued: float
    mufu: float
    loaded: float
    outside: float
    tensor_core: str


def estimate(
    arch: str, kind: str, problem: Problem, images: int, tile: Tile, figures: Figures
) -> tuple[float, str] | None:
    """Return milliseconds for so many images, and what bounds them; None for a machine without known rates."""
    if arch not in MACHINES:
        return None
    machine = MACHINES[arch]
    parts = images * problem.q.shape[3]
    scores = parts * count_visited(kind, problem, tile)[0]
    clocks = machine.multiprocessors * machine.clock
    bounds = {
        "issue": (scores * figures.issued + parts * figures.outside) / LANES / clocks,
        "mufu": scores * figures.mufu / machine.mufu / clocks,
        "l2": scores * figures.loaded / machine.l2,
        "dram": parts * _map_bytes(kind, problem) / machine.dram,
    }
    rate = machine.tensor.get(figures.tensor_core.partition(" ")[0])
    if rate:
        slower = problem.q.element_size() // torch.bfloat16.itemsize
        bounds["tensor"] = scores * multiplies_per_score(kind, problem) * slower / rate / clocks
    bound = max(bounds, key=lambda name: bounds[name])
    return 1e3 * bounds[bound], bound


def _map_bytes(kind: str, problem: Problem) -> int:
    """Return the bytes of maps that one image and head reads and writes."""
    p = problem
    queries, itemsize = math.prod(p.q.shape[1:3]), p.q.element_size()
    rel = sum(x.shape[-1] for x in (p.rel_h, p.rel_w) if x is not None)
    return queries * (MAPS[kind] * p.q.shape[-1] + rel) * itemsize
