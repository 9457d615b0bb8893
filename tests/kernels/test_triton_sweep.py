"""The Triton kernels on random problems in the interpreter: every kind of window, tile and bias, with all gradients."""

import pytest
import torch

from tests.kernels.drawn_problems import draw_problem
from tests.kernels.interpreter import NOT_INTERPRETED
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.testing import assert_matches_reference, make_inputs

pytest.importorskip("triton")

from visionattn_kernels.attention.triton import tuning

FEW = [(seed, 8) for seed in range(24)]
MANY = [pytest.param(seed, 60, marks=pytest.mark.slow) for seed in range(24, 400)]
"""Seeds, and the most steps of a problem."""


@pytest.mark.skipif(NOT_INTERPRETED is not None, reason=str(NOT_INTERPRETED))
@pytest.mark.parametrize(("seed", "max_steps"), [*FEW, *MANY])
def test_kernels_match_reference_on_a_drawn_problem(seed: int, max_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw_problem(seed, max_steps)

    def run(kind: str, problem: Problem, launch: tuning.Launch) -> None:
        launch(drawn.tile)

    monkeypatch.setattr(tuning, "run", run)
    inputs = make_inputs(drawn.window, drawn.size, **drawn.options)
    # Half precision: delta comes from a rounded output, and weights are rounded before their products.
    slack = 4 if drawn.dtype == torch.float32 else 12
    assert_matches_reference(drawn.window, inputs, "triton", drawn.dtype, drawn.scale, slack)
