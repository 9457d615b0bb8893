"""The operators: every backend against the oracle in float64, and the oracle against plain formulas."""

from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import visionattn_kernels as vk
from visionattn_kernels import Window, windowed_attention
from visionattn_kernels.testing import (
    Granted,
    assert_is_granted,
    assert_matches_reference,
    grant,
    make_inputs,
    run_with_gradients,
)
from visionattn_kernels.window import TiledMap

FUSED = ["native", "tiled"]
FAST = [*FUSED, "gemm", "plain"]

# id: window, map, and what else the inputs hold
CASES: dict[str, tuple[Window, tuple[int, int], dict[str, object]]] = {
    "H9xW7-k3-d8": (Window.neighborhood(3), (9, 7), {}),
    "H9xW7-k4-rpb": (Window.neighborhood(4), (9, 7), {"rpb": True}),
    "H13xW11-k7-d24-rpb-extra3": (Window.neighborhood(7), (13, 11), {"head_dim": 24, "rpb": True, "num_extra": 3}),
    "H13xW11-k5x3-dil2x3-rpb-rel": (Window.neighborhood((5, 3), dilation=(2, 3)), (13, 11), {"rpb": True, "rel": True}),
    "H14xW14-k7-dil2-v16": (Window.neighborhood(7, dilation=2), (14, 14), {"v_dim": 16, "rpb": True}),
    "H9xW9-k3-dil9": (Window.neighborhood(3, dilation=9), (9, 9), {"rpb": True}),
    "H12xW10-k6x5-s6x2": (Window.neighborhood((6, 5), (6, 2)), (12, 10), {"rpb": True}),
    "H12xW10-k5-s5-causal01": (Window.neighborhood(5, 5, is_causal=(False, True)), (12, 10), {"rel": True}),
    "H8xW9-k4-dil2-causal11": (
        Window.neighborhood(4, dilation=2, is_causal=True),
        (8, 9),
        {"rpb": True, "num_extra": 1},
    ),
    "H4xW5-k7-larger": (Window.neighborhood(7), (4, 5), {"rpb": True, "rel": True}),
    "H1xW17-k5": (Window.neighborhood((1, 5)), (1, 17), {"rpb": True}),
    "H17xW1-k5x1-dil3": (Window.neighborhood((5, 1), dilation=(3, 1)), (17, 1), {"rpb": True}),
    "H1xW1-k7": (Window.neighborhood(7), (1, 1), {"rpb": True, "rel": True}),
    "B1-H33xW6-k9-d128": (Window.neighborhood(9), (33, 6), {"batch": 1, "heads": 1, "head_dim": 128}),
    "B1-H40xW40-k7-d48": (Window.neighborhood(7), (40, 40), {"batch": 1, "heads": 3, "head_dim": 48, "rpb": True}),
    "mask-H16xW16-b8h3": (Window.halo(8, 3), (16, 16), {"rel": True, "head_dim": 16}),
    "mask-H19xW12-b10h3": (Window.halo(10, 3), (19, 12), {"rel": True}),
    "mask-H9xW11-k5-dil2-rpb": (
        Window.neighborhood(5, dilation=2, boundary="mask"),
        (9, 11),
        {"rpb": True, "num_extra": 2},
    ),
    "mask-H3xW5-k16-s10": (Window.halo(10, 3), (3, 5), {"rel": True}),
    "zero-H16xW16-b8h3": (Window.halo(8, 3, "zero"), (16, 16), {"rel": True, "num_extra": 1}),
    "zero-H7xW10-k4-dil2": (Window.neighborhood(4, dilation=2, boundary="zero"), (7, 10), {"rpb": True}),
    "mask-H16xW12-b8h3-r2": (Window.halo(8, 3, query_stride=2), (16, 12), {"rel": True}),
    "zero-H11xW9-b4h1-r2x3": (Window.halo(4, 1, "zero", query_stride=(2, 3)), (11, 9), {"rpb": True}),
    "shift-H11xW9-k5-dil2-r2": (Window.neighborhood(5, dilation=2, query_stride=2), (11, 9), {"rpb": True}),
    "B0-H6xW6-k3": (Window.neighborhood(3), (6, 6), {"batch": 0, "rpb": True, "rel": True}),
}
all_cases = pytest.mark.parametrize(("window", "size", "options"), CASES.values(), ids=CASES.keys())
each_backend = pytest.mark.parametrize("backend", FAST)
each_fused_backend = pytest.mark.parametrize("backend", FUSED)


@lru_cache(maxsize=1)  # of the case and dtype that several backends meet in turn
def inputs_and_granted(case: str, dtype: torch.dtype) -> tuple[Window, dict[str, Tensor], Granted]:
    window, size, options = CASES[case]
    inputs = make_inputs(window, size, **{"v_dim": 5, **options})  # type: ignore[arg-type]
    return window, inputs, grant(window, inputs, dtype)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_backend_matches_reference(case: str, dtype: torch.dtype, backend: str) -> None:
    window, inputs, granted = inputs_and_granted(case, dtype)
    assert_is_granted(window, inputs, backend, granted, dtype)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fills what torch leaves uninitialised with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@each_backend
@all_cases
@pytest.mark.usefixtures("poisoned_memory")
def test_backend_reads_no_uninitialised_memory_and_repeats_bitwise(
    window: Window, size: tuple[int, int], options: dict[str, object], backend: str
) -> None:
    inputs = make_inputs(window, size, dtype=torch.float32, **options)  # type: ignore[arg-type]
    first, second = (run_with_gradients(window, inputs, backend) for _ in range(2))
    for name, x in first.items():
        assert x.isfinite().all(), name
        assert torch.equal(x, second[name]), name


def test_tiled_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window.neighborhood(5, dilation=2)
    inputs = make_inputs(window, (13, 11), batch=3, rpb=True, rel=True, num_extra=2)
    monkeypatch.setattr(TiledMap, "SCORES_PER_CHUNK", 1)
    monkeypatch.setattr(TiledMap, "KEY_VALUES_PER_GROUP", 1)
    assert_matches_reference(window, inputs, "tiled")


def test_reference_is_the_formula() -> None:
    """One query at a time: softmax(scale q.k + rpb) v over the keys of its neighborhood (arXiv 2204.07143, eq. 2-3)."""
    size, kernel, scale = (6, 5), 3, 0.3
    x = make_inputs(Window.neighborhood(kernel), size, batch=1, heads=1, rpb=True)
    out, lse = vk.neighborhood_attention_2d(
        x["q"], x["k"], x["v"], kernel, rpb=x["rpb"], scale=scale, return_lse=True, backend="reference"
    )
    for i in range(size[0]):
        for j in range(size[1]):
            top, left = min(max(i - 1, 0), size[0] - kernel), min(max(j - 1, 0), size[1] - kernel)
            keys = [(a, b) for a in range(top, top + kernel) for b in range(left, left + kernel)]
            logits = torch.stack(
                [
                    scale * x["q"][0, i, j, 0] @ x["k"][0, a, b, 0]
                    + x["rpb"][0, a - i + kernel - 1, b - j + kernel - 1]
                    for a, b in keys
                ]
            )
            expected = sum(p * x["v"][0, a, b, 0] for p, (a, b) in zip(logits.softmax(0), keys, strict=True))
            torch.testing.assert_close(out[0, i, j, 0], expected)
            torch.testing.assert_close(lse[0, i, j, 0], logits.logsumexp(0))


def halo_by_unfolding(q: Tensor, k: Tensor, v: Tensor, block: int, halo: int, masked: bool) -> Tensor:
    """HaloNet's own way: pad the map to whole blocks, cut overlapping windows with unfold, attend block by block."""
    _, height, width, heads, dim = k.shape
    pad_h, pad_w = -height % block, -width % block

    def windows(x: Tensor) -> Tensor:
        x = F.pad(x.flatten(3).permute(0, 3, 1, 2), (halo, halo + pad_w, halo, halo + pad_h))
        return F.unfold(x, block + 2 * halo, stride=block).unflatten(1, (heads, -1, (block + 2 * halo) ** 2))

    def blocks(x: Tensor) -> Tensor:
        x = F.pad(x.flatten(3).permute(0, 3, 1, 2), (0, pad_w, 0, pad_h))
        return F.unfold(x, block, stride=block).unflatten(1, (heads, -1, block**2))

    scores = torch.einsum("bncqt,bnckt->bntqk", blocks(q) * dim**-0.5, windows(k))
    if masked:
        inside = windows(torch.ones_like(k))[:, :, 0].mT[:, :, :, None] > 0
        scores = scores.masked_fill(~inside, -torch.inf)
    out = torch.einsum("bntqk,bnckt->bncqt", scores.softmax(-1), windows(v)).flatten(1, 3)
    out = F.fold(out, (height + pad_h, width + pad_w), block, stride=block)[..., :height, :width]
    return out.permute(0, 2, 3, 1).unflatten(-1, (heads, -1))


@pytest.mark.parametrize("boundary", ["mask", "zero"])
@pytest.mark.parametrize("size", [(16, 16), (19, 12), (5, 3)], ids=str)
def test_halo_attention_equals_blocks_of_a_padded_map(size: tuple[int, int], boundary: str) -> None:
    block, halo = 8, 3
    x = make_inputs(Window.neighborhood(block), size)
    ours = vk.halo_attention_2d(x["q"], x["k"], x["v"], block, halo, boundary=boundary)  # type: ignore[arg-type]
    expected = halo_by_unfolding(x["q"], x["k"], x["v"], block, halo, boundary == "mask")
    torch.testing.assert_close(ours, expected)


@each_backend
def test_window_as_large_as_the_map_is_full_attention(backend: str) -> None:
    x = make_inputs(Window.neighborhood(9), (9, 9), dtype=torch.float32)
    q, k, v = (x[name].flatten(1, 2).transpose(1, 2) for name in "qkv")
    full = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(1, (9, 9))
    torch.testing.assert_close(vk.neighborhood_attention_2d(x["q"], x["k"], x["v"], 9, backend=backend), full)


def test_stride_of_the_kernel_is_window_attention() -> None:
    x = make_inputs(Window.neighborhood(4), (8, 12))
    ours = vk.window_attention_2d(x["q"], x["k"], x["v"], 4)
    torch.testing.assert_close(ours, vk.neighborhood_attention_2d(x["q"], x["k"], x["v"], 4, stride=4))
    corner = F.scaled_dot_product_attention(
        *(x[name][:, :4, 4:8].flatten(1, 2).transpose(1, 2) for name in "qkv")
    ).transpose(1, 2)
    torch.testing.assert_close(ours[:, :4, 4:8].flatten(1, 2), corner)


def test_one_dimension_is_a_map_of_one_row() -> None:
    x = make_inputs(Window.neighborhood((1, 5), dilation=(1, 2)), (1, 17), rpb=True, rel=True, num_extra=2)
    one = vk.neighborhood_attention_1d(
        *(x[name][:, 0] for name in "qkv"),
        5,
        dilation=2,
        rpb=x["rpb"][:, 0],
        rel=x["rel_w"][:, 0],
        extra_k=x["extra_k"],
        extra_v=x["extra_v"],
        return_lse=True,
    )
    x.pop("rel_h")
    two = windowed_attention(**x, window=Window.neighborhood((1, 5), dilation=(1, 2)), return_lse=True)  # type: ignore[arg-type]
    torch.testing.assert_close(one, (two[0][:, 0], two[1][:, 0]))


@each_backend
def test_packed_projections_may_be_views(backend: str) -> None:
    qkv = torch.randn(2, 9, 8, 3 * 2 * 8, dtype=torch.float64).unflatten(-1, (3, 2, 8))
    q, k, v = qkv.unbind(3)
    assert not q.is_contiguous()
    window = Window.neighborhood(5)
    ours = windowed_attention(q, k, v, window, backend=backend)
    torch.testing.assert_close(
        ours, windowed_attention(*(x.contiguous() for x in (q, k, v)), window, backend="reference")
    )


@each_backend
def test_scale_of_zero_is_a_mean(backend: str) -> None:
    x = make_inputs(Window.neighborhood(3), (3, 3))
    out = vk.neighborhood_attention_2d(x["q"], x["k"], x["v"], 3, scale=0, backend=backend)
    torch.testing.assert_close(out, x["v"].mean((1, 2), keepdim=True).expand_as(x["v"]))


@each_backend
def test_scale_tensor_has_a_gradient(backend: str) -> None:
    x = make_inputs(Window.neighborhood(3), (4, 5), num_extra=1)
    scale = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    found = windowed_attention(**x, window=Window.neighborhood(3), scale=scale, backend=backend)  # type: ignore[arg-type]
    scaled = {**x, "q": scale * x["q"]}
    expected = windowed_attention(**scaled, window=Window.neighborhood(3), scale=1, backend="reference")  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(out.square().sum(), scale) for out in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "a", torch.ones(2)], ids=str)
def test_scale_must_be_a_finite_number(scale: object) -> None:
    x = make_inputs(Window.neighborhood(3), (4, 5))
    with pytest.raises(ValueError, match=r"scale must be a (finite )?number"):
        windowed_attention(x["q"], x["k"], x["v"], Window.neighborhood(3), scale=scale)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scale must be a (finite )?number"):
        vk.neighborhood_qk_2d(x["q"], x["k"], 3, scale=scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("boundary", ["shift", "mask", "zero"])
@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_dilation_beyond_the_map_leaves_each_query_alone(backend: str, boundary: str) -> None:
    x = make_inputs(Window.neighborhood(3), (4, 5))
    far, near = (
        windowed_attention(
            x["q"], x["k"], x["v"], Window.neighborhood(3, dilation=dilation, boundary=boundary), backend=backend
        )
        for dilation in (10**9, (4, 5))
    )
    assert torch.equal(far, near)
    if boundary != "zero":
        torch.testing.assert_close(far, x["v"])


def test_unfused_products_take_a_dilation_beyond_the_map() -> None:
    x = make_inputs(Window.neighborhood(3), (4, 5))
    scores = vk.neighborhood_qk_2d(x["q"], x["k"], 3, dilation=10**9)
    out = vk.neighborhood_av_2d(scores.softmax(-1), x["v"], 3, dilation=10**9)
    torch.testing.assert_close(out, x["v"])


@pytest.mark.parametrize("value", [1e30, torch.inf, torch.nan])
@each_backend
def test_masked_nan_does_not_leak(backend: str, value: float) -> None:
    """Keys that a query does not see may hold anything."""
    x = {name: t.detach() for name, t in make_inputs(Window.neighborhood(3), (12, 12)).items()}
    far = {name: t.clone() for name, t in x.items()}
    far["k"][:, 6:] = value
    far["v"][:, 6:] = -value
    near, changed = (vk.neighborhood_attention_2d(y["q"], y["k"], y["v"], 3, backend=backend) for y in (x, far))
    torch.testing.assert_close(near[:, :5], changed[:, :5])


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_scores_beyond_the_range_of_half_precision(backend: str) -> None:
    q = torch.full((1, 3, 4, 1, 8), 200.0, dtype=torch.float16)
    v = torch.randn(1, 3, 4, 1, 8).half()
    found, truth = (
        vk.neighborhood_attention_2d(q.to(t), q.to(t), v.to(t), 3, scale=1, backend=backend)
        for t in (torch.float16, torch.float64)
    )
    torch.testing.assert_close(found, truth.half())


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_float32_biases_beside_half_maps_and_autocast(backend: str) -> None:
    x = make_inputs(Window.neighborhood(3), (5, 6), dtype=torch.float32, rpb=True, rel=True, num_extra=2)
    half = {name: t.detach().bfloat16() if name in "qkv" else t for name, t in x.items()}
    with torch.autocast("cpu", torch.bfloat16):
        cast = windowed_attention(**x, window=Window.neighborhood(3), backend=backend)  # type: ignore[arg-type]
    mixed = windowed_attention(**half, window=Window.neighborhood(3), backend=backend)  # type: ignore[arg-type]
    truth = windowed_attention(**x, window=Window.neighborhood(3), backend="reference")  # type: ignore[arg-type]
    for out in (cast, mixed):
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), truth, rtol=0.02, atol=0.02)


def bad(**changes: object) -> dict[str, object]:
    x: dict[str, object] = {**make_inputs(Window.neighborhood(3), (5, 5)), "kernel_size": 3}
    return {**x, **changes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (bad(q=torch.randn(5, 5, 2, 8)), r"q must be \[B, H, W, heads, head_dim\]; got shape \(5, 5, 2, 8\)"),
        (
            bad(k=torch.randn(2, 5, 5, 2, 8)),
            "k must have q's dtype and device, torch.float64 on cpu; got torch.float32",
        ),
        (
            bad(v=torch.randn(2, 5, 4, 2, 8).double()),
            r"v must have shape \[2, 5, 5, 2, 8\] to fit k; got \[2, 5, 4, 2, 8\]",
        ),
        (bad(q=torch.randn(2, 5, 5, 3, 8).double()), r"q must have shape \[2, 5, 5, 2, 8\]"),
        (
            bad(kernel_size=3, rpb=torch.randn(2, 7, 7)),
            r"rpb must have shape \[2, 5, 5\] to fit heads and 2 \* kernel_size",
        ),
        (bad(rel_h=torch.randn(2, 5, 5, 2, 3)), "rel_h must have shape"),
        (bad(extra_k=torch.randn(2, 1, 2, 8)), "extra_k and extra_v must be given together"),
        (bad(stride=5), "stride must be <= kernel_size"),
        (bad(kernel_size=10**5), r"kernel_size must be at most 4194304 keys per window, .* got \(100000, 100000\)"),
        (
            bad(backend="tilde"),
            r"backend must be one of .*gemm, plain, reference; got 'tilde'; did you mean 'tiled'",
        ),
    ],
)
def test_invalid_argument_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vk.neighborhood_attention_2d(**arguments)  # type: ignore[arg-type]


def test_integers_and_empty_maps_are_refused() -> None:
    q = torch.ones(1, 3, 3, 1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="floating"):
        vk.neighborhood_attention_2d(q, q, q, 3)
    with pytest.raises(ValueError, match="at least one row"):
        vk.neighborhood_attention_2d(*[torch.ones(1, 0, 3, 1, 4)] * 3, 3)  # type: ignore[misc]
    q = torch.ones(1, 3, 3, 1, 4)
    with pytest.raises(ValueError, match="v must have at least one channel"):
        vk.neighborhood_attention_2d(q, q, q[..., :0], 3)
