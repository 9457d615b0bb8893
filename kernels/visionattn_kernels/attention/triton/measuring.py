"""The fastest of some tiles by the clock of the GPU, in bounded time; and launches that can be compiled ahead.

Triton's compiler releases Python's lock in all but about a tenth of its time, so threads compile side by side.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextvars import ContextVar
from typing import Any

import torch
import triton
from triton.runtime.errors import PTXASError

from visionattn_kernels.attention.triton.plan import Tile

_log = logging.getLogger(__name__)

Launch = Callable[[Tile], None]

FAILURES = (triton.OutOfResources, triton.CompilationError, PTXASError, RuntimeError)
"""Errors of a tile that does not fit the device, the compiler or the kernel; passes of the compiler and launches of
CUDA raise RuntimeError."""

COMPILING = 0.75
"""Share of the time in which compilations start."""

SAMPLES = 3
"""Of a tile, of which the median counts."""

SAMPLE_SECONDS = 2e-3
"""About how long the launches of a sample take."""

MAX_LAUNCHES = 20
"""Of a sample."""

FILL_BYTES = 256 << 20
"""Of the memory that a device fills while the host enqueues a sample."""

FILL_SECONDS = FILL_BYTES / 10e12
"""At least how long that takes: memory writes less than 10 TB/s."""

_only_compiles: ContextVar[bool] = ContextVar("_only_compiles", default=False)


def start(kernel: Any, grid: tuple[int, ...], *args: Any, tile: Tile, **more: Any) -> None:
    """Launch a kernel with a tile and more constants; while `fastest` prepares its candidates, only compile it."""
    if _only_compiles.get():
        kernel.warmup(*args, grid=grid, **constants(tile), **more)
    else:
        kernel[grid](*args, **constants(tile), **more)


def constants(tile: Tile) -> dict[str, Any]:
    """Return a tile as arguments of a kernel."""
    return {
        "QUERY_H": tile.query[0],
        "QUERY_W": tile.query[1],
        "KEY_H": tile.key[0],
        "KEY_W": tile.key[1],
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
        **({"maxnreg": tile.max_registers} if tile.max_registers else {}),
    }


def fastest(tiles: Sequence[Tile], launch: Launch, seconds: float) -> tuple[Tile, float] | None:
    """Compile and time tiles, the most promising first.

    Args:
        tiles: Candidates. One that fails is left out.
        launch: Runs the kernel with a tile.
        seconds: Time for all. What has not been compiled and timed by then does not count. A compilation or a sample
            that has begun is not interrupted.

    Returns:
        The fastest tile and its milliseconds; None if none was timed.
    """
    begin = time.monotonic()
    times: dict[Tile, float] = {}
    for tile in compile_tiles(tiles, launch, begin + COMPILING * seconds):
        if time.monotonic() > begin + seconds:
            break
        try:
            times[tile] = measure(launch, tile)
        except FAILURES as error:
            _log.debug("%s is left out: %s", tile, error)
    best = min(times, key=lambda tile: times[tile], default=None)
    return None if best is None else (best, times[best])


def compile_tiles(tiles: Sequence[Tile], launch: Launch, deadline: float) -> list[Tile]:
    """Compile tiles side by side, in their order, and return those that were begun before the deadline.

    A tile that cannot be compiled fails when it is launched.
    """
    # Ranks of one machine share its cores.
    workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    begun = []
    token = _only_compiles.set(True)
    try:
        with ThreadPoolExecutor(workers) as pool, triton.AsyncCompileMode(pool, ignore_errors=True) as mode:
            for tile in tiles:
                busy = [x for x in mode.raw_futures if not x.done()]
                if len(busy) >= workers:
                    wait(busy, max(0.0, deadline - time.monotonic()), FIRST_COMPLETED)
                if time.monotonic() > deadline:
                    break
                try:
                    launch(tile)
                except FAILURES as error:
                    _log.debug("%s is left out: %s", tile, error)
                else:
                    begun.append(tile)
    finally:
        _only_compiles.reset(token)
    return begun


def measure(launch: Launch, tile: Tile) -> float:
    """Return the milliseconds of a launch on the current device and stream.

    A small kernel takes less time than its launch takes the host. Therefore the device fills memory until the host has
    enqueued a whole sample.
    """
    launch(tile)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    launch(tile)
    enqueued = time.perf_counter() - begin
    torch.cuda.synchronize()
    launches = max(1, min(MAX_LAUNCHES, int(SAMPLE_SECONDS / (time.perf_counter() - begin))))
    memory = torch.empty(FILL_BYTES, dtype=torch.int8, device="cuda")
    fills = math.ceil(2 * enqueued * launches / FILL_SECONDS)

    def sample() -> float:
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(fills):
            memory.zero_()
        first.record()
        for _ in range(launches):
            launch(tile)
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / launches

    return statistics.median(sample() for _ in range(SAMPLES))
