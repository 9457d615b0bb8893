"""The attention module when it is compiled, checkpointed or called as a function."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d
from visionattn.models.nat import Block

SHAPE = (2, 9, 7, 16)


def gradients(module: nn.Module, x: Tensor, output: Tensor) -> list[Tensor]:
    """Return the gradients of the input and of all parameters for a fixed output gradient."""
    grad = torch.linspace(-1, 1, output.numel()).view_as(output)
    return list(torch.autograd.grad(output, [x, *module.parameters()], grad))


@pytest.fixture(params=[1, 2, None], ids=["dil1", "dil2", "dil-largest"])
def module(request: pytest.FixtureRequest) -> NeighborhoodAttention2d:
    return NeighborhoodAttention2d(16, 2, kernel_size=3, dilation=request.param)


@pytest.mark.parametrize("layer_scale", [None, 1e-5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_block_compiles_without_graph_breaks(dilation: int, layer_scale: float | None) -> None:
    block = Block(16, 2, 3, dilation, 2.0, True, layer_scale, proj_drop=0.0, drop_path=0.0)
    x = torch.randn(SHAPE, requires_grad=True)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    out, expected = compiled(x), block(x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(block, x, out), gradients(block, x, expected))


def test_grad_checkpointing_keeps_outputs_and_gradients(module: NeighborhoodAttention2d) -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    out, expected = checkpoint(module, x, use_reentrant=False), module(x)
    assert torch.equal(out, expected)
    for found, wanted in zip(gradients(module, x, out), gradients(module, x, expected), strict=True):
        assert torch.equal(found, wanted)


def test_functional_call_takes_other_parameters(module: NeighborhoodAttention2d) -> None:
    other = copy.deepcopy(module)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    x = torch.randn(SHAPE)
    out = torch.func.functional_call(module, dict(other.named_parameters()), (x,))
    assert torch.equal(out, other(x))
    assert not torch.equal(out, module(x))


def test_gradients_per_sample_equal_separate_ones(module: NeighborhoodAttention2d) -> None:
    """Per-sample gradients by vmap of grad of functional_call, as in differential privacy."""
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    x = torch.randn(SHAPE)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (sample[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        module.zero_grad()
        module(sample[None]).square().sum().backward()
        for name, p in module.named_parameters():
            torch.testing.assert_close(found[name][i], p.grad, rtol=1e-4, atol=1e-5)
