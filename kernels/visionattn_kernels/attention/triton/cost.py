"""Cost of a tile: an estimate from the instructions that it issues, and from what it loads and multiplies.

The numbers are fitted to machine code for compute capability 9.0 (`kernels/bench/compile_report.py`), not to a clock.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from visionattn_kernels.attention.triton.plan import Rectangle, Tile
from visionattn_kernels.window import Window

BY_KEY = ("key", "token")
"""Kernels that keep keys and walk over queries."""

THREADS = 32
"""Threads of a warp."""

MAX_WARPS = 64
"""Warps that a multiprocessor holds."""

MAX_PROGRAMS = 32
"""Programs that a multiprocessor holds."""

REGISTERS = 65536
"""Registers of a multiprocessor."""

MAX_REGISTERS = 255
"""Registers that a thread may have; what it asks for beyond them is spilled to memory."""

SAFE_REGISTERS = 240
"""Registers of a thread by estimate, with a margin for its error."""

SHARED = 160 << 10
"""Bytes of shared memory of a multiprocessor of compute capability 8.0; 9.0 has more."""

L2_BYTES = 6.0
"""Bytes from the second-level cache in the time of one issued instruction, at the rates of an H100 (A100: 7)."""

MULTIPLIES = {True: 512.0, False: 256.0}
"""Multiplications of tensor cores in the same time, by whether their operands are in shared memory."""

LATENCY = 8.0
"""Warps with which a multiprocessor issues at half its rate: others wait for results and loads."""


class Cost(NamedTuple):
    """Instructions and registers of one kind of kernel, with a table of biases.

    Attributes:
        products: Matrix products of a turn of the loop, each of `[M, c]` and `[c, N]`.
        score: Instructions per score of a turn, besides products: rule, bias, softmax.
        turn: Instructions per warp and turn.
        base: Registers of a thread, besides those of matrices.
        matrices: `[M, N]` that are in registers at once: scores, their gradients.
        sums: `[kept, c]` that are in registers: results.
    """

    products: int
    score: float
    turn: float
    base: float
    matrices: int
    sums: int


COSTS = {
    "forward": Cost(products=2, score=12.5, turn=67, base=30, matrices=1, sums=1),
    "query": Cost(products=3, score=10.0, turn=70, base=30, matrices=2, sums=1),
    "key": Cost(products=4, score=16.0, turn=87, base=60, matrices=2, sums=2),
    "token": Cost(products=4, score=8.0, turn=70, base=60, matrices=2, sums=2),
    "offset": Cost(products=2, score=7.0, turn=34, base=60, matrices=3, sums=0),
}

PRODUCT = {2: 1.26 / 2048, 4: 1.2 / 32}
"""Instructions of a warp per multiplication, with loads of operands, by bytes of a number. Without TF32, float32 has no
tensor cores."""

LOAD = 14.0
"""Instructions per 16 bytes that a thread loads from a map."""

PROGRAM = 300.0
"""Instructions per warp and program, besides loads."""

MATRIX, SUM, OPERANDS = 1.6, 1.5, 40.0
"""Registers of a thread: per number of `matrices`, per number of `sums`, and for operands."""


def estimate(kind: str, tile: Tile, pairs: int, programs: int, channels: int, itemsize: int) -> float:
    """Return the cost of a tile for one image and head, in instructions of a warp.

    Args:
        kind: Of kernel.
        tile: Which tile.
        pairs: Turns of the loops of all programs: pairs of a tile and a rectangle that it walks over.
        programs: Tiles that cover the map.
        channels: Of a query, key or value.
        itemsize: Bytes of a number.
    """
    kept, walked = _areas(kind, tile)
    vector = 2 * channels * itemsize  # queries with gradients, or keys with values
    turn = count_instructions(kind, tile, channels, itemsize)
    program = PROGRAM * tile.num_warps + 2 * LOAD * kept * vector / (16 * THREADS)  # loaded and stored
    waiting = 1 + LATENCY / count_warps(kind, tile, channels, itemsize)
    spilled = max(1.0, count_registers(kind, tile, channels, itemsize) / SAFE_REGISTERS)
    issued = (pairs * turn + programs * program) * waiting * spilled**2
    loaded = (pairs * _loaded(kind, tile) + programs * kept) * vector / L2_BYTES
    multiplied = 0.0
    if itemsize == 2:
        products = COSTS[kind].products * pairs * kept * walked * channels
        multiplied = products / MULTIPLIES[_multiplies_shared(tile, kept, itemsize)]
    # The three overlap, though not wholly.
    return math.hypot(issued, loaded, multiplied)


def count_instructions(kind: str, tile: Tile, channels: int, itemsize: int) -> float:
    """Return the instructions of all warps in one turn of the loop."""
    cost, (kept, walked) = COSTS[kind], _areas(kind, tile)
    return (
        cost.turn * tile.num_warps
        + cost.score * kept * walked / THREADS
        + cost.products * PRODUCT[itemsize] * kept * walked * channels
        + 2 * _loaded(kind, tile) * channels * itemsize / (16 * THREADS) * LOAD
    )


def count_registers(kind: str, tile: Tile, channels: int, itemsize: int) -> float:
    """Return the registers that a thread asks for."""
    cost, (kept, walked) = COSTS[kind], _areas(kind, tile)
    numbers = MATRIX * cost.matrices * kept * walked + SUM * cost.sums * kept * channels
    operands = 0.0 if _multiplies_shared(tile, kept, itemsize) else OPERANDS
    return itemsize / 2 * (cost.base + operands + numbers / (THREADS * tile.num_warps))


def count_shared(kind: str, tile: Tile, channels: int, itemsize: int) -> int:
    """Return the bytes of shared memory of a program."""
    kept, walked = _areas(kind, tile)
    buffers = tile.num_stages if _multiplies_shared(tile, kept, itemsize) else tile.num_stages - 1
    return ((1 if kind == "forward" else 2) * kept + 2 * buffers * walked) * channels * itemsize


def count_warps(kind: str, tile: Tile, channels: int, itemsize: int) -> int:
    """Return the warps that a multiprocessor holds at once."""
    registers = THREADS * tile.num_warps * min(MAX_REGISTERS, int(count_registers(kind, tile, channels, itemsize)))
    shared = SHARED // count_shared(kind, tile, channels, itemsize)
    return max(1, min(MAX_PROGRAMS, MAX_WARPS // tile.num_warps, REGISTERS // registers, shared)) * tile.num_warps


def count_tiles(window: Window, size: tuple[int, int], tile: Rectangle, by_key: bool) -> int:
    """Return the number of tiles of queries, or of keys, that cover a map; none reaches over a dilation group."""
    total = 1
    for axis, length, side in zip(window.axes, size, tile, strict=True):
        count, step = length, axis.dilation
        if not by_key:
            count, step = axis.num_queries(length), step // math.gcd(step, axis.query_stride)
        total *= sum(-(-len(range(group, count, step)) // side) for group in range(step))
    return total


def _multiplies_shared(tile: Tile, kept: int, itemsize: int) -> bool:
    """Return whether products read their operands from shared memory, as those of four warps together do."""
    return tile.num_warps >= 4 and kept >= 64 and itemsize == 2


def _loaded(kind: str, tile: Tile) -> int:
    """Return how many vectors a program loads in a turn; `by_offset` turns over images, and keeps none."""
    kept, walked = _areas(kind, tile)
    return kept + walked if kind == "offset" else walked


def _areas(kind: str, tile: Tile) -> tuple[int, int]:
    """Return how many vectors a program keeps, and how many it walks over in a turn."""
    areas = math.prod(tile.query), math.prod(tile.key)
    return areas[::-1] if kind in BY_KEY else areas
