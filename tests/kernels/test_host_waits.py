"""A call on a GPU does not wait for the device, once its tables are made: what reads numbers on the host is counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.interpreter import NOT_INTERPRETED
from visionattn_kernels import Window
from visionattn_kernels.attention import flex, gemm, plain, tiled
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.hyper import api as hyper
from visionattn_kernels.testing import make_inputs
from visionattn_kernels.unfused import products
from visionattn_kernels.window import AxisWindow

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "_unique2", "unique_dim", "masked_select", "equal")
COPIES = ("lift_fresh", "lift_fresh_copy")
"""`torch.tensor` of Python numbers: made on the host and copied."""

WINDOWS = {
    "shift": (Window.neighborhood(3, dilation=(2, 1)), (7, 6)),
    "halo": (Window.halo(4, 1), (6, 7)),
    "zero": (Window.halo(4, 1, "zero"), (6, 7)),
}


def dtype_of(x: Tensor | None) -> torch.dtype | None:
    return None if x is None else x.dtype


class Recorder(TorchDispatchMode):
    """Names of the operators of torch that run, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        # An index that is a mask is counted first.
        masks = name.startswith("index") and isinstance(args[1], (list, tuple)) and torch.bool in map(dtype_of, args[1])
        self.names.append("nonzero" if masks else name)
        return function(*args, **(kwargs or {}))


@contextmanager
def recorded() -> Iterator[list[str]]:
    with Recorder() as recorder:
        yield recorder.names


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the branch of a GPU, and run the products of `gemm` as functions: operators hide what they call."""
    for module in (tiled, products):
        monkeypatch.setattr(module, "until_clean", lambda compute, device: compute(True))
    for name in ("qk", "av", "atx"):
        monkeypatch.setattr(products, name, getattr(products, f"_run_{name}"))
    monkeypatch.setattr(flex, "_compile", lambda *_: lambda q, k, v, *_: (torch.zeros_like(v), q.sum(-1)))


def fused(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[[Problem], None]:
    def run(problem: Problem) -> None:
        out, lse = forward(problem)
        backward(problem, out, lse, torch.ones_like(out), torch.ones_like(lse))

    return run


def with_autograd(attention: Callable[..., Any]) -> Callable[[Problem], None]:
    def run(problem: Problem) -> None:
        out, lse = attention(problem, True)
        torch.autograd.grad([out, lse], list(problem.tensors.values()), [torch.ones_like(out), torch.ones_like(lse)])

    return run


def gemm_products(problem: Problem) -> None:
    with torch.no_grad():  # its gradients are these three products
        gemm.attention(problem, True)
        scores = products.qk(problem.q, problem.k, problem.window, problem.size)
        products.atx(scores, problem.q, problem.window, problem.size)


def flex_without_its_kernel(problem: Problem) -> None:
    p = replace(problem, rel_h=None, rel_w=None, extra_k=None, extra_v=None)
    with torch.no_grad():
        flex.attention(p, True)


BACKENDS: dict[str, Callable[[Problem], None]] = {
    "tiled": fused(tiled.forward, tiled.backward),
    "gemm": gemm_products,
    "plain": with_autograd(plain.attention),
    "flex": flex_without_its_kernel,
}


def make_problem(name: str) -> Problem:
    window, size = WINDOWS[name]
    x = make_inputs(window, size, batch=1, rpb=True, rel=True, num_extra=2, dtype=torch.float32)
    return Problem(**x, window=window, scale=0.3)


def assert_waits_for_nothing(run: Callable[[Problem], None], problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    run(problem)
    # The rule is written out on the CPU.
    monkeypatch.setattr(AxisWindow, "groups", lambda self, length: pytest.fail("tables are made in the second call"))
    with recorded() as names:
        run(problem)
    assert len(names) > 10, "nothing was recorded"
    assert [name for name in names if name in (*WAITS, *COPIES)] == []


@pytest.mark.parametrize(
    ("backend", "window"), [(x, w) for x in BACKENDS for w in WINDOWS if (x, w) != ("flex", "zero")]
)
def test_backend_waits_for_nothing_after_its_first_call(
    backend: str, window: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_waits_for_nothing(BACKENDS[backend], make_problem(window), monkeypatch)


@pytest.mark.skipif(NOT_INTERPRETED is not None, reason=str(NOT_INTERPRETED))
def test_triton_waits_for_nothing_after_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from visionattn_kernels.attention.triton.backward import backward
    from visionattn_kernels.attention.triton.forward import forward

    assert_waits_for_nothing(fused(forward, backward), make_problem("shift"), monkeypatch)


def test_hyper_operators_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyper, "can_run", lambda *_: False)
    z, taps = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(2, 3, 3, 3, requires_grad=True)
    with recorded() as names:
        outs = [hyper.hyper_zzw_global(z, z, mode) for mode in ("matmul", "elementwise", "fftconv")]
        outs += [hyper.hyper_zzw_local(z, kernel) for kernel in (taps, taps[0])]
        torch.stack(outs).sum().backward()
    assert [name for name in names if name in (*WAITS, *COPIES)] == []


def test_recorder_sees_what_waits() -> None:
    with recorded() as names:
        x = torch.tensor([1.0, 0.0])
        bool(x.isnan().any())
        x[x > 0]
    assert {"lift_fresh", "_local_scalar_dense", "nonzero"} <= set(names)
