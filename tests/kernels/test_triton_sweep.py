"""The Triton kernels on random problems in the interpreter: every kind of window, tile and bias, with all gradients."""

from typing import Any

import pytest
import torch

from tests.kernels.drawn_problems import draw_problem
from tests.kernels.interpreter import NOT_INTERPRETED, check_overflow
from visionattn_kernels import Window
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton.plan import Tile
from visionattn_kernels.testing import assert_matches_reference, make_inputs

pytest.importorskip("triton")

from visionattn_kernels.attention.triton import tuning

pytestmark = pytest.mark.skipif(NOT_INTERPRETED is not None, reason=str(NOT_INTERPRETED))

FEW = [(seed, 6) for seed in range(20)]
MANY = [pytest.param(seed, 30, marks=pytest.mark.slow) for seed in range(20, 400)]
"""Seeds, and the most steps of a problem."""


def use_tile(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch every kernel with this tile."""

    def run(kind: str, problem: Problem, launch: tuning.Launch) -> None:
        launch(tile)

    monkeypatch.setattr(tuning, "run", run)


@pytest.mark.parametrize(("seed", "max_steps"), [*FEW, *MANY])
def test_kernels_match_reference_on_a_drawn_problem(seed: int, max_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw_problem(seed, max_steps)
    check_overflow(monkeypatch, seed % 4 == 0)  # it takes as long as all the rest
    use_tile(drawn.tile, monkeypatch)
    inputs = make_inputs(drawn.window, drawn.size, **drawn.options)
    # Half precision: delta comes from a rounded output, and weights are rounded before their products.
    slack = 8 if drawn.dtype == torch.float32 else 20
    assert_matches_reference(drawn.window, inputs, "triton", drawn.dtype, drawn.scale, slack)


# window, map, tile, other inputs: a rectangle of keys just inside what a tile sees, or one beyond it
INTERIORS: list[tuple[Window, tuple[int, int], Tile, dict[str, Any]]] = [
    (Window.sequence(15, 15, boundary="mask"), (1, 30), Tile((1, 16), (1, 16), 1, 1), {}),
    (Window.sequence(17, 17, boundary="zero"), (1, 34), Tile((1, 16), (1, 16), 1, 1), {}),
    (Window.sequence(32, 2, boundary="mask"), (1, 48), Tile((1, 16), (1, 16), 1, 1), {}),
    (Window.sequence(32, is_causal=True), (1, 64), Tile((1, 16), (1, 16), 1, 1), {}),
    (Window.neighborhood((5, 9), (5, 9), boundary="mask"), (5, 9), Tile((4, 8), (4, 8), 1, 1), {"rel": True}),
    (Window.neighborhood((33, 1), dilation=(2, 1)), (70, 1), Tile((16, 1), (16, 1), 1, 1), {}),
]


@pytest.mark.parametrize(("window", "size", "tile", "options"), INTERIORS, ids=range(len(INTERIORS)))
def test_rectangles_inside_what_a_tile_sees(
    window: Window, size: tuple[int, int], tile: Tile, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tile(tile, monkeypatch)
    inputs = make_inputs(window, size, batch=1, heads=1, **options)
    assert_matches_reference(window, inputs, "triton", torch.float32, slack=4)
