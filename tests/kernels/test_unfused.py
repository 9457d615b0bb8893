"""The unfused operators: against sums written out, to second order, and as halves of attention."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import visionattn_kernels as vk
from visionattn_kernels import Window, windowed_attention, windowed_av, windowed_qk
from visionattn_kernels.testing import make_inputs
from visionattn_kernels.unfused.slots import is_complete, tabulate_slots
from visionattn_kernels.window import AxisWindow, TiledMap

# id: window, map
CASES: dict[str, tuple[Window, tuple[int, int]]] = {
    "H9xW7-k3": (Window.neighborhood(3), (9, 7)),
    "H9xW8-k4-dil2": (Window.neighborhood(4, dilation=2), (9, 8)),
    "H13xW11-k5x3-dil2x3": (Window.neighborhood((5, 3), dilation=(2, 3)), (13, 11)),
    "H12xW10-k6x5-s6x2": (Window.neighborhood((6, 5), (6, 2)), (12, 10)),
    "H8xW9-k4-dil2-causal01": (Window.neighborhood(4, dilation=2, is_causal=(False, True)), (8, 9)),
    "H4xW5-k7-larger": (Window.neighborhood(7), (4, 5)),
    "H1xW17-k5": (Window.neighborhood((1, 5)), (1, 17)),
    "mask-H19xW12-b10h3": (Window.halo(10, 3), (19, 12)),
    "zero-H9xW11-b4h1": (Window.halo(4, 1, "zero"), (9, 11)),
    "mask-H11xW9-k5-r2x3": (Window.neighborhood(5, boundary="mask", query_stride=(2, 3)), (11, 9)),
}
all_cases = pytest.mark.parametrize(("window", "size"), CASES.values(), ids=CASES.keys())


def slots(axis: AxisWindow, length: int) -> tuple[Tensor, Tensor]:
    """Key of each slot as a one-hot `[Q, k, L]`, zero beyond the map, and whether the slot exists, `[Q, k]`."""
    group, index, group_length = axis.groups(length)
    start, stop = axis.interval(index, group_length)
    key, exists = torch.zeros(len(index), axis.kernel_size, length), torch.zeros(len(index), axis.kernel_size)
    for query, e in product(range(len(index)), range(axis.kernel_size)):
        member = int(start[query]) + e
        exists[query, e] = member < stop[query]
        if exists[query, e] and 0 <= member < group_length[query]:
            key[query, e, group[query] + axis.dilation * member] = 1
    return key.double(), exists.bool()


def make_products(window: Window, size: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, and weights of their windows."""
    x = make_inputs(window, size, head_dim=5, seed=seed)
    slots = window.kernel_size[0] * window.kernel_size[1]
    generator = torch.Generator().manual_seed(seed + 1)
    attn = torch.randn(*x["q"].shape[:-1], slots, generator=generator, dtype=torch.float64, requires_grad=True)
    return x["q"], x["k"], attn


@all_cases
def test_qk_and_av_match_explicit_sums(window: Window, size: tuple[int, int]) -> None:
    (key_h, exists_h), (key_w, exists_w) = (slots(axis, n) for axis, n in zip(window.axes, size, strict=True))
    exists = (exists_h[:, None, :, None] & exists_w[:, None]).flatten(2)[:, :, None]
    q, k, attn = make_products(window, size)
    near = torch.einsum("byejnc,xfj->byxnefc", torch.einsum("bijnc,yei->byejnc", k, key_h), key_w).flatten(4, 5)

    scores = torch.einsum("byxnc,byxnec->byxne", q, near)
    torch.testing.assert_close(windowed_qk(q, k, window), scores.masked_fill(~exists, -torch.inf))

    sums = torch.einsum("byxne,byxnec->byxnc", attn * exists, near)
    torch.testing.assert_close(windowed_av(attn, k, window), sums)


@all_cases
def test_missing_slots_are_ignored(window: Window, size: tuple[int, int]) -> None:
    q, k, attn = make_products(window, size)
    missing = windowed_qk(q, k, window) == -torch.inf
    out = windowed_av(attn.masked_fill(missing, torch.nan), k, window)
    torch.testing.assert_close(out, windowed_av(attn, k, window))
    grad_attn, grad_k = torch.autograd.grad(windowed_av(attn, k, window).square().sum(), (attn, k))
    assert not grad_attn[missing].any()
    assert grad_k.isfinite().all()

    finite = windowed_qk(q, k, window).masked_fill(missing, 0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(finite.square().sum(), (q, k)))


@all_cases
def test_qk_softmax_av_is_attention(window: Window, size: tuple[int, int]) -> None:
    x = make_inputs(window, size, v_dim=3, rpb=True)
    scores = windowed_qk(x["q"], x["k"], window, x["rpb"], scale=0.3)
    out = windowed_av(scores.softmax(-1), x["v"], window)
    expected = windowed_attention(**x, window=window, scale=0.3, backend="reference")  # type: ignore[arg-type]
    torch.testing.assert_close(out, expected)


SMALL = {
    "shift-dil1x2": (Window.neighborhood((2, 3), dilation=(1, 2)), (3, 6)),
    "shift-larger": (Window.neighborhood(3), (2, 4)),
    "causal-s2": (Window.neighborhood(3, 2, is_causal=True), (4, 3)),
    "mask-r2": (Window.neighborhood(3, boundary="mask", query_stride=2), (3, 5)),
    "zero-b2h1": (Window.neighborhood(4, 2, boundary="zero"), (3, 4)),
}


@pytest.mark.parametrize(("window", "size"), SMALL.values(), ids=SMALL.keys())
def test_gradients_to_second_order(window: Window, size: tuple[int, int]) -> None:
    x = make_inputs(window, size, batch=1, heads=2, head_dim=2, rpb=True)
    q, k, rpb = x["q"], x["k"], x["rpb"]
    missing = windowed_qk(q, k, window) == -torch.inf
    attn = torch.randn(missing.shape, dtype=torch.float64, requires_grad=True)

    def qk(q: Tensor, k: Tensor, rpb: Tensor) -> Tensor:
        return windowed_qk(q, k, window, rpb, scale=0.7).masked_fill(missing, 0)

    def av(attn: Tensor, v: Tensor) -> Tensor:
        return windowed_av(attn, v, window)

    for function, inputs in ((qk, (q, k, rpb)), (av, (attn, k))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_gradients_to_third_order() -> None:
    """Every product is the gradient of another, so the ladder has no end."""
    q, k, attn = make_products(Window.neighborhood(3), (4, 5))
    out = windowed_av(attn, windowed_qk(q, k, Window.neighborhood(3))[..., :5], Window.neighborhood(3)).square().sum()
    for _ in range(3):
        (grad,) = torch.autograd.grad(out, q, create_graph=True)
        out = (grad * attn[..., :5].tanh()).sum() + grad.square().sum()
    assert out.isfinite()
    assert out.requires_grad


@all_cases
def test_small_chunks_give_the_same_bits(
    window: Window, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: nothing is read that was not written, and nothing depends on the order of threads."""

    def run() -> list[Tensor]:
        q, k, attn = make_products(window, size)
        a = torch.autograd.grad(windowed_av(attn, k, window).square().sum(), (attn, k))
        b = torch.autograd.grad(windowed_qk(q, k, window).exp().sum(), (q, k))
        return [*a, *b]

    expected = run()
    torch.use_deterministic_algorithms(True)  # fills what torch leaves uninitialised with NaN
    try:
        again = run()
        monkeypatch.setattr(TiledMap, "SCORES_PER_CHUNK", 1)
        monkeypatch.setattr(TiledMap, "KEY_VALUES_PER_GROUP", 1)
        chunked = run()
    finally:
        torch.use_deterministic_algorithms(False)
    for first, second, third in zip(expected, again, chunked, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, third)


@pytest.mark.parametrize("length", [1, 2, 5, 12])
@pytest.mark.parametrize("boundary", ["shift", "mask", "zero"])
@pytest.mark.parametrize(
    ("k", "d", "causal"), [(1, 1, True), (3, 1, False), (4, 2, False), (5, 2, True), (12, 1, False)]
)
def test_is_complete_if_all_slots_exist(k: int, d: int, causal: bool, boundary: str, length: int) -> None:
    axis = AxisWindow(k, dilation=d, is_causal=causal, boundary=boundary)  # type: ignore[arg-type]
    _, exists = tabulate_slots(axis, length, torch.device("cpu"))
    # It may take an axis for incomplete that is complete, at the price of a mask.
    assert bool(exists.all()) or not is_complete(axis, length)
    if boundary == "shift" and not causal:
        assert bool(exists.all()) == is_complete(axis, length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    window = Window.neighborhood(5, dilation=2)
    q, k, attn = make_products(window, (13, 11))
    scores = windowed_qk(q.to(dtype), k.to(dtype), window)
    sums = windowed_av(attn.to(dtype), k.to(dtype), window)
    assert scores.dtype == sums.dtype == dtype
    eps = torch.finfo(dtype).eps
    exact = windowed_qk(q.to(dtype).double(), k.to(dtype).double(), window)
    torch.testing.assert_close(scores.double(), exact, rtol=eps, atol=4 * torch.finfo(torch.float32).eps)
    exact = windowed_av(attn.to(dtype).double(), k.to(dtype).double(), window)
    torch.testing.assert_close(sums.double(), exact, rtol=eps, atol=1e-5)


def test_empty_batches() -> None:
    window = Window.neighborhood(3)
    q, k, attn = (x[:0].detach().requires_grad_() for x in make_products(window, (6, 7)))
    scores, sums = windowed_qk(q, k, window), windowed_av(attn, k, window)
    assert (scores.shape, sums.shape) == ((0, 6, 7, 2, 9), (0, 6, 7, 2, 5))
    grads = torch.autograd.grad(scores.sum() + sums.sum(), (q, k, attn))
    assert [g.shape for g in grads] == [q.shape, k.shape, attn.shape]


def test_views() -> None:
    window = Window.neighborhood(3)
    q, k, attn = make_products(window, (6, 7))
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, attn)]
    assert not any(x.is_contiguous() for x in turned)
    assert torch.equal(windowed_qk(*turned[:2], window), windowed_qk(q, k, window))
    assert torch.equal(windowed_av(turned[2], turned[1], window), windowed_av(attn, k, window))


def test_sequences_are_maps_of_one_row() -> None:
    x = make_inputs(Window.neighborhood((1, 5), dilation=(1, 2)), (1, 17), rpb=True)
    q, k, rpb = x["q"], x["k"], x["rpb"]
    one = vk.neighborhood_qk_1d(q[:, 0], k[:, 0], 5, dilation=2, rpb=rpb[:, 0], scale=0.5)
    two = vk.neighborhood_qk_2d(q, k, (1, 5), dilation=(1, 2), rpb=rpb, scale=0.5)
    torch.testing.assert_close(one, two[:, 0])
    assert one.shape == (2, 17, 2, 5)
    sums = vk.neighborhood_av_1d(one, k[:, 0], 5, dilation=2)
    torch.testing.assert_close(sums, vk.neighborhood_av_2d(two, k, (1, 5), dilation=(1, 2))[:, 0])


def test_scale_is_one_by_default() -> None:
    x = make_inputs(Window.neighborhood(3), (5, 5))
    torch.testing.assert_close(
        vk.neighborhood_qk_2d(x["q"], x["k"], 3)[:, 2, 2, :, 4], (x["q"] * x["k"])[:, 2, 2].sum(-1)
    )
    torch.testing.assert_close(
        vk.neighborhood_qk_2d(x["q"], x["k"], 3, scale=0.5), vk.neighborhood_qk_2d(x["q"] * 0.5, x["k"], 3)
    )


def test_constant_weights_are_a_depthwise_convolution() -> None:
    """Weights that do not depend on the query, on a zero-padded map: what a convolution computes."""
    kernel = torch.randn(2, 3, 3, dtype=torch.float64)
    v = torch.randn(2, 6, 7, 2, 4, dtype=torch.float64)
    attn = kernel.flatten(1).expand(2, 6, 7, 2, 9)
    ours = vk.neighborhood_av_2d(attn, v, 3, boundary="zero")
    weight = kernel.repeat_interleave(4, 0)[:, None]
    expected = F.conv2d(v.flatten(3).permute(0, 3, 1, 2), weight, padding=1, groups=8).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours.flatten(3), expected)


def test_flops_match_the_window() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    q = torch.empty(2, 56, 56, 2, 32, device="meta", requires_grad=True)
    product = 2 * 2 * 2 * 56 * 56 * 49 * 32  # 2 FLOPs over batch, heads, pairs, channels
    with FlopCounterMode(display=False) as counter:
        scores = vk.neighborhood_qk_2d(q, q, 7)
        assert counter.get_total_flops() == product
        out = vk.neighborhood_av_2d(scores, q, 7)
        assert counter.get_total_flops() == 2 * product
        out.sum().backward()
    assert counter.get_total_flops() == 6 * product
    assert out.shape == q.shape
    with FlopCounterMode(display=False) as counter:
        vk.neighborhood_av_2d(scores.detach(), q, 7).sum().backward()
    assert counter.get_total_flops() == 2 * product  # weights that want no gradient get none


def test_compiles_without_graph_breaks() -> None:
    x = make_inputs(Window.neighborhood(3), (6, 6), dtype=torch.float32, rpb=True)

    def mix(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor) -> Tensor:
        scores = vk.neighborhood_qk_2d(q, k, 3, is_causal=True, rpb=rpb)
        return vk.neighborhood_av_2d(scores.softmax(-1), v, 3, is_causal=True)

    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(*x.values()).square().sum(), list(x.values())) for f in (compiled, mix))
    torch.testing.assert_close(found, expected)


def test_vmap_and_functional_gradients() -> None:
    """Per-sample gradients with shared values, and a batch of weights."""
    window = Window.neighborhood(3)
    q, k, attn = (x.detach() for x in make_products(window, (5, 6)))

    def loss(attn: Tensor, v: Tensor) -> Tensor:
        return windowed_av(attn[None], v[None], window).square().sum()

    found = torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, None))(attn, k[0])
    for i in range(len(attn)):
        expected = torch.func.grad(loss, (0, 1))(attn[i], k[0])
        torch.testing.assert_close((found[0][i], found[1][i]), expected)
    hessian = torch.func.grad(lambda a: torch.func.grad(loss)(a, k[0]).square().sum())(attn[0])
    assert hessian.isfinite().all()
    scores = torch.func.vmap(lambda q, k: windowed_qk(q[None], k[None], window), (0, None))(q, k[1])
    torch.testing.assert_close(scores[:, 0], windowed_qk(q, k[1].expand_as(k), window))


def test_autocast_casts_float32_maps() -> None:
    q, k, attn = (x.detach().float() for x in make_products(Window.neighborhood(3), (5, 6)))
    with torch.autocast("cpu", torch.bfloat16):
        assert vk.neighborhood_qk_2d(q, k, 3).dtype == torch.bfloat16
        assert vk.neighborhood_av_2d(attn, k, 3).dtype == torch.bfloat16


Q = torch.randn(2, 5, 6, 2, 8)


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        ("qk_2d", (Q[0], Q), r"q must be \[B, H, W, heads, head_dim\]; got shape \(5, 6, 2, 8\)"),
        ("qk_2d", (Q, Q[..., :4]), r"q must have shape \[2, 5, 6, 2, 4\] to fit k"),
        ("qk_2d", (Q, Q, 3, 1, 1, False, Q[0]), r"rpb must have shape \[2, 5, 5\]"),
        ("qk_2d", (Q, Q, 0), "kernel_size must be an int >= 1"),
        ("qk_1d", (Q, Q), r"q must have 4 dimensions in 1-D attention; got shape \(2, 5, 6, 2, 8\)"),
        ("av_2d", (Q, Q), r"attn must have shape \[2, 5, 6, 2, 9\] to fit v and the window; got \[2, 5, 6, 2, 8\]"),
        (
            "av_2d",
            (Q, Q.double()),
            "attn and v must have one floating dtype .* got torch.float32 on cpu and torch.float64",
        ),
        ("av_2d", (Q, Q[:, 0]), r"v must be \[B, H, W, heads, v_dim\]"),
        ("av_1d", (Q[0], Q), "v must have 4 dimensions"),
    ],
)
def test_invalid_argument_is_named(operator: str, arguments: tuple[object, ...], message: str) -> None:
    call = getattr(vk, f"neighborhood_{operator}")
    with pytest.raises(ValueError, match=message):
        call(*arguments, *((3,) if len(arguments) == 2 else ()))
