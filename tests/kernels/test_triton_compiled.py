"""The Triton operator under `torch.compile`, and sums that do not depend on the order of programs."""

import random
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import visionattn_kernels as vk
from tests.kernels.interpreter import NOT_INTERPRETED
from visionattn_kernels import Window
from visionattn_kernels.testing import make_inputs, run_with_gradients

triton = pytest.importorskip("triton")
interpreter = pytest.importorskip("triton.runtime.interpreter")

pytestmark = pytest.mark.skipif(NOT_INTERPRETED is not None, reason=str(NOT_INTERPRETED))


@pytest.mark.slow
def test_inductor_keeps_the_operator_and_its_results() -> None:
    """Forward with the log-sum-exp, and backward, in one graph with operations around it that inductor compiles."""
    x = make_inputs(Window.neighborhood(3), (4, 5), batch=1, rpb=True, num_extra=2, dtype=torch.float32)

    def attend(x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        q, k, v = (x[name] * 1.5 for name in "qkv")
        out, lse = vk.neighborhood_attention_2d(
            q, k, v, 3, rpb=x["rpb"].tanh(), extra_k=x["extra_k"], extra_v=x["extra_v"], return_lse=True,
            backend="triton",
        )  # fmt: skip
        return F.gelu(out), (lse + out.sum(-1)).sin()

    results = []
    for function in (attend, torch.compile(attend, fullgraph=True)):
        out, lse = function(x)
        grads = torch.autograd.grad((out.square().sum(), lse.sum()), list(x.values()))
        results.append((out, lse, *grads))
    torch.testing.assert_close(*results)


@pytest.fixture
def shuffled_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs the programs of each launch in random order, with memory that torch leaves uninitialised full of NaN."""
    rng, orders = random.Random(0), dict[int, list[int]]()
    builder = interpreter.interpreter_builder
    place, size = builder.set_grid_idx, builder.set_grid_dim

    def start(*grid: int) -> None:
        orders[0] = rng.sample(range(grid[0]), grid[0])
        size(*grid)

    monkeypatch.setattr(builder, "set_grid_dim", start)
    monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: place(orders[0][x], y, z))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("shuffled_programs")
def test_results_depend_neither_on_the_order_of_programs_nor_on_old_memory() -> None:
    window = Window.neighborhood(3, dilation=2, query_stride=(2, 1))  # odd rows are seen by no query
    x = make_inputs(window, (5, 4), batch=2, heads=1, rpb=True, rel=True, num_extra=3, dtype=torch.float32)
    first, second = (run_with_gradients(window, x, "triton") for _ in range(2))
    for name, result in first.items():
        assert result.isfinite().all(), name
        assert torch.equal(result, second[name]), name
