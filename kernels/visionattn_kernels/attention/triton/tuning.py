"""Tiles that the kernels run with: defaults by estimated cost, or measured ones that are kept on disk.

By default nothing is measured, so that the first call costs no more than its compilation. With the environment
variable `VISIONATTN_TUNE=1`, the first problem of a kind compiles and times the tiles of least estimated cost, for at
most `VISIONATTN_TUNE_SECONDS` (60 by default) per kernel and problem, and stores the best; see `tile_cache`. Later
processes with the variable set read it there. While a stream is captured into a CUDA graph nothing is measured.
"""

from __future__ import annotations

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton import INTERPRETED, tile_cache
from visionattn_kernels.attention.triton.cost import BY_KEY, count_shared, count_tiles, estimate
from visionattn_kernels.attention.triton.measuring import FAILURES, Launch, constants, fastest, start
from visionattn_kernels.attention.triton.plan import Tile, best_rectangles
from visionattn_kernels.attention.triton.precision import product_precision
from visionattn_kernels.provenance import package_version
from visionattn_kernels.window import Window

__all__ = ["Launch", "constants", "default_tiles", "run", "start"]

_log = logging.getLogger(__name__)

AREAS = (
    *((16, 16), (16, 32), (16, 64), (32, 16), (32, 32), (32, 64), (64, 16)),
    *((64, 32), (64, 64), (64, 128), (128, 32), (128, 64)),
)
"""Queries and keys of a tile; kernels that walk over queries take them the other way round."""

WARPS = (1, 2, 4, 8)

STAGES = 2
"""Loads in flight: a third costs instructions and registers, and what it gains only a measurement says."""

MAX_SHARED = 96 << 10
"""Bytes of shared memory of a program by estimate, as most GPUs since compute capability 8.0 have them."""

MAX_DEFAULTS = 6
"""Tiles that are tried without a measurement, before they are tried with one stage."""

MAX_MEASURED = 16
"""Tiles that are compiled and timed for a problem."""

FEWER_REGISTERS = 168
"""Of a thread: a multiprocessor of NVIDIA's then holds 12 warps, with 255 registers 8."""

MAX_CHOSEN = 1024
"""Problems whose tiles a process remembers: maps of many sizes must not fill its memory."""

_chosen: OrderedDict[tuple[Any, ...], Tile] = OrderedDict()
"""Tiles by problem, the latest choice last."""


def run(kind: str, problem: Problem, launch: Launch) -> None:
    """Launch a kernel with the tile chosen for it.

    Args:
        kind: Of kernel: "forward", "query", "key", "token" or "offset".
        problem: What it is for.
        launch: Runs it with a given tile, to the same results each time.

    Raises:
        RuntimeError: The kernel runs with no tile.
    """
    p = problem
    biases = (p.rpb is None, p.rel_h is None, p.rel_w is None, p.extra_k is None)
    precision = product_precision(p.q.device, p.q.dtype)
    key = (kind, p.q.device, p.q.dtype, precision, p.q.shape, p.k.shape, p.v.shape[-1], p.window, biases)
    with torch.cuda.device(p.q.device) if p.q.is_cuda else nullcontext():
        if (tile := _chosen.get(key)) is None or not _fits(tile, launch):
            tile, lasts = _choose(kind, p, launch)
            if lasts:
                _chosen[key] = tile
                if len(_chosen) > MAX_CHOSEN:
                    _chosen.popitem(last=False)


def _fits(tile: Tile, launch: Launch) -> bool:
    """Launch with a tile that ran before; other strides may take more of the device."""
    try:
        launch(tile)
    except triton.OutOfResources:
        return False
    return True


def _choose(kind: str, problem: Problem, launch: Launch) -> tuple[Tile, bool]:
    """Launch with a measured tile if asked to, else with the first default that runs.

    Returns:
        The tile, and whether to keep to it: while a graph is captured, nothing can be measured.
    """
    p = problem
    tunes = p.q.is_cuda and os.environ.get("VISIONATTN_TUNE", "0") == "1"
    captured = tunes and torch.cuda.is_current_stream_capturing()
    tile = _tune(kind, p, launch) if tunes and not captured else None
    if tile is None:
        cut = _interpreted_tiles if INTERPRETED and not p.q.is_cuda else default_tiles
        tile = _launch_first(cut(*_describe(kind, p)), launch, f"{kind} kernel on {p.q.device}")
    return tile, not captured


def _launch_first(tiles: Sequence[Tile], launch: Launch, name: str) -> Tile:
    """Launch with the first tile that runs, and return it."""
    reason: Exception | None = None
    for tile in tiles:
        try:
            launch(tile)
            return tile
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            reason = error
            # A device that cannot hold a tile is nothing unusual.
            level = logging.DEBUG if isinstance(error, triton.OutOfResources) else logging.WARNING
            _log.log(level, "%s does not run with %s: %s", name, tile, error)
    message = str(reason).partition("\n")[0]
    raise RuntimeError(f"{name} runs with none of {len(tiles)} tiles ({message}); choose another backend") from reason


def _describe(kind: str, problem: Problem) -> tuple[str, Window, tuple[int, int], int, int]:
    """Return the arguments of `default_tiles`."""
    p = problem
    channels = max(16, *(triton.next_power_of_2(x.shape[-1]) for x in (p.q, p.v)))
    return kind, p.window, p.size, channels, p.q.element_size()


@lru_cache(maxsize=1024)
def default_tiles(kind: str, window: Window, size: tuple[int, int], channels: int, itemsize: int) -> tuple[Tile, ...]:
    """Return tiles by estimated cost, least first; the last one needs least of a device.

    Args:
        kind: Of kernel.
        window: Which keys a query sees.
        size: Height and width of the key map.
        channels: Of a query, key or value as it lies in a program.
        itemsize: Bytes of each.
    """
    tiles = rank_tiles(kind, window, size, channels, itemsize)
    least = min(tiles, key=lambda tile: (math.prod(tile.query + tile.key), tile.num_warps))
    first = tiles[:MAX_DEFAULTS]
    # What a device cannot hold is tried with less.
    one_stage = [tile._replace(num_stages=1) for tile in (*(x for x in first if x != least), least)]
    return (*first, *one_stage)


def _interpreted_tiles(*problem: Any) -> list[Tile]:
    """Return tiles for the interpreter, which takes nearly as long for a small one as for one of 64 x 64."""
    return sorted(rank_tiles(*problem), key=lambda tile: abs(math.prod(tile.query + tile.key) - 64 * 64))


def rank_tiles(kind: str, window: Window, size: tuple[int, int], channels: int, itemsize: int) -> tuple[Tile, ...]:
    """Return all tiles that seem reasonable, by estimated cost; see `default_tiles`."""
    keeps_keys, costs = kind in BY_KEY, dict[Tile, float]()
    for area in AREAS:
        num_queries, num_keys = reversed(area) if keeps_keys else area
        pairs, query, key = best_rectangles(window, size, num_queries, num_keys, keeps_keys)
        programs = count_tiles(window, size, key if keeps_keys else query, keeps_keys)
        for tile in (Tile(query, key, num_warps, STAGES) for num_warps in WARPS):
            if area == AREAS[0] or count_shared(kind, tile, channels, itemsize) <= MAX_SHARED:
                costs[tile] = estimate(kind, tile, pairs, programs, channels, itemsize)
    return tuple(sorted(costs, key=lambda tile: costs[tile]))


def _tune(kind: str, problem: Problem, launch: Launch) -> Tile | None:
    """Launch with the tile on disk, or else with the fastest in the time given, and return it; None if none ran."""
    name = _name(kind, problem)
    tile = tile_cache.load(name)
    if tile is None:
        ranked = rank_tiles(*_describe(kind, problem))
        best_few = ranked[: MAX_MEASURED // 8]
        few = [tile._replace(num_stages=STAGES + 1) for tile in best_few]
        if torch.version.hip is None:
            few += [tile._replace(max_registers=FEWER_REGISTERS) for tile in best_few]
        best = fastest([*ranked[: MAX_MEASURED - len(few)], *few], launch, _seconds())
        if best is None:
            return None
        tile = best[0]
        tile_cache.store(name, *best)
    try:
        launch(tile)
    except FAILURES as error:
        _log.warning("the %s kernel does not run with its measured %s: %s", kind, tile, error)
        return None
    return tile


def _seconds() -> float:
    text = os.environ.get("VISIONATTN_TUNE_SECONDS", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"VISIONATTN_TUNE_SECONDS must be a number of seconds >= 0; got {text!r}")
    return seconds


def _name(kind: str, problem: Problem) -> dict[str, Any]:
    """Return what a measured tile depends on, as JSON holds it; sizes of maps and batches by power of two."""
    p = problem
    batch, height, width, heads, head_dim = p.k.shape
    gpu = torch.cuda.get_device_properties(p.q.device)
    return {
        "kernel": kind,
        "device": gpu.name,
        "capability": [gpu.major, gpu.minor],
        "versions": [package_version("visionattn"), str(torch.__version__), triton.__version__],
        "dtype": str(p.q.dtype).removeprefix("torch."),
        "precision": product_precision(p.q.device, p.q.dtype),
        "head_dim": [head_dim, p.v.shape[-1]],
        "window": p.window.to_ints(),
        "biases": [name for name in ("rpb", "rel_h", "rel_w") if getattr(p, name) is not None],
        "extra": 0 if p.extra_k is None else triton.next_power_of_2(p.extra_k.shape[1]),
        "map": [triton.next_power_of_2(x) for x in (height, width)],
        "batch": triton.next_power_of_2(batch * heads),
    }
