"""Random problems for the Triton kernels, each with a tile that cuts its map into several parts."""

import math
import random
from dataclasses import dataclass
from typing import Any

import torch

from visionattn_kernels import Window
from visionattn_kernels.attention.triton.plan import Tile
from visionattn_kernels.window import BOUNDARIES

AREAS = ((16, 16), (16, 32), (32, 16), (32, 64))
"""Queries and keys of a tile."""

DTYPES = (torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16)
SPACINGS = (1, 1, 1, 1, 2, 2, 3, 4)
SCALES = (None, None, None, 0.0, 0.5, -0.4, 0.7)
"""Small, for an exponential multiplies the rounding of large scores."""


@dataclass(frozen=True)
class DrawnProblem:
    """A window over a map, the tile to compute it with, and what `make_inputs` is given."""

    window: Window
    size: tuple[int, int]
    tile: Tile
    scale: float | None
    dtype: torch.dtype
    options: dict[str, Any]


def draw_problem(seed: int, max_steps: int) -> DrawnProblem:
    """Draw a problem of any boundary, stride, dilation, query stride, bias and shape of tile.

    Args:
        seed: Of the draw.
        max_steps: Most pairs of a tile and a rectangle, see `count_steps`; in the interpreter all kernels together take
            about 50 ms for each.
    """
    rng = random.Random(seed)
    window, scale, dtype = _draw_window(rng), rng.choice(SCALES), rng.choice(DTYPES)
    problems: list[DrawnProblem] = []
    most = rng.choice((1, 4, 4))
    while len(problems) < most:
        size, tile = (_draw_length(rng), _draw_length(rng)), _draw_tile(rng)
        options = {
            "batch": rng.choice((1, 1, 2)),
            "heads": rng.choice((1, 1, 1, 3)),
            "head_dim": rng.choice((1, 5, 8, 16)),
            "v_dim": rng.choice((None, None, 3, 20)),
            "rpb": rng.random() < 0.6,
            "rel": rng.random() < 0.4,
            "num_extra": rng.choice((0, 0, 1, 19)),
            "seed": seed,
        }
        if count_steps(window, size, tile) * options["batch"] * options["heads"] <= max_steps:
            problems.append(DrawnProblem(window, size, tile, scale, dtype, options))
    return max(problems, key=lambda drawn: math.prod(drawn.size))


def count_steps(window: Window, size: tuple[int, int], tile: Tile) -> int:
    """Estimate the pairs of a tile of queries and a rectangle of keys, from dilation groups and window lengths."""
    steps = 1
    for axis, length, queries, keys in zip(window.axes, size, tile.query, tile.key, strict=True):
        group = -(-length // axis.dilation)
        tiles = min(axis.dilation, length) * -(-group // (queries * axis.query_stride))
        seen = min(group + axis.margin(1), axis.kernel_size + (queries - 1) * axis.query_stride)
        steps *= tiles * -(-seen // keys)
    return steps


def _draw_length(rng: random.Random) -> int:
    return rng.choice((1, 2, *range(3, 15), *range(5, 15)))


def _draw_window(rng: random.Random) -> Window:
    """Draw a window, which may be larger than the map, and whose query stride may share a factor with its dilation."""
    kernel = (rng.choice((1, *range(2, 10))), rng.choice((1, *range(2, 10))))
    return Window.neighborhood(
        kernel,
        (_draw_stride(rng, kernel[0]), _draw_stride(rng, kernel[1])),
        (rng.choice(SPACINGS), rng.choice(SPACINGS)),
        (rng.random() < 0.2, rng.random() < 0.2),
        rng.choice(BOUNDARIES),  # type: ignore[arg-type]
        (rng.choice(SPACINGS), rng.choice(SPACINGS)),
    )


def _draw_stride(rng: random.Random, kernel_size: int) -> int:
    return rng.choice((1, 1, kernel_size, rng.randint(1, kernel_size)))


def _draw_tile(rng: random.Random) -> Tile:
    query, key = (_draw_rectangle(rng, area) for area in rng.choice(AREAS))
    return Tile(query, key, 1, 1)


def _draw_rectangle(rng: random.Random, area: int) -> tuple[int, int]:
    height = 1 << rng.randrange(area.bit_length())
    return height, area // height
