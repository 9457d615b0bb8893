"""What a tile costs: an estimate of the time in which a multiprocessor issues its instructions.

Issued instructions bound the kernels nearly everywhere, not memory or tensor cores. The numbers are fitted to machine
code for compute capability 9.0 (`kernels/bench/compile_report.py`), not to a clock.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from visionattn_kernels.attention.triton.plan import Rectangle, Tile
from visionattn_kernels.window import Window

BY_KEY = ("key", "token")
"""Kernels that keep keys and walk over queries."""

THREADS = 32
"""Of a warp."""

MAX_WARPS = 64
"""Warps that a multiprocessor holds."""

MAX_PROGRAMS = 32
"""Programs that a multiprocessor holds."""

REGISTERS = 65536
"""Of a multiprocessor."""

MAX_REGISTERS = 255
"""Of a thread; what it needs beyond them is spilled to memory."""

SHARED_BYTES = 160 << 10
"""Shared memory of a multiprocessor of compute capability 8.0; 9.0 has more."""

LATENCY = 8.0
"""Warps with which a multiprocessor issues at half its rate: others wait for results and loads."""


class Cost(NamedTuple):
    """What one kind of kernel issues and keeps.

    Attributes:
        products: Matrix products of a turn of the loop: each `[M, c]` by `[c, N]`.
        score: Instructions per score of a turn, besides products.
        turn: Instructions per warp and turn.
        program: Instructions per warp and program.
        registers: Registers per thread, besides those of scores and sums.
        scores: Registers per score of a thread.
        sums: Results `[kept, c]` that are summed in registers.
    """

    products: int
    score: float
    turn: float
    program: float
    registers: float
    scores: float
    sums: int


COSTS = {
    "forward": Cost(2, 18.0, 150.0, 600.0, 70.0, 4.0, 1),
    "query": Cost(3, 18.0, 150.0, 800.0, 70.0, 4.0, 1),
    "key": Cost(4, 20.0, 250.0, 800.0, 80.0, 5.0, 2),
    "token": Cost(4, 12.0, 150.0, 600.0, 60.0, 4.0, 2),
    "offset": Cost(2, 18.0, 300.0, 600.0, 70.0, 5.0, 0),
}

PRODUCT = {2: 1.5 / 2048, 4: 1.2 / 32}
"""Instructions of a warp per multiplication, with loads of operands, by bytes of a number: float32 has no tensor
cores."""

LOAD = 12.0
"""Instructions per 16 bytes that a thread loads from a map."""


def estimate(kind: str, tile: Tile, pairs: int, programs: int, channels: int, itemsize: int) -> float:
    """Return the cost of a tile for one image and head, in instructions of a warp at the full rate of issue.

    Args:
        kind: Of kernel.
        tile: Which tile.
        pairs: Turns of the loops of all programs: pairs of a tile and a rectangle that it walks over.
        programs: Tiles of the map.
        channels: Of a query, key or value.
        itemsize: Bytes of a number.
    """
    cost = COSTS[kind]
    kept, walked = math.prod(tile.query), math.prod(tile.key)
    if kind in BY_KEY:
        kept, walked = walked, kept
    scores = kept * walked
    loads = 2 * channels * itemsize / 16 / THREADS * LOAD  # two maps
    turn = (
        cost.turn * tile.num_warps
        + cost.score * scores / THREADS
        + cost.products * PRODUCT[itemsize] * scores * channels
        + loads * walked
    )
    return (pairs * turn + programs * (cost.program * tile.num_warps + loads * kept)) / _rate(
        cost, tile, kept, walked, channels, itemsize
    )


def _rate(cost: Cost, tile: Tile, kept: int, walked: int, channels: int, itemsize: int) -> float:
    """Return the share of cycles in which a multiprocessor issues an instruction."""
    threads = THREADS * tile.num_warps
    registers = cost.registers + (cost.scores * kept * walked + cost.sums * kept * channels) / threads
    # What is spilled is written and read.
    spilled = max(1.0, registers / MAX_REGISTERS)
    shared = (tile.num_stages * walked * 2 + kept) * channels * itemsize
    programs = min(
        MAX_PROGRAMS,
        MAX_WARPS // tile.num_warps,
        max(1, REGISTERS // int(threads * min(registers, MAX_REGISTERS))),
        max(1, SHARED_BYTES // shared),
    )
    warps = programs * tile.num_warps
    return warps / (warps + LATENCY) / spilled**2


def count_tiles(window: Window, size: tuple[int, int], tile: Rectangle, by_key: bool) -> int:
    """Return the number of tiles of queries, or of keys, that cover a map; none reaches over a dilation group."""
    total = 1
    for axis, length, side in zip(window.axes, size, tile, strict=True):
        count, step = length, axis.dilation
        if not by_key:
            count, step = axis.num_queries(length), step // math.gcd(step, axis.query_stride)
        total *= sum(-(-len(range(group, count, step)) // side) for group in range(step))
    return total
