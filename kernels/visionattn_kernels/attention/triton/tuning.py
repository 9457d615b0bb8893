"""Tiles that the kernels run with: defaults by the work they leave, or measured ones that are kept on disk.

By default nothing is measured, so that the first call costs no more than its compilation. With the environment
variable `VISIONATTN_TUNE=1`, the first problem of a kind compiles and times the default tiles and their variants, and
the best is written to `triton_tiles.json` in the folder `$VISIONATTN_CACHE`, by default `visionattn` beside torch's hub
(`~/.cache/torch/visionattn`); later processes with the variable set read it there. An entry holds for one GPU, Triton
release, dtype, head size, window, set of biases and power-of-two range of map and batch.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton.plan import Tile, best_rectangles
from visionattn_kernels.window import Window

Launch = Callable[[Tile], None]

AREAS = ((128, 64), (64, 64), (64, 32), (32, 32), (16, 16))
"""Queries and keys of a tile; kernels that walk over queries take them the other way round."""

TILE_BYTES = 48 * 1024
"""Of the queries and keys of a tile together, so that two or three of them fit in the shared memory of a program."""

BY_KEY = ("key", "token")
"""Kernels that keep keys and walk over queries."""

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
    """
    p = problem
    biases = tuple(x is not None for x in (p.rpb, p.rel_h, p.rel_w, p.extra_k))
    key = (kind, p.q.device, p.q.dtype, p.q.shape, p.k.shape, p.v.shape[-1], p.window, biases)
    with torch.cuda.device(p.q.device) if p.q.is_cuda else nullcontext():
        tile = _chosen.get(key)
        if tile is None:
            _chosen[key] = _choose(kind, p, launch, biases)
            if len(_chosen) > MAX_CHOSEN:
                _chosen.popitem(last=False)
        else:
            launch(tile)


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
    }


def _choose(kind: str, problem: Problem, launch: Launch, biases: tuple[bool, ...]) -> Tile:
    """Launch with a measured tile if asked to, else with the first default that fits the device; return the tile."""
    p = problem
    channels = max(16, *(triton.next_power_of_2(x.shape[-1]) for x in (p.q, p.v)))
    defaults = default_tiles(kind, p.window, p.size, channels, p.q.element_size())
    if p.q.is_cuda and os.environ.get("VISIONATTN_TUNE", "0") == "1":
        tile = _tuned(_describe(kind, p, biases), defaults, launch)
        launch(tile)
        return tile
    for tile in defaults[:-1]:
        try:
            launch(tile)
        except triton.OutOfResources:
            continue
        return tile
    launch(defaults[-1])
    return defaults[-1]


@lru_cache(maxsize=1024)
def default_tiles(kind: str, window: Window, size: tuple[int, int], channels: int, itemsize: int) -> tuple[Tile, ...]:
    """Return tiles by estimated work, least first; the last one needs least of a device.

    Args:
        kind: Of kernel.
        window: Which keys a query sees.
        size: Height and width of the key map.
        channels: Of a query, key or value as it lies in a program.
        itemsize: Bytes of each.
    """
    keeps_keys, costs = kind in BY_KEY, []
    limit = TILE_BYTES // 3 * 2 if keeps_keys else TILE_BYTES
    for area in AREAS:
        num_bytes = sum(area) * channels * itemsize
        # Compiled for compute capability 9.0, float32 kernels that keep keys spill registers beyond 64 x 32.
        spills = keeps_keys and itemsize == 4 and math.prod(area) > 2048
        if (num_bytes > limit or spills) and area != AREAS[-1]:
            continue
        num_queries, num_keys = reversed(area) if keeps_keys else area
        pairs, query, key = best_rectangles(window, size, num_queries, num_keys, keeps_keys)
        # Sums that stay in registers, and scores with their gradients. Float32 products take registers twice.
        kept = (area[0] * channels * (2 if keeps_keys else 1) + 2 * area[0] * area[1]) * itemsize // 2
        num_warps = 8 if kept > 16384 else 4 if kept > 2048 else 1
        # A pair of rectangles costs its products and the traffic of its edges.
        cost = pairs * (num_queries + 32) * (num_keys + 32)
        costs.append((cost, Tile(query, key, num_warps, 3 if num_bytes <= TILE_BYTES // 3 else 2)))
    tiles = [tile for _, tile in sorted(costs, key=lambda cost: cost[0])]
    # What a device cannot hold is tried with less.
    return (*tiles, *(tile._replace(num_stages=1) for tile in tiles), costs[-1][1]._replace(num_stages=1))


def _tuned(description: str, defaults: tuple[Tile, ...], launch: Launch) -> Tile:
    """Return the tile on disk, or else the fastest of the defaults and their variants, and store it."""
    path = cache_file()
    known = _read(path).get(description)
    if known is not None:
        query, key, num_warps, num_stages = known
        return Tile(tuple(query), tuple(key), num_warps, num_stages)
    first = defaults[0]
    larger = [first._replace(key=(first.key[0] * high, first.key[1] * wide)) for high, wide in ((2, 1), (1, 2))]
    variants = {
        tile._replace(num_warps=warps, num_stages=stages)
        for tile in (*defaults, *larger)
        for warps in {max(1, tile.num_warps // 2), tile.num_warps, min(8, tile.num_warps * 2)}
        for stages in {tile.num_stages, 2}
    }
    times = {tile: _measure(launch, tile) for tile in sorted(variants)}
    best = min(times, key=lambda tile: times[tile])
    _write(path, {**_read(path), description: best})
    return best


def _measure(launch: Launch, tile: Tile) -> float:
    """Return median milliseconds; infinity if the device cannot hold the tile."""
    try:
        return float(triton.testing.do_bench(lambda: launch(tile), warmup=5, rep=20, return_mode="median"))
    except triton.OutOfResources:
        return float("inf")


def _describe(kind: str, problem: Problem, biases: tuple[bool, ...]) -> str:
    p = problem
    batch, height, width, heads, head_dim = p.k.shape
    return json.dumps(
        [
            kind,
            torch.cuda.get_device_name(p.q.device),
            triton.__version__,
            str(p.q.dtype),
            torch.backends.cuda.matmul.fp32_precision,
            [head_dim, p.v.shape[-1]],
            p.window.to_ints(),
            biases,
            [triton.next_power_of_2(x) for x in (height, width, batch * heads)],
        ]
    )


def cache_file() -> Path:
    """Return where measured tiles are kept."""
    folder = os.environ.get("VISIONATTN_CACHE") or Path(torch.hub.get_dir()).parent / "visionattn"
    return Path(folder) / "triton_tiles.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(path: Path, tiles: dict[str, Any]) -> None:
    """Replace the file atomically, so that no process reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        json.dump(tiles, file, indent=1)
    Path(file.name).replace(path)
