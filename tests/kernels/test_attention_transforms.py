"""Attention under torch's transforms and modes: autograd twice, forward mode, vmap, compile, export, autocast."""

from contextlib import nullcontext, suppress

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import visionattn_kernels as vk
from visionattn_kernels import Window, windowed_attention
from visionattn_kernels.testing import make_inputs

FUSED = ["native", "tiled"]
FAST = [*FUSED, "gemm", "plain"]
each_backend = pytest.mark.parametrize("backend", FAST)
each_fused_backend = pytest.mark.parametrize("backend", FUSED)


@each_fused_backend
def test_forward_mode_is_refused_in_one_line(backend: str) -> None:
    """A tangent would be dropped in silence: custom operators pass none on."""
    x = {name: t.detach() for name, t in make_inputs(Window.neighborhood(3), (4, 5)).items()}

    def attend(q: Tensor, backend: str | None) -> Tensor:
        return vk.neighborhood_attention_2d(q, x["k"], x["v"], 3, backend=backend)

    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x["q"], torch.ones_like(x["q"]))
        with pytest.raises(ValueError, match=rf"\({backend}: it has no forward-mode derivative, which plain and refer"):
            attend(dual, backend)
    found, expected = (
        torch.func.jvp(lambda q, name=name: attend(q, name), (x["q"],), (x["k"],)) for name in (None, "reference")
    )
    torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="window_qk: it has no forward-mode derivative"):
        torch.func.jvp(lambda q: vk.neighborhood_qk_2d(q, x["k"], 3), (x["q"],), (x["k"],))


def test_export_with_dynamic_map_size_is_refused_in_one_line() -> None:
    class Attend(torch.nn.Module):
        def forward(self, q: Tensor) -> object:
            return vk.neighborhood_attention_2d(q, q, q, 3)

    q = torch.randn(2, 6, 6, 2, 8)
    any_size = {1: torch.export.Dim("H", min=4), 2: torch.export.Dim("W", min=4)}
    with pytest.raises(ValueError, match=r"torch.export needs one height and width .* leave both out"):
        torch.export.export(Attend(), (q,), dynamic_shapes=[any_size])


@pytest.mark.parametrize("first", ["inference", "fake", "float64"])
@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_caches_hold_ordinary_tensors_whatever_mode_comes_first(backend: str, first: str) -> None:
    modes = {"inference": torch.inference_mode, "fake": FakeTensorMode, "float64": nullcontext}
    window = Window.neighborhood(3, dilation=(1, 2))
    size = (4, 50 + 5 * list(modes).index(first) + FAST.index(backend) if backend in FAST else 49)  # in no cache yet
    x = make_inputs(window, size, batch=1, dtype=torch.float32, rpb=True, rel=True)
    expected = windowed_attention(**x, window=window, backend="tiled" if backend == "native" else "native")  # type: ignore[arg-type]
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64 if first == "float64" else default)
        with modes[first](), suppress(AssertionError):  # some want no fake tensors
            shaped = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in x.items()}
            windowed_attention(**shaped, window=window, backend=backend)  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(default)
    found = windowed_attention(**x, window=window, backend=backend)  # type: ignore[arg-type]
    found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "gemm", "plain"])
def test_gradients_to_second_order(backend: str) -> None:
    window = Window.neighborhood(3, dilation=(1, 2), boundary="mask")
    x = make_inputs(window, (3, 4), batch=1, heads=1, head_dim=2, rpb=True, rel=True, num_extra=1)
    names = list(x)

    def attend(*tensors: Tensor) -> object:
        arguments = dict(zip(names, tensors, strict=True))
        return windowed_attention(window=window, backend=backend, return_lse=True, **arguments)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(attend, tuple(x.values()), check_forward_ad=backend == "reference")
    assert torch.autograd.gradgradcheck(attend, tuple(x.values()), fast_mode=True)


@each_fused_backend
def test_fused_backends_refuse_second_order_gradients(backend: str) -> None:
    x = make_inputs(Window.neighborhood(3), (5, 6), dtype=torch.float32)
    out = windowed_attention(**x, window=Window.neighborhood(3), backend=backend)  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(out.square().sum(), x["q"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"first-order gradients alone; .* ask for backend='gemm'"):
        grad.sum().backward()


@each_backend
def test_vmap_over_maps_and_gradients(backend: str) -> None:
    """Per-sample gradients, as torch.func users take them, and an ensemble of biases."""
    window = Window.neighborhood(3)
    x = make_inputs(window, (5, 6), dtype=torch.float32, batch=3, rpb=True)
    q, k, v, rpb = x.values()

    def loss(rpb: Tensor, q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
        return windowed_attention(q[None], k[None], v[None], window, rpb=rpb, backend=backend).square().sum()

    found, expected = (
        torch.func.vmap(torch.func.grad(loss, (0, 1)), (None, 0, 0, 0, None))(rpb, q, k, v, name)
        for name in (backend, "reference")
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    ensemble = torch.func.vmap(loss, (0, None, None, None, None))(
        torch.stack([rpb, 2 * rpb]), q[0], k[0], v[0], backend
    )
    torch.testing.assert_close(ensemble[1], loss(2 * rpb, q[0], k[0], v[0], "reference"))


@each_backend
def test_attention_compiles_without_graph_breaks(backend: str) -> None:
    x = make_inputs(Window.neighborhood(3), (6, 6), dtype=torch.float32, rpb=True)

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor) -> Tensor:
        return vk.neighborhood_attention_2d(q, k, v, 3, rpb=rpb, backend=backend)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(*x.values()).square().sum(), list(x.values())) for f in (compiled, attend))
    torch.testing.assert_close(found, expected)


def test_autocast_keeps_float32_bias_beside_bfloat16_maps() -> None:
    x = make_inputs(Window.neighborhood(3), (6, 6), dtype=torch.bfloat16)
    rpb = torch.randn(2, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = vk.neighborhood_attention_2d(x["q"], x["k"], x["v"], 3, rpb=rpb)
    assert isinstance(out, Tensor)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert rpb.grad is not None
    assert rpb.grad.dtype == torch.float32


def test_autocast_casts_float32_maps() -> None:
    x = make_inputs(Window.neighborhood(3), (6, 6), dtype=torch.float32, num_extra=1)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = windowed_attention(**x, window=Window.neighborhood(3), return_lse=True)  # type: ignore[arg-type]
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("name", ["tiled", "gemm", "plain", "reference"])
def test_meta_tensors_have_a_result_of_their_shape(name: str) -> None:
    q = torch.empty(1, 6, 5, 2, 4, device="meta", dtype=torch.bfloat16)
    out = vk.neighborhood_attention_2d(q, q, q, 3, backend=name)
    assert isinstance(out, Tensor)
    assert (out.device.type, out.shape, out.dtype) == ("meta", q.shape, q.dtype)


def test_flops_match_the_window() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    q = torch.empty(2, 56, 56, 2, 32, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        out = vk.neighborhood_attention_2d(q, q, q, 7)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * 2 * (2 * 2 * 56 * 56 * 49 * 32)  # two products of 2 FLOPs, over batch, heads, pairs, channels
    assert counter.get_total_flops() == forward * 7 // 2  # backward: the scores again, and four more products
