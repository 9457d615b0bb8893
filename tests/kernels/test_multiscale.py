"""Attention over several dilated windows: every implementation against dense scores under an explicit mask."""

from itertools import product

import pytest
import torch
from torch import Tensor

from visionattn_kernels import multiscale_attention_2d, neighborhood_attention_2d
from visionattn_kernels._native.build import unavailable
from visionattn_kernels.testing import TINY

Inputs = dict[str, Tensor]

DOUBLE = torch.float64
BACKENDS = ["native", "tiled", "gemm", "plain", "reference"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)

# id: map, dilations, kernel_size
CASES: dict[str, tuple[tuple[int, int], tuple[int, ...], int]] = {
    "H1xW1": ((1, 1), (1,), 3),
    "H1xW9": ((1, 9), (1, 2, 4, 8), 3),
    "H5xW7": ((5, 7), (1, 2, 4), 3),
    "H2xW2-far": ((2, 2), (1, 2, 4), 3),
    "H14xW11-unordered": ((14, 11), (8, 1, 4, 2), 3),
    "H16xW16": ((16, 16), (1, 2, 4, 8), 3),
    "H9xW19-k5": ((9, 19), (1, 3, 7), 5),
    "H4xW3-k1": ((4, 3), (1, 2), 1),
}
all_cases = pytest.mark.parametrize(("size", "dilations", "kernel_size"), CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def skip_without_compiler(request: pytest.FixtureRequest) -> None:
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("backend") == "native" and unavailable() is not None:
        pytest.skip(f"no kernels: {unavailable()}")


def make_inputs(size: tuple[int, int], scales: int, kernel_size: int = 3, *, v_dim: int = 5, dim: int = 6) -> Inputs:
    shapes = {
        "q": (2, *size, 2, dim),
        "k": (2, *size, 2, dim),
        "v": (2, *size, 2, v_dim),
        "rpb": (2, scales, kernel_size, kernel_size),
    }
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator, dtype=DOUBLE).requires_grad_() for n, s in shapes.items()}


def attend_densely(
    q: Tensor, k: Tensor, v: Tensor, rpb: Tensor, dilations: tuple[int, ...], kernel_size: int
) -> tuple[Tensor, Tensor]:
    """All scores, a mask of the union of the windows, one softmax."""
    height, width = q.shape[1:3]
    places = list(product(range(height), range(width)))
    radius = kernel_size // 2
    bias = torch.full((q.shape[3], len(places), len(places)), -torch.inf, dtype=q.dtype)
    for (i, (y, x)), (scale, dilation) in product(enumerate(places), enumerate(dilations)):
        for a, b in product(range(-radius, radius + 1), repeat=2):
            key = (y + a * dilation, x + b * dilation)
            if key in places and (scale == 0 or (a, b) != (0, 0)):
                j = places.index(key)
                assert bias[0, i, j] == -torch.inf, "a key counts twice"
                bias[:, i, j] = rpb[:, scale, a + radius, b + radius]
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5 + bias
    out = (scores.softmax(-1) @ v).transpose(1, 2).unflatten(1, (height, width))
    return out, scores.logsumexp(-1).transpose(1, 2).unflatten(1, (height, width))


def with_gradients(results: tuple[Tensor, Tensor], inputs: Inputs) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=generator, dtype=DOUBLE).to(x.dtype) for x in results]
    found = torch.autograd.grad(results, list(inputs.values()), upstream)
    named = {"out": results[0], "lse": results[1], **dict(zip(inputs, found, strict=True))}
    return {name: x.detach().double() for name, x in named.items()}


@each_backend
@all_cases
def test_matches_dense_union_of_windows(
    size: tuple[int, int], dilations: tuple[int, ...], kernel_size: int, backend: str
) -> None:
    x = make_inputs(size, len(dilations), kernel_size)
    truth = with_gradients(attend_densely(**x, dilations=dilations, kernel_size=kernel_size), x)
    ours = multiscale_attention_2d(**x, dilations=dilations, kernel_size=kernel_size, return_lse=True, backend=backend)
    for name, found in with_gradients(ours, x).items():
        torch.testing.assert_close(found, truth[name], rtol=0, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@all_cases
def test_precision(
    size: tuple[int, int], dilations: tuple[int, ...], kernel_size: int, dtype: torch.dtype, backend: str
) -> None:
    """The error is at most twice that of dense scores in the same dtype, or `TINY`."""
    window = {"dilations": dilations, "kernel_size": kernel_size}
    x = {name: t.detach().to(dtype) for name, t in make_inputs(size, len(dilations), kernel_size).items()}
    exact, rounded = ({name: t.to(d).requires_grad_() for name, t in x.items()} for d in (DOUBLE, dtype))
    truth = with_gradients(attend_densely(**exact, **window), exact)
    eager = with_gradients(attend_densely(**rounded, **window), rounded)
    ours = multiscale_attention_2d(**rounded, **window, return_lse=True, backend=backend)
    assert [t.dtype for t in ours] == [dtype, torch.float32]
    for name, found in with_gradients(ours, rounded).items():
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


@each_backend
def test_compiles_without_graph_breaks(backend: str) -> None:
    x = {name: t.detach().float().requires_grad_() for name, t in make_inputs((5, 6), 3).items()}

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor) -> Tensor:
        return multiscale_attention_2d(q, k, v, (1, 2, 4), rpb=rpb, backend=backend)

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
    x = make_inputs((2, 3), 2, dim=2, v_dim=2)

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor) -> object:
        return multiscale_attention_2d(q[:1], k[:1], v[:1], (1, 2), rpb=rpb, return_lse=True, backend="gemm")

    assert torch.autograd.gradcheck(attend, tuple(x.values()))
    assert torch.autograd.gradgradcheck(attend, tuple(x.values()))


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
