"""Launches of tiles that fail as asked, and measurements, for tests without a GPU. They need Triton."""

import ast
from collections.abc import Callable

import pytest
import triton
from triton.runtime.errors import PTXASError

from visionattn_kernels.attention.triton import measuring
from visionattn_kernels.attention.triton.plan import Tile

FAILURES = [
    triton.OutOfResources(300_000, 200_000, "shared memory"),
    triton.CompilationError("source", ast.parse("x"), "no"),
    PTXASError("no"),
    RuntimeError("PassManager::run failed\nat line 3"),
]
TILES = [Tile((4, 4), (4, 4), warps, 2) for warps in (1, 2, 4, 8)]


def fail_if(fails: Callable[[Tile], bool], error: Exception) -> tuple[list[Tile], measuring.Launch]:
    """Launches, and a launch that fails with some tiles."""
    launched: list[Tile] = []

    def launch(tile: Tile) -> None:
        launched.append(tile)
        if fails(tile):
            raise error

    return launched, launch


def fake_measure(monkeypatch: pytest.MonkeyPatch) -> dict[Tile, float]:
    """Let each candidate take less time than the one before; return what is measured, as it comes."""
    times: dict[Tile, float] = {}

    def measure(launch: measuring.Launch, tile: Tile) -> float:
        times[tile] = 1 / (1 + len(times))
        return times[tile]

    monkeypatch.setattr(measuring, "measure", measure)
    return times
