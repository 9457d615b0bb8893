"""1x1 convolutions in positions-first memory are equal with and without gradients, and without a compiler."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.layers import positions_first
from visionattn.layers.positions_first import pointwise, pointwise_product, pointwise_sum


@pytest.fixture(params=["gradients", "compiled", "no compiler"], autouse=True)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "no compiler":
        monkeypatch.setattr(positions_first, "can_run", lambda *_: False)
    with torch.set_grad_enabled(request.param == "gradients"):
        yield


def convolve(maps: list[Tensor], weights: list[Tensor], bias: Tensor) -> Tensor:
    return F.conv2d(torch.cat(maps, 1), torch.cat(weights, 1)[:, :, None, None], bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arrange", [positions_first.positions_first, torch.clone], ids=["positions first", "NCHW"])
def test_convolution_equals_torch(arrange: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x, y = (arrange(torch.randn(3, channels, 4, 6, dtype=dtype)) for channels in (5, 2))
    weight, other, bias = (torch.randn(*shape, dtype=dtype) for shape in ((8, 5), (8, 2), (8,)))
    expected = convolve([x], [weight], bias)
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(pointwise(x, weight, bias), expected, **close)
    torch.testing.assert_close(pointwise(x, weight[:, :, None, None]), convolve([x], [weight], 0 * bias), **close)
    torch.testing.assert_close(pointwise(x, weight, bias, activate=True), F.gelu(expected), **close)
    first, second = expected.chunk(2, 1)
    torch.testing.assert_close(pointwise_product(x, weight, bias), first * second, **close)
    together = convolve([x, y], [weight, other], bias)
    torch.testing.assert_close(pointwise_sum([x, y], [weight, other], bias), together, **close)
