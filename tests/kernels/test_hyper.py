"""HyperZ·Z·W: both operators against their sums written out, their gradients, and what they refuse."""

from itertools import product

import pytest
import torch
from torch import Tensor

from kernels.bench import terminator_reference as plain  # which benchmarks also time
from visionattn_kernels import hyper_zzw_global, hyper_zzw_local
from visionattn_kernels.hyper import api as hyper
from visionattn_kernels.hyper import stacked

DOUBLE = torch.float64


@pytest.fixture(params=["native", "torch"], autouse=True)
def path(request, monkeypatch):
    """Compiled operators, and what is computed where there are none."""
    if request.param == "torch":
        monkeypatch.setattr(hyper, "can_run", lambda *_: False)
    else:
        needs_compiler()


def needs_compiler() -> None:
    if not stacked.can_run(torch.ones(1)):
        pytest.skip(f"no kernels: {stacked.unavailable('stacked')}")


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, requires_grad=True)


def correlate(z: Tensor, kernel: Tensor) -> Tensor:
    """The local operator with weights `[B, C, kH, kW, H, W]`, tap by tap."""
    height, width = z.shape[2:]
    taps = kernel.shape[2:4]
    out = torch.zeros_like(z)
    for i, j, h, w in product(*(range(n) for n in (*taps, height, width))):
        y, x = h + i - taps[0] // 2, w + j - taps[1] // 2
        if 0 <= y < height and 0 <= x < width:
            out[:, :, h, w] += kernel[:, :, i, j, h, w] * z[:, :, y, x]
    return out


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("matmul", (9, 9)),
        ("matmul", (1, 1)),
        ("elementwise", (3, 4)),
        ("fftconv", (4, 5)),
        ("fftconv", (5, 3)),
        ("fftconv", (1, 7)),
    ],
    ids=str,
)
def test_global_operator_matches_its_sum(mode, size):
    w_hat, *z = (randn(2, 5, *size) for _ in range(4))
    upstream = [torch.randn_like(x) for x in z]
    ours = hyper_zzw_global(w_hat, z, mode)
    expected = [plain.global_product(w_hat, x, mode) for x in z]
    torch.testing.assert_close(ours, expected)
    grads = [torch.autograd.grad(out, [w_hat, *z], upstream) for out in (ours, expected)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(hyper_zzw_global(w_hat, z[0], mode), ours[0])


@pytest.mark.parametrize("mode", ["matmul", "elementwise", "fftconv"])
def test_global_operator_has_gradients_of_two_orders(mode):
    inputs = (randn(1, 2, 3, 3), randn(1, 2, 3, 3))
    assert torch.autograd.gradcheck(lambda a, z: hyper_zzw_global(a, z, mode), inputs)
    assert torch.autograd.gradgradcheck(lambda a, z: hyper_zzw_global(a, z, mode), inputs, fast_mode=True)


KERNELS = [(1, 1), (3, 3), (3, 5), (9, 7), (1, 5), (2, 4)]
"""Among them larger than the map, and even ones, which have one tap more before the position than behind it."""


@pytest.mark.parametrize("size", [(6, 7), (1, 6)], ids=str)
@pytest.mark.parametrize("taps", KERNELS, ids=str)
@pytest.mark.parametrize("kind", ["shared", "image", "position"])
def test_local_operator_matches_its_sum(kind, taps, size):
    z = randn(2, 5, *size)
    lead = {"shared": (5,), "image": (2, 5), "position": (2, 5)}[kind]
    kernel = randn(*lead, *taps, *(size if kind == "position" else ()))
    everywhere = kernel if kind == "position" else kernel[..., None, None].expand(2, 5, *taps, *size)
    ours, expected = hyper_zzw_local(z, kernel), correlate(z, everywhere)
    torch.testing.assert_close(ours, expected)
    upstream = torch.randn_like(z)
    grads = [torch.autograd.grad(out, (z, kernel), upstream) for out in (ours, expected)]
    torch.testing.assert_close(*grads)


def test_operators_have_forward_mode_derivatives():
    """Compiled operators stand back for them; they would drop the tangent in silence."""
    w_hat, z, kernel = (x.detach() for x in (randn(2, 3, 4, 4), randn(2, 3, 4, 4), randn(3, 3, 3)))
    for operator, first in ((hyper_zzw_global, w_hat), (lambda a, z: hyper_zzw_local(z, a), kernel)):
        _, found = torch.func.jvp(operator, (first, z), (first, z))
        torch.testing.assert_close(found, 2 * operator(first, z))  # both are linear in either


@pytest.mark.parametrize("taps", [(3, 3), (5, 3)], ids=str)
def test_local_operator_has_gradients_of_two_orders(taps):
    inputs = (randn(2, 2, 4, 3), randn(2, 2, *taps))
    assert torch.autograd.gradcheck(hyper_zzw_local, inputs)
    assert torch.autograd.gradgradcheck(hyper_zzw_local, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stacks_may_be_views_and_of_any_count(dtype):
    needs_compiler()
    for count in (1, 7, 8, 16, 33):
        maps, kernels = torch.randn(8, 6, count, dtype=dtype), torch.randn(4, 3, count, dtype=dtype)
        a, b = maps.transpose(0, 1), maps[::2, :, :]
        torch.testing.assert_close(stacked.multiply_stacked(b, a), torch.einsum("hmn,mwn->hwn", b, a))
        out = hyper_zzw_local(maps.permute(2, 0, 1)[None], kernels.permute(2, 0, 1))
        back = torch.randn_like(maps).movedim(2, 0)[None]
        again = hyper_zzw_local(back.contiguous(), kernels.permute(2, 0, 1).contiguous())
        torch.testing.assert_close(hyper_zzw_local(back, kernels.permute(2, 0, 1)), again)
        assert out.shape == (1, count, 8, 6)


@pytest.mark.parametrize("mode", ["matmul", "elementwise", "fftconv"])
def test_operators_compile_in_one_graph(mode):
    def both(a: Tensor, z: Tensor, kernel: Tensor) -> Tensor:
        return hyper_zzw_local(hyper_zzw_global(a, z, mode), kernel)

    inputs = [x.float().detach().requires_grad_() for x in (randn(2, 3, 6, 6), randn(2, 3, 6, 6), randn(2, 3, 5, 5))]
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), both(*inputs))
    grads = [torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (compiled, both)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["matmul", "elementwise", "fftconv"])
def test_bfloat16_is_as_exact_as_it_can_be(mode):
    a, z, kernel = randn(2, 3, 6, 6), randn(2, 3, 6, 6), randn(2, 3, 5, 5)
    exact = hyper_zzw_local(hyper_zzw_global(a, z, mode), kernel)
    half = hyper_zzw_local(hyper_zzw_global(a.bfloat16(), z.bfloat16(), mode), kernel.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.03 * exact.abs().max()


def test_invalid_argument_is_named():
    x, square = torch.ones(2, 3, 4, 6), torch.ones(2, 3, 4, 4)
    with pytest.raises(ValueError, match="square matrices; got maps of 4x6: pad or resize"):
        hyper_zzw_global(x, x)
    with pytest.raises(ValueError, match=r"one shape \[B, C, H, W\]; got \[2, 3, 4, 4\] and \[2, 3, 4, 6\]"):
        hyper_zzw_global(square, x)
    with pytest.raises(ValueError, match="mode must be one of matmul, elementwise, fftconv; got 'conv'"):
        hyper_zzw_global(square, square, "conv")
    with pytest.raises(ValueError, match=r"kernel \[C, kH, kW\].*got \[2, 3, 4, 6\] and \[3, 3\]"):
        hyper_zzw_local(x, torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"kernel \[4, 3, 3\] does not fit z \[2, 3, 4, 6\]"):
        hyper_zzw_local(x, torch.ones(4, 3, 3))
    with pytest.raises(ValueError, match="does not fit"):
        hyper_zzw_local(x, torch.ones(2, 3, 3, 3, 6, 4))
