"""Linear layers on maps equal those of torch and timm with the same parameters."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from visionattn.layers.pointwise import MapLinear, MapMlp, apply_rows


class Doubled(Tensor):
    """A wrapper subclass as quantized weights are: `F.linear` knows it, and nothing else does."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Doubled":
        wrapper = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        wrapper.inner = inner
        return wrapper

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.linear:
            raise NotImplementedError(func)
        return F.linear(args[0], 2 * args[1].inner, args[2])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (0, 5, 3, 8), (2, 1, 1, 8), (7, 8)], ids=str)
def test_map_linear_equals_linear(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours = MapLinear(8, 12, dtype=dtype)
    plain = nn.Linear(8, 12, dtype=dtype)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    results = []
    for layer in (ours, plain):
        out = layer(x)
        assert out.is_contiguous()
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])])
    torch.testing.assert_close(*results)


def test_map_mlp_equals_timm() -> None:
    torch.manual_seed(0)
    ours, theirs = MapMlp(8, 24), Mlp(8, 24)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 3, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def wrap_weight(layer: nn.Linear) -> None:
    inner = layer.weight.detach()
    del layer.weight
    layer.weight = Doubled(inner)


def test_map_linear_takes_a_weight_that_knows_linear_alone() -> None:
    layer, x = MapLinear(8, 12), torch.randn(2, 5, 3, 8)
    expected = F.linear(x, 2 * layer.weight, layer.bias)
    wrap_weight(layer)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_rows_of_a_layer_are_those_of_its_output(bias: bool) -> None:
    layer, x = nn.Linear(8, 12, bias=bias), torch.randn(2, 5, 8)
    expected = layer(x)
    torch.testing.assert_close(apply_rows(layer, x, slice(4)), expected[..., :4])
    torch.testing.assert_close(apply_rows(layer, x, slice(4, None)), expected[..., 4:])
    wrap_weight(layer)
    torch.testing.assert_close(apply_rows(layer, x, slice(4)), layer(x)[..., :4])


def test_rows_of_a_layer_with_an_adapter_include_the_adapter() -> None:
    class Adapted(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    layer, x = Adapted(8, 12), torch.randn(2, 5, 8)
    torch.testing.assert_close(apply_rows(layer, x, slice(4, None)), layer(x)[..., 4:])
