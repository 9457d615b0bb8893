"""Attention over several dilated windows: one pass and merged calls against dense scores under an explicit mask."""

from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from visionattn_kernels import multiscale_attention_2d, neighborhood_attention_2d
from visionattn_kernels._native.build import unavailable
from visionattn_kernels.testing import TINY

Inputs = dict[str, Tensor]

DOUBLE = torch.float64
MERGED = ["tiled", "gemm", "plain", "reference"]
each_backend = pytest.mark.parametrize("backend", ["native", *MERGED])

# id: map, dilations, kernel_size
CASES: dict[str, tuple[tuple[int, int], tuple[int, ...], int]] = {
    "H1xW1": ((1, 1), (1,), 3),
    "H1xW9": ((1, 9), (1, 2, 4, 8), 3),
    "H5xW7": ((5, 7), (1, 2, 4), 3),
    "H2xW2-far": ((2, 2), (1, 2, 10**30), 3),
    "H14xW11-unordered": ((14, 11), (8, 1, 4, 2), 3),
    "H16xW16": ((16, 16), (1, 2, 4, 8), 3),
    "H9xW19-k5": ((9, 19), (1, 3, 7), 5),
    "H4xW3-k1": ((4, 3), (1, 2), 1),
    "H3xW33-two-vectors": ((3, 33), (1, 16, 32), 3),
}
each_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def skip_without_compiler(request: pytest.FixtureRequest) -> None:
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("backend", "native") == "native" and unavailable("multiscale") is not None:
        pytest.skip(f"no kernels: {unavailable('multiscale')}")


def make_inputs(size: tuple[int, int], scales: int, kernel_size: int = 3, *, dim: int = 6, v_dim: int = 5) -> Inputs:
    shapes = {
        "q": (2, *size, 2, dim),
        "k": (2, *size, 2, dim),
        "v": (2, *size, 2, v_dim),
        "rpb": (2, scales, kernel_size, kernel_size),
    }
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator, dtype=DOUBLE).requires_grad_() for n, s in shapes.items()}


def see(size: tuple[int, int], dilations: tuple[int, ...], kernel_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Which keys each query sees in a scale, `[queries, keys]`, and their entries of its bias table."""
    at = torch.cartesian_prod(*(torch.arange(n) for n in size)).view(-1, 2)
    away = at[None, :, :] - at[:, None, :]
    for scale, dilation in enumerate(dilations):
        dilation = min(dilation, 100)
        step = away.div(dilation, rounding_mode="floor")
        seen = ((step * dilation == away) & (step.abs() <= kernel_size // 2)).all(-1)
        if scale > 0:
            seen &= (away != 0).any(-1)
        yield seen, *(step.clamp(-(kernel_size // 2), kernel_size // 2) + kernel_size // 2).unbind(-1)


def attend_densely(
    q: Tensor, k: Tensor, v: Tensor, rpb: Tensor, dilations: tuple[int, ...], kernel_size: int
) -> tuple[Tensor, Tensor]:
    """All scores, a mask of the union of the windows, one softmax."""
    size = (q.shape[1], q.shape[2])
    count = torch.zeros(size[0] * size[1], size[0] * size[1], dtype=torch.int64)
    bias = torch.zeros(rpb.shape[0], *count.shape, dtype=q.dtype)
    for scale, (seen, row, column) in enumerate(see(size, dilations, kernel_size)):
        count += seen
        bias = torch.where(seen, rpb[:, scale, row, column], bias)
    assert count.max() == 1, "a key counts twice"
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5 + bias).masked_fill(count == 0, -torch.inf)
    out = (scores.softmax(-1) @ v).transpose(1, 2).unflatten(1, size)
    return out, scores.logsumexp(-1).transpose(1, 2).unflatten(1, size)


def with_gradients(results: tuple[Tensor, Tensor], inputs: Inputs) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=generator, dtype=DOUBLE).to(x.dtype) for x in results]
    found = torch.autograd.grad(results, list(inputs.values()), upstream)
    named = {"out": results[0], "lse": results[1], **dict(zip(inputs, found, strict=True))}
    return {name: x.detach().double() for name, x in named.items()}


@lru_cache
def dense(case: str, rounded_to: torch.dtype = DOUBLE, dtype: torch.dtype = DOUBLE) -> Inputs:
    """Results of dense scores in `dtype`, on inputs `rounded_to` another."""
    size, dilations, kernel_size = CASES[case]
    inputs = make_inputs(size, len(dilations), kernel_size)
    x = {name: t.detach().to(rounded_to).to(dtype).requires_grad_() for name, t in inputs.items()}
    return with_gradients(attend_densely(**x, dilations=dilations, kernel_size=kernel_size), x)


def attend(case: str, backend: str | None, dtype: torch.dtype = DOUBLE) -> Inputs:
    size, dilations, kernel_size = CASES[case]
    inputs = make_inputs(size, len(dilations), kernel_size)
    x = {name: t.detach().to(dtype).requires_grad_() for name, t in inputs.items()}
    results = multiscale_attention_2d(
        **x, dilations=dilations, kernel_size=kernel_size, return_lse=True, backend=backend
    )
    assert [t.dtype for t in results] == [dtype, torch.promote_types(dtype, torch.float32)]
    return with_gradients(results, x)


@each_backend
@each_case
def test_matches_dense_union_of_windows(case: str, backend: str) -> None:
    truth = dense(case)
    for name, found in attend(case, backend).items():
        torch.testing.assert_close(found, truth[name], rtol=0, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("case", "backend"),
    [*((case, "native") for case in CASES), *(("H14xW11-unordered", backend) for backend in MERGED)],
)
def test_precision(case: str, backend: str, dtype: torch.dtype) -> None:
    """The error is at most twice that of dense scores in the same dtype, or `TINY`."""
    truth, eager = dense(case, dtype), dense(case, dtype, dtype)
    for name, found in attend(case, backend, dtype).items():
        granted = TINY[dtype] * max(1.0, truth[name].abs().max().item())
        bound = max(granted, 2 * (eager[name] - truth[name]).abs().max().item())
        error = (found - truth[name]).abs().max().item()
        assert error <= bound, f"{name} is off by {error:.3g}, bound {bound:.3g}"


@each_backend
def test_one_scale_is_neighborhood_attention_inside_the_map(backend: str) -> None:
    x = make_inputs((9, 8), 1, 5)
    q, k, v, _ = x.values()
    ours = multiscale_attention_2d(q, k, v, [1], 5, backend=backend)
    torch.testing.assert_close(ours[:, 2:-2, 2:-2], neighborhood_attention_2d(q, k, v, 5)[:, 2:-2, 2:-2])


@each_backend
def test_centre_of_further_scales_is_not_read(backend: str) -> None:
    x = make_inputs((5, 6), 3)
    expected = multiscale_attention_2d(**x, dilations=(1, 2, 4), backend=backend)
    changed = x["rpb"].detach().clone()
    changed[:, 1:, 1, 1] = 1e4
    found = multiscale_attention_2d(**{**x, "rpb": changed}, dilations=(1, 2, 4), backend=backend)
    assert torch.equal(found, expected)
    (grad,) = torch.autograd.grad(expected.square().sum(), x["rpb"])
    assert not grad[:, 1:, 1, 1].any()
    assert grad[:, 0, 1, 1].all()


@each_backend
def test_dominant_centre_counts_once(backend: str) -> None:
    """Scores far above and below all others: subtracting the surplus centres would cancel."""
    for factor in (100.0, -100.0):
        x = {name: t.detach().bfloat16().float() for name, t in make_inputs((5, 6), 3).items()}
        x["k"] = factor * x["q"]
        found = multiscale_attention_2d(**x, dilations=(1, 2, 4), backend=backend)
        truth, _ = attend_densely(**{n: t.double() for n, t in x.items()}, dilations=(1, 2, 4), kernel_size=3)
        torch.testing.assert_close(found.double(), truth, rtol=1e-3, atol=1e-3)


@each_backend
@pytest.mark.parametrize("value", [1e30, torch.inf, torch.nan])
def test_unseen_nan_does_not_leak(value: float, backend: str) -> None:
    x = {name: t.detach() for name, t in make_inputs((6, 12), 2).items()}
    far = {name: t.clone() for name, t in x.items()}
    far["k"][:, :, 8:] = value
    far["v"][:, :, 8:] = -value
    near, changed = (multiscale_attention_2d(**y, dilations=(1, 2), backend=backend) for y in (x, far))
    torch.testing.assert_close(near[:, :, :6], changed[:, :, :6])


@pytest.mark.parametrize("width", [7, 17])
def test_nan_reaches_gradients_of_what_its_queries_see(width: int) -> None:
    """Not those that lanes beyond the map would see."""
    x = {name: t.detach().float().requires_grad_() for name, t in make_inputs((6, width), 2).items()}
    spoilt = {name: t.detach().clone().requires_grad_() for name, t in x.items()}
    with torch.no_grad():
        spoilt["k"][:, 3, -1] = torch.nan
        spoilt["v"][:, 3, -1] = torch.nan
    clean, found = (
        with_gradients(multiscale_attention_2d(**y, dilations=(1, 2), return_lse=True), y) for y in (x, spoilt)
    )
    seen = sum(seen for seen, *_ in see((6, width), (1, 2), 3)).bool()  # type: ignore[attr-defined]
    met = seen[:, 3 * width + width - 1]  # queries
    for name, hit in (("out", met), ("q", met), ("k", seen[met].any(0)), ("v", seen[met].any(0))):
        hit = hit.view(6, width)
        torch.testing.assert_close(found[name][:, ~hit], clean[name][:, ~hit], msg=lambda text, n=name: f"{n}: {text}")
        assert found[name][:, hit].isnan().any()


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_number_of_threads_changes_no_bit(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = attend("H14xW11-unordered", "native", torch.float32)
        torch.set_num_threads(threads)  # of two images by two heads: all, some or none share a head
        found = attend("H14xW11-unordered", "native", torch.float32)
    finally:
        torch.set_num_threads(before)
    for name, x in found.items():
        assert torch.equal(x, expected[name]), name


@pytest.mark.parametrize("case", ["H5xW7", "H3xW33-two-vectors"])
def test_reads_no_uninitialised_memory(case: str) -> None:
    torch.use_deterministic_algorithms(True)  # fills what torch leaves uninitialised with NaN
    try:
        found = attend(case, "native", torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in found.values())


def test_maps_may_be_views() -> None:
    q, k, v = torch.randn(2, 5, 6, 3, 2, 24)[..., 2:18].unbind(3)
    expected = multiscale_attention_2d(q, k, v, (1, 2), backend="reference")
    torch.testing.assert_close(multiscale_attention_2d(q, k, v, (1, 2)), expected)
    turned = [x.transpose(3, 4).contiguous().transpose(3, 4) for x in (q, k, v)]
    torch.testing.assert_close(multiscale_attention_2d(*turned, (1, 2)), expected)


def test_empty_batch() -> None:
    x = {name: (t if name == "rpb" else t[:0]) for name, t in make_inputs((3, 4), 2).items()}
    out = multiscale_attention_2d(**x, dilations=(1, 2))
    grads = torch.autograd.grad(out.sum(), list(x.values()))
    assert out.shape == (0, 3, 4, 2, 5)
    assert not grads[3].any()


def test_per_sample_gradients() -> None:
    q, k, v, rpb = (t.detach() for t in make_inputs((3, 4), 2).values())

    def loss(rpb: Tensor, q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
        return multiscale_attention_2d(q[None], k[None], v[None], (1, 2), rpb=rpb, backend=backend).square().sum()

    found, expected = (
        torch.func.vmap(torch.func.grad(loss, (0, 1)), (None, 0, 0, 0, None))(rpb, q, k, v, name)
        for name in ("native", "reference")
    )
    torch.testing.assert_close(found, expected)


def test_forward_mode_runs_plain_operators() -> None:
    q, k, v, _ = (t.detach() for t in make_inputs((3, 4), 2).values())
    found, expected = (
        torch.func.jvp(lambda q, name=name: multiscale_attention_2d(q, k, v, (1, 2), backend=name), (q,), (k,))
        for name in (None, "reference")
    )
    torch.testing.assert_close(found, expected)


def test_flops_are_those_of_visible_pairs() -> None:
    x = make_inputs((5, 7), 3)
    pairs = sum(int(seen.sum()) for seen, *_ in see((5, 7), (1, 2, 4), 3))
    with FlopCounterMode(display=False) as counter:
        out = multiscale_attention_2d(**x, dilations=(1, 2, 4))
    assert counter.get_total_flops() == 2 * 2 * 2 * pairs * (6 + 5)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 2 * pairs * (3 * 6 + 2 * 5)


@pytest.mark.parametrize("backend", ["native", pytest.param("gemm", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(backend: str) -> None:
    x = {name: t.detach().float().requires_grad_() for name, t in make_inputs((5, 6), 2).items()}

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor) -> Tensor:
        return multiscale_attention_2d(q, k, v, (1, 2), rpb=rpb, backend=backend)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(*x.values()).square().sum(), list(x.values())) for f in (compiled, attend))
    torch.testing.assert_close(found, expected)


def test_export_holds_plain_operators_alone() -> None:
    class Attend(torch.nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return multiscale_attention_2d(q, q, q, (1, 2))

    q = torch.randn(2, 5, 6, 2, 8)
    program = torch.export.export(Attend(), (q,))
    assert "visionattn" not in program.graph_module.code
    torch.testing.assert_close(program.module()(q), Attend()(q))


@pytest.mark.parametrize("return_lse", [False, True])
def test_autocast_and_scale(return_lse: bool) -> None:
    q, k, v, rpb = (t.detach().float() for t in make_inputs((5, 6), 2).values())
    scale = torch.tensor(0.7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = multiscale_attention_2d(q, k, v, (1, 2), rpb=rpb, scale=scale, return_lse=return_lse)  # type: ignore[call-overload]
    out = found[0] if return_lse else found
    assert out.dtype == torch.bfloat16
    truth, _ = attend_densely(q * 0.7 * q.shape[-1] ** 0.5, k, v, rpb, (1, 2), 3)
    torch.testing.assert_close(out.float(), truth, rtol=0.02, atol=0.02)
    assert torch.autograd.grad(out.float().square().sum(), scale)[0].isfinite()


def test_gradients_to_second_order() -> None:
    x = {name: t[:1] for name, t in make_inputs((1, 2), 2, dim=2, v_dim=1).items()}
    x = {name: t[..., :1, :].detach().requires_grad_() if name in "qkv" else t for name, t in x.items()}

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor) -> object:
        return multiscale_attention_2d(q, k, v, (1, 2), rpb=rpb, return_lse=True, backend="gemm")

    assert torch.autograd.gradcheck(attend, tuple(x.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, tuple(x.values()), fast_mode=True)


def test_one_pass_refuses_second_order_gradients() -> None:
    x = make_inputs((3, 4), 2)
    out = multiscale_attention_2d(**x, dilations=(1, 2))
    (grad,) = torch.autograd.grad(out.square().sum(), x["q"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"first-order gradients alone; .* ask for backend='gemm'"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dilations": ()}, r"dilations must hold at least one int >= 1, one per scale; got \(\)"),
        ({"dilations": (1, 0)}, r"dilations must hold at least one int >= 1, .* got \(1, 0\)"),
        ({"dilations": 2}, "dilations must hold at least one int >= 1, .* got 2"),
        ({"dilations": (2, 4, 2)}, "with kernel_size 3, dilations 2 and 2 share the offset 2: leave one of them out"),
        ({"dilations": (1, 2), "kernel_size": 5}, "with kernel_size 5, dilations 1 and 2 share the offset 2"),
        ({"dilations": (3, 2), "kernel_size": 7}, "with kernel_size 7, dilations 3 and 2 share the offset 6"),
        ({"kernel_size": 4}, "kernel_size must be an odd int >= 1, so that windows have a centre; got 4"),
        ({"kernel_size": True}, "kernel_size must be an odd int"),
        ({"rpb": torch.ones(2, 3, 3, 3)}, r"rpb must have shape \[2, 2, 3, 3\] to fit heads, .* got \[2, 3, 3, 3\]"),
        ({"k": torch.ones(2, 5, 5, 2, 6, dtype=DOUBLE)}, "q must have shape"),
        ({"scale": torch.inf}, "scale must be a finite number"),
        ({"backend": "natif"}, "backend must be one of .*; got 'natif'; did you mean 'native'"),
    ],
)
def test_invalid_argument_is_named(changes: dict[str, object], message: str) -> None:
    arguments = {**make_inputs((5, 6), 2), "dilations": (1, 2), **changes}
    with pytest.raises(ValueError, match=message):
        multiscale_attention_2d(**arguments)  # type: ignore[arg-type]
