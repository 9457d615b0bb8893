"""Linear layers on maps equal those of torch and timm with the same parameters."""

import pytest
import torch
from timm.layers import Mlp
from torch import nn

from visionattn.layers.pointwise import MapLinear, MapMlp


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
