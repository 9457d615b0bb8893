"""Problems for the emulator beyond those of the interpreter's tests."""

from __future__ import annotations

from typing import Any

from tests.kernels.test_triton import CASES
from visionattn_kernels import Window
from visionattn_kernels.attention.triton.plan import Tile

Case = tuple[Window, tuple[int, int], dict[str, Any]]

MORE: dict[str, Case] = {
    "H12xW10-k5-d48-v16-rpb-B2": (
        Window.neighborhood(5),
        (12, 10),
        {"batch": 2, "head_dim": 48, "v_dim": 16, "rpb": True},
    ),
    "H40xW40-k7-d48-rpb-rel": (Window.neighborhood(7), (40, 40), {"head_dim": 48, "rpb": True, "rel": True}),
    "H14xW14-k7-d32-rpb": (Window.neighborhood(7), (14, 14), {"batch": 2, "head_dim": 32, "rpb": True}),
    "H14xW14-k7-d32": (Window.neighborhood(7), (14, 14), {"head_dim": 32}),
    "H28xW28-k7-dil3-d32-rpb": (
        Window.neighborhood(7, dilation=3),
        (28, 28),
        {"heads": 1, "head_dim": 32, "rpb": True},
    ),
    "H16xW16-k13-d32-rpb": (Window.neighborhood(13), (16, 16), {"heads": 1, "head_dim": 32, "rpb": True}),
    "H20xW18-k5-d64-causal-rpb": (
        Window.neighborhood(5, is_causal=(True, False)),
        (20, 18),
        {"heads": 1, "head_dim": 64, "rpb": True},
    ),
    "H10xW12-k7-d80-rpb": (Window.neighborhood(7), (10, 12), {"heads": 1, "head_dim": 80, "rpb": True}),
    "H9xW11-k5-d96-rel": (Window.neighborhood(5), (9, 11), {"heads": 1, "head_dim": 96, "rel": True}),
    "H12xW12-k7-d128-rpb": (Window.neighborhood(7), (12, 12), {"heads": 1, "head_dim": 128, "rpb": True}),
    "H9xW9-k3-d256-rpb": (Window.neighborhood(3), (9, 9), {"heads": 1, "head_dim": 256, "rpb": True}),
    "mask-H24xW16-b8h3-d16-rel": (Window.halo(8, 3), (24, 16), {"batch": 2, "rel": True, "head_dim": 16}),
    "zero-H16xW16-b8h2-d32-rel-extra33": (
        Window.halo(8, 2, "zero"),
        (16, 16),
        {"heads": 1, "rel": True, "head_dim": 32, "num_extra": 33},
    ),
    "H10xW10-k3-d24-v40-rpb-rel-extra70": (
        Window.neighborhood(3),
        (10, 10),
        {"batch": 2, "head_dim": 24, "v_dim": 40, "rpb": True, "rel": True, "num_extra": 70},
    ),
}

PROBLEMS = CASES | MORE

TILES: dict[str, Tile | None] = {
    "default": None,
    "one-warp": Tile((4, 4), (4, 4), 1, 2),
    "two-warps": Tile((4, 8), (4, 8), 2, 3),
    "four-warps": Tile((8, 8), (8, 8), 4, 3),
    "eight-warps": Tile((8, 16), (8, 8), 8, 2),
    "wide-keys": Tile((8, 8), (8, 16), 4, 1),
}
"""Tiles that every kernel runs with; by default, those that the library chooses."""

NAN = ("q", "k", "v", "grad")
"""Tensors that hold NaN in one place."""
