"""Parallax attention: every backend against the covariance of its equation, written out over all keys."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from visionattn_kernels import Window, parallax_attention_2d, windowed_attention
from visionattn_kernels._native.build import unavailable
from visionattn_kernels.parallax.api import BACKENDS
from visionattn_kernels.testing import make_inputs

needs_compiler = pytest.mark.skipif(unavailable("parallax") is not None, reason="no C++ compiler")
each_backend = pytest.mark.parametrize(
    "backend", [pytest.param(x, marks=needs_compiler) if x == "native" else x for x in BACKENDS]
)

# id: window, map, v_dim, whether there is a bias
CASES: dict[str, tuple[Window, tuple[int, int], int, bool]] = {
    "H1xW1-k3": (Window.neighborhood(3), (1, 1), 8, True),
    "H1xW9-k5": (Window.neighborhood(5), (1, 9), 3, True),
    "H5xW7-k3-dil2": (Window.neighborhood(3, dilation=2), (5, 7), 8, True),
    "H16xW16-k7": (Window.neighborhood(7), (16, 16), 8, True),
    "H14xW11-k5x3-dil2x3": (Window.neighborhood((5, 3), dilation=(2, 3)), (14, 11), 20, True),
    "H14xW11-k4": (Window.neighborhood(4), (14, 11), 8, False),
    "H8xW9-k4-dil2-causal01": (Window.neighborhood(4, dilation=2, is_causal=(False, True)), (8, 9), 8, True),
    "mask-H10xW12-b4h2": (Window.halo(4, 2), (10, 12), 8, True),
    "zero-H9xW11-b4h1": (Window.halo(4, 1, "zero"), (9, 11), 8, True),
    "mask-H11xW9-k5-r2x3": (Window.neighborhood(5, boundary="mask", query_stride=(2, 3)), (11, 9), 5, True),
}
all_cases = pytest.mark.parametrize(("window", "size", "v_dim", "rpb"), CASES.values(), ids=CASES.keys())


def make_tensors(window: Window, size: tuple[int, int], **options: Any) -> dict[str, Tensor]:
    """Tensors by argument name, with an `r` as large as the queries."""
    inputs = make_inputs(window, size, **options)
    r = torch.randn(inputs["q"].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return {**inputs, "r": r.to(inputs["q"].dtype).requires_grad_()}


def dense(window: Window, q: Tensor, k: Tensor, v: Tensor, r: Tensor, rpb: Tensor | None = None) -> Tensor:
    """Return `mean(v) - Cov(v, k) r` under the softmax over the visible keys."""
    size = k.shape[1:3]
    (see_h, at_h), (see_w, at_w) = (axis.visible(n) for axis, n in zip(window.axes, size, strict=True))
    m_h, m_w = (axis.margin(n) for axis, n in zip(window.axes, size, strict=True))
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, m_w, m_w, m_h, m_h)) for x in (k, v))
    scores = torch.einsum("byxnc,bijnc->bnyxij", q, k) * q.shape[-1] ** -0.5
    if rpb is not None:
        scores = scores + rpb[:, at_h[:, None, :, None], at_w[None, :, None, :]]
    seen = see_h[:, None, :, None] & see_w[None, :, None, :]
    p = scores.masked_fill(~seen, -torch.inf).flatten(4).softmax(-1)  # [B, n, Y, X, keys]
    k, v = (x.flatten(1, 2) for x in (k, v))
    mean_k = torch.einsum("bnyxj,bjnc->byxnc", p, k)
    mean_v = torch.einsum("bnyxj,bjnc->byxnc", p, v)
    second = torch.einsum("bnyxj,bjnv,bjnc->byxnvc", p, v, k)
    covariance = second - mean_v[..., :, None] * mean_k[..., None, :]
    return mean_v - (covariance @ r[..., None])[..., 0]


def with_gradients(run: Any, inputs: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Output and all gradients under one random output gradient, in float64."""
    leaves = {name: x.detach().to(dtype or x.dtype).requires_grad_() for name, x in inputs.items()}
    out = run(**leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(out)
    found = torch.autograd.grad(out, list(leaves.values()), grad)
    return {"out": out.detach().double(), **{n: g.double() for n, g in zip(leaves, found, strict=True)}}


@each_backend
@all_cases
def test_equals_the_covariance_written_out(
    window: Window, size: tuple[int, int], v_dim: int, rpb: bool, backend: str
) -> None:
    inputs = make_tensors(window, size, v_dim=v_dim, rpb=rpb)
    expected = with_gradients(lambda **x: dense(window, **x), inputs)
    found = with_gradients(lambda **x: parallax_attention_2d(window=window, backend=backend, **x), inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_as_exact_as_eager(dtype: torch.dtype, backend: str) -> None:
    window = Window.neighborhood(5, dilation=2)
    inputs = make_tensors(window, (14, 11), rpb=True)
    rounded = {name: x.detach().to(dtype) for name, x in inputs.items()}
    exact = with_gradients(lambda **x: dense(window, **x), rounded, torch.float64)
    eager = with_gradients(lambda **x: dense(window, **x), rounded)
    found = with_gradients(lambda **x: parallax_attention_2d(window=window, backend=backend, **x), rounded)
    for name, value in exact.items():
        bound = 2 * (eager[name] - value).abs().max() + torch.finfo(dtype).eps * value.abs().max()
        assert (found[name] - value).abs().max() <= bound, name


@each_backend
def test_zero_r_is_attention(backend: str) -> None:
    window = Window.neighborhood(7)
    x = {name: t.detach().float() for name, t in make_tensors(window, (12, 9), rpb=True).items()}
    x["r"].zero_()
    same = {"unfused": "gemm"}.get(backend, backend)
    attention = windowed_attention(x["q"], x["k"], x["v"], window, rpb=x["rpb"], backend=same)
    out = parallax_attention_2d(**x, window=window, backend=backend)
    torch.testing.assert_close(out, attention, rtol=0, atol=0 if backend == "native" else 1e-6)


@each_backend
def test_nan_reaches_only_those_who_see_it(backend: str) -> None:
    window = Window.neighborhood(3)
    for spoilt in ("k", "v"):
        inputs = make_tensors(window, (9, 9), dtype=torch.float32)
        with torch.no_grad():
            inputs[spoilt][0, 4, 4, 0] = torch.nan
        out = parallax_attention_2d(**inputs, window=window, backend=backend)
        bad = out.isnan().any(-1)
        expected = torch.zeros_like(bad)
        expected[0, 3:6, 3:6, 0] = True
        torch.testing.assert_close(bad, expected)
        grads = torch.autograd.grad(out.sum(), [inputs[x] for x in "qkvr"])
        clean = [not g[1].isnan().any() and not g[0, :2, :2].isnan().any() for g in grads]
        assert all(clean), spoilt


def test_gradients_of_any_order_without_fusion() -> None:
    window = Window.neighborhood(3)
    inputs = make_tensors(window, (2, 2), batch=1, heads=1, head_dim=1, rpb=True)

    def run(*tensors: Tensor) -> Tensor:
        named = dict(zip(inputs, tensors, strict=True))
        return parallax_attention_2d(**named, window=window, backend="unfused")

    assert torch.autograd.gradgradcheck(run, tuple(inputs.values()), fast_mode=True)


@needs_compiler
def test_fused_kernels_name_the_backend_with_second_order_gradients() -> None:
    window = Window.neighborhood(3)
    inputs = make_tensors(window, (3, 3))
    out = parallax_attention_2d(**inputs, window=window, backend="native")
    (grad,) = torch.autograd.grad(out.square().sum(), inputs["r"], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='unfused'"):
        grad.sum().backward()


@needs_compiler
def test_threads_sum_in_one_order() -> None:
    window = Window.neighborhood(3)
    inputs = make_tensors(window, (20, 20), batch=1, heads=1, rpb=True, dtype=torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        first, second = (
            with_gradients(lambda **x: parallax_attention_2d(window=window, backend="native", **x), inputs)
            for _ in range(2)
        )
    finally:
        torch.set_num_threads(threads)
    one = with_gradients(lambda **x: parallax_attention_2d(window=window, backend="native", **x), inputs)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-4)


def test_forward_mode_and_transforms() -> None:
    window = Window.neighborhood(3)
    inputs = {name: x.detach() for name, x in make_tensors(window, (4, 5)).items()}

    def run(r: Tensor) -> Tensor:
        return parallax_attention_2d(**{**inputs, "r": r}, window=window)

    # The output is affine in r.
    direction = torch.randn_like(inputs["r"])
    _, slope = torch.func.jvp(run, (inputs["r"],), (direction,))
    torch.testing.assert_close(slope, run(inputs["r"] + direction) - run(inputs["r"]))
    stacked = torch.stack([inputs["r"], direction])
    torch.testing.assert_close(torch.vmap(run)(stacked), torch.stack([run(r) for r in stacked]))


def test_arguments_that_do_not_fit_are_named() -> None:
    window = Window.neighborhood(3)
    inputs = make_tensors(window, (4, 4))
    with pytest.raises(ValueError, match=r"r must have q's shape, dtype and device, .*; got"):
        parallax_attention_2d(**{**inputs, "r": inputs["r"][:1]}, window=window)
    with pytest.raises(ValueError, match="backend must be one of native, unfused, plain; got 'triton'"):
        parallax_attention_2d(**inputs, window=window, backend="triton")
    on_meta = {name: x.to("meta") for name, x in inputs.items()}
    with pytest.raises(ValueError, match="native: it runs on CPUs, and the maps are on meta"):
        parallax_attention_2d(**on_meta, window=window, backend="native")
    assert parallax_attention_2d(**on_meta, window=window).shape == inputs["q"].shape
