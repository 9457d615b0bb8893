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
    attn = NeighborhoodAttention2d(16, 2, kernel_size=3, dilation=dilation)
    block = Block(16, attn, 2.0, layer_scale, proj_drop=0.0, drop_path=0.0)
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


@pytest.mark.parametrize("rel_pos_bias", [False, True])
def test_position_that_depends_on_the_query_equals_dense_scores(rel_pos_bias: bool) -> None:
    """On a map no larger than the window, where every query sees every key and every entry of the tables counts."""
    kernel, dtype = (3, 5), torch.float64
    module = NeighborhoodAttention2d(16, 2, kernel, rel_pos_bias=rel_pos_bias, rel_pos="query", dtype=dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, *kernel, 16, dtype=dtype, requires_grad=True)
    q, k, v = module.qkv(x).flatten(1, 2).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
    place = torch.cartesian_prod(*map(torch.arange, kernel))
    rows, columns = (place[None] - place[:, None] + torch.tensor(kernel) - 1).unbind(-1)
    assert module.pos_embed is not None
    embedding = module.pos_embed.height_rel[rows] + module.pos_embed.width_rel[columns]  # [N, N, d]
    scores = (q @ k.mT + torch.einsum("bhnd,nmd->bhnm", q, embedding)) * 8**-0.5
    if module.rpb is not None:
        scores = scores + module.rpb[:, rows, columns]
    expected = module.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2).view_as(x))
    out = module(x)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    for found, wanted in zip(gradients(module, x, out), gradients(module, x, expected), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


def test_position_that_depends_on_the_query_follows_the_kernel_size() -> None:
    module = NeighborhoodAttention2d(16, 2, 3, rel_pos="query")
    before = module.state_dict()["pos_embed.height_rel"].clone()
    module.set_kernel_size((5, 3))
    after = module.state_dict()
    assert [after[f"pos_embed.{name}_rel"].shape for name in ("height", "width")] == [(9, 8), (5, 8)]
    torch.testing.assert_close(after["pos_embed.height_rel"][::2], before)
    assert module(torch.randn(SHAPE)).isfinite().all()
    with pytest.raises(ValueError, match="rel_pos must be \"query\" or None; got 'key'"):
        NeighborhoodAttention2d(16, 2, rel_pos="key")  # type: ignore[arg-type]


def test_causal_map_shows_no_later_row_or_column() -> None:
    module = NeighborhoodAttention2d(16, 2, 3, is_causal=True)
    x = torch.randn(1, 6, 7, 16)
    later = x.clone()
    later[:, 4:] += 1
    later[:, :, 5:] += 1
    assert torch.equal(module(later)[:, :4, :5], module(x)[:, :4, :5])
    assert module.window((6, 7)).is_causal == (True, True)
