"""Compiled 1x1 convolutions and standardization of maps as matrices, against torch in float64."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels._native.build import unavailable
from visionattn_kernels.hyper import maps
from visionattn_kernels.hyper.stacked import correlate_stacked, multiply_stacked

pytestmark = pytest.mark.skipif(unavailable("maps") is not None, reason=f"no kernels: {unavailable('maps')}")

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.fixture(params=[1, 3], autouse=True, ids=["one thread", "three threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def assert_close(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def expect(xs: list[Tensor], weights: list[Tensor], bias: Tensor, ending: str = "sum") -> Tensor:
    sums = bias.double()
    for x, weight in zip(xs, weights, strict=True):
        sums = sums + x.double() @ weight.double().T
    if ending == "product":
        first, second = sums.chunk(2, 1)
        return first * second
    return F.gelu(sums) if ending == "gelu" else sums


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ending", ["sum", "gelu", "product"])
def test_convolution_matches_its_sum(ending: str, dtype: torch.dtype) -> None:
    """Rows and columns in whole tiles and vectors, and beside them, of one map and of several."""
    for rows in (1, 8, 100):
        for channels in ([3], [16], [5, 33, 1]):
            for sums in (2, 16, 48, 74, 100):
                xs = [torch.randn(rows, c, dtype=dtype) for c in channels]
                weights = [torch.randn(sums, c, dtype=dtype) / c for c in channels]
                bias = torch.randn(sums, dtype=dtype)
                found = maps.convolve_maps(xs, weights, bias, ending)
                assert_close(found, expect(xs, weights, bias, ending))


def test_maps_and_weights_may_be_views() -> None:
    wide, weight, bias = torch.randn(50, 60), torch.randn(40, 60), torch.randn(80)[::2]
    xs, weights = list(wide.split([17, 23, 20], 1)), list(weight.split([17, 23, 20], 1))
    xs[1] = xs[1].T.contiguous().T
    weights[2] = weights[2].T.contiguous().T
    assert_close(maps.convolve_maps(xs, weights, bias), expect(xs, weights, bias))
    tall = torch.randn(100, 17)[::2]
    assert_close(maps.convolve_maps([tall], weights[:1], bias), expect([tall], weights[:1], bias))
    assert maps.convolve_maps([tall[:0]], weights[:1], bias).shape == (0, 40)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight, bias = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4)
    for wrong in (([x], [weight[:, :2]], bias), ([x, x[:2]], [weight] * 2, bias), ([x], [weight], bias[:3])):
        with pytest.raises(ValueError, match="maps must be"):
            maps.convolve_maps(*wrong)


def activate(x: Tensor) -> Tensor:
    return maps.convolve_maps([x[:, None]], [torch.ones(1, 1, dtype=x.dtype)], torch.zeros(1, dtype=x.dtype), "gelu")[
        :, 0
    ]


def test_gelu_is_as_exact_as_single_precision_allows() -> None:
    x = torch.cat((torch.linspace(-9, 9, 20_001), torch.tensor([-1e30, -100, -1e-20, 0, 1e-20, 100, 1e30])))
    error = (activate(x) - F.gelu(x.double())) / x.abs().clamp(1e-30)
    assert error.abs().max() < 3e-7
    assert activate(torch.tensor([torch.inf])) == torch.inf
    assert activate(torch.tensor([torch.nan])).isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 5), (2, 16), (49, 33), (1000, 7)], ids=str)
def test_moments_of_columns(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for x in (
        torch.randn(shape, dtype=dtype),
        torch.randn(shape, dtype=dtype) * torch.logspace(-2, 2, shape[1], dtype=dtype) + 1000,
        torch.randn(shape[0], 2 * shape[1], dtype=dtype)[:, shape[1] :],
        torch.randn(*reversed(shape), dtype=dtype).T,
        torch.full(shape, 7.1, dtype=dtype),
    ):
        mean, var = maps.column_moments(x)
        expected_var, expected_mean = torch.var_mean(x.double(), 0, correction=0)
        assert_close(mean, expected_mean)
        assert_close(var, expected_var)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activates", [False, True])
def test_standardization_of_columns(activates: bool, dtype: torch.dtype) -> None:
    for rows, columns in ((1, 1), (7, 16), (33, 50)):
        x, (mean, scale) = torch.randn(rows, columns, dtype=dtype), torch.randn(2, columns, dtype=dtype)
        for bias in (None, torch.randn(rows, dtype=dtype)):
            expected = (x.double() - mean) * scale
            expected = F.gelu(expected) if activates else expected
            expected = expected if bias is None else expected + bias.double()[:, None]
            wide = torch.zeros(rows, columns + 3, dtype=dtype)
            maps.standardize_columns(x, mean, scale, bias, activates, wide[:, :columns])
            assert_close(wide[:, :columns], expected)
            assert not wide[:, columns:].any()
            inplace = x.clone()
            maps.standardize_columns(inplace, mean, scale, bias, activates, inplace)
            assert torch.equal(inplace, wide[:, :columns])


def test_results_are_repeatable_to_the_bit() -> None:
    x, weight, bias = torch.randn(500, 40), torch.randn(50, 40), torch.randn(50)
    convolved, moments = maps.convolve_maps([x], [weight], bias, "gelu"), maps.column_moments(x)
    for _ in range(5):
        assert torch.equal(maps.convolve_maps([x], [weight], bias, "gelu"), convolved)
        assert torch.equal(maps.column_moments(x), moments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "counts"), [((6, 7), (64, 65, 150)), ((70, 71), (17, 40))], ids=str)
def test_stacks_of_several_vectors_and_large_maps(
    size: tuple[int, int], counts: tuple[int, ...], dtype: torch.dtype
) -> None:
    for count in counts:
        x, kernel = torch.randn(*size, count, dtype=dtype), torch.randn(3, 5, count, dtype=dtype)
        expected = F.conv2d(
            x.double().movedim(2, 0)[None], kernel.double().movedim(2, 0)[:, None], padding=(1, 2), groups=count
        )
        assert_close(correlate_stacked(x, kernel, 1, 2), expected[0].movedim(0, 2))
        y = torch.randn(size[1], size[0], count, dtype=dtype)
        assert_close(multiply_stacked(x, y) / size[1], torch.einsum("hmn,mwn->hwn", x.double(), y.double()) / size[1])
