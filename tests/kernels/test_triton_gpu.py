"""The Triton kernels on a GPU: streams, devices, CUDA graphs, and what no interpreter can show. Run with `-m gpu`."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.kernels.drawn_problems import draw_problem
from visionattn_kernels import Window, neighborhood_attention_2d, windowed_attention
from visionattn_kernels.testing import assert_matches_reference, make_inputs, run_with_gradients

pytestmark = pytest.mark.gpu

WINDOW = Window.neighborhood(5, dilation=2)
SIZE = (20, 18)


def inputs_on(device: str, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    return make_inputs(
        WINDOW, SIZE, head_dim=32, rpb=True, rel=True, num_extra=3, dtype=dtype, device=device, seed=seed
    )


def train(x: dict[str, Tensor]) -> list[Tensor]:
    """Return output and every gradient."""
    out, lse = windowed_attention(**x, window=WINDOW, return_lse=True, backend="triton")  # type: ignore[arg-type]
    return [out, *torch.autograd.grad((out, lse), list(x.values()), (torch.ones_like(out), torch.ones_like(lse)))]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [8, 24, 40, 48, 80, 96, 128, 256])
def test_head_dim_unlike_that_of_values(head_dim: int, dtype: torch.dtype) -> None:
    x = make_inputs(WINDOW, SIZE, head_dim=head_dim, v_dim=264 - head_dim, rpb=True, device="cuda")
    assert_matches_reference(WINDOW, x, "triton", dtype)


@pytest.mark.parametrize("seed", range(16))
def test_drawn_problem_matches_reference(seed: int) -> None:
    """With the tiles that are chosen by default."""
    drawn = draw_problem(seed, max_steps=200)
    x = make_inputs(drawn.window, drawn.size, **drawn.options, device="cuda")
    slack = 8 if drawn.dtype == torch.float32 else 20
    assert_matches_reference(drawn.window, x, "triton", drawn.dtype, drawn.scale, slack)


@pytest.mark.parametrize("scale", [0.0, -0.4, 1e-12])
def test_scale_beside_every_bias(scale: float) -> None:
    assert_matches_reference(WINDOW, inputs_on("cuda", dtype=torch.float32), "triton", torch.float32, scale)


@pytest.mark.parametrize("value", [-1e4, -1e9, -torch.inf])
def test_bias_that_masks_an_offset(value: float) -> None:
    x = {name: t.detach() for name, t in inputs_on("cuda", dtype=torch.float32).items()}
    x["rpb"][:, 1, 2] = value
    assert_matches_reference(WINDOW, x, "triton", torch.float32)


def test_kernels_run_on_the_current_stream() -> None:
    """They run behind work that is queued there, and in front of what reads their results."""
    x = inputs_on("cuda")
    expected, stream = train(x), torch.cuda.Stream()
    late = {name: torch.zeros_like(t) for name, t in x.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        busy = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):
            busy = busy @ busy * 0.01
        for name, t in late.items():
            t.copy_(x[name].detach())
        found = train({name: t.requires_grad_() for name, t in late.items()})
    stream.synchronize()
    assert_equal(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_device_that_is_not_the_current_one() -> None:
    with torch.cuda.device(0):
        found = train(inputs_on("cuda:1"))
    assert {t.device for t in found} == {torch.device("cuda:1")}
    assert_equal([t.cpu() for t in found], [t.cpu() for t in train(inputs_on("cuda:0"))])


@contextmanager
def no_waits() -> Iterator[None]:
    """Make an operation that waits for the GPU raise an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_call_after_the_first_neither_waits_nor_asks_for_memory() -> None:
    x = inputs_on("cuda")
    for _ in range(2):
        train(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["segment.all.allocated"]
    with no_waits():
        train(x)
    assert torch.cuda.memory_stats()["segment.all.allocated"] == before


def capture(x: dict[str, Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """Return a graph of forward and backward, and the results that a replay writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        train(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = train(x)
    return graph, results


def test_captured_graph_takes_new_inputs() -> None:
    x = inputs_on("cuda")
    graph, results = capture(x)
    for seed in (1, 2, 0):
        fresh = inputs_on("cuda", seed)
        with torch.no_grad():
            for name, t in fresh.items():
                x[name].copy_(t)
        graph.replay()
        torch.cuda.synchronize()
        assert_equal(results, train(fresh))


def test_captured_graph_outlives_other_problems() -> None:
    """No memory that the graph reads is given back when a thousand other maps have been seen."""
    graph, results = capture(inputs_on("cuda"))
    graph.replay()
    expected = [t.clone() for t in results]
    q = torch.randn(1, 64, 64, 1, 16, device="cuda")
    for i in range(1000):
        part = q[:, : 5 + i % 60, : 5 + i // 60]
        neighborhood_attention_2d(part, part, part, 3, backend="triton")
    torch.cuda.empty_cache()
    torch.randn(2**26, device="cuda")
    graph.replay()
    torch.cuda.synchronize()
    assert_equal(results, expected)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_equals_eager(mode: str) -> None:
    """No call is made before the compiled one: what a first call does, it does inside the graph."""
    window = Window.neighborhood(7)
    x = make_inputs(window, (17, 19), head_dim=32, rpb=True, dtype=torch.float32, device="cuda")

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor) -> Tensor:
        out = windowed_attention(q * 1.5, k, v, window, rpb=rpb, backend="triton")
        assert isinstance(out, Tensor)
        return out.sin()

    compiled = torch.compile(attend, fullgraph=True, mode=mode)
    for _ in range(4):
        found = [t.clone() for t in torch.autograd.grad(compiled(*x.values()).square().sum(), list(x.values()))]
    expected = torch.autograd.grad(attend(*x.values()).square().sum(), list(x.values()))
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-5)


def test_repeats_bitwise_on_any_stream() -> None:
    x = inputs_on("cuda")
    expected = run_with_gradients(WINDOW, x, "triton")
    for _ in range(5):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            found = run_with_gradients(WINDOW, x, "triton")
        assert_equal(list(found.values()), list(expected.values()))


def test_gradients_of_maps_of_more_than_two_to_the_31_numbers() -> None:
    """The last rows of a map of 2.2e9 numbers have the gradients of a map of these rows alone."""
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("it takes 45 GB")
    window, kept = Window.neighborhood(3), 8
    rpb = torch.randn(4, 5, 5, device="cuda")
    q = torch.randn(1, 2200, 1000, 4, 256, dtype=torch.bfloat16, device="cuda")
    assert q.numel() > 2**31
    grads = []
    for x in (q, q[:, -kept:].clone()):
        x = x.requires_grad_()
        out = windowed_attention(x, x, x, window, rpb=rpb, backend="triton")
        assert isinstance(out, Tensor)
        (grad,) = torch.autograd.grad(out[:, 4 - kept :].float().sum(), x)
        grads.append(grad[:, 4 - kept :].clone())
        del out, grad
    torch.testing.assert_close(*grads)
