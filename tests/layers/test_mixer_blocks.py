"""Attention in two levels against dense weights in float64, and its limits: full attention, one block, few blocks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.layers.test_mixers import each_size
from visionattn.layers.mixers import blocks, create_mixer
from visionattn.layers.mixers.blocks import BlockAttention2d, two_level_weights

DIM, HEADS = 8, 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(**options: object) -> BlockAttention2d:
    mixer = create_mixer("blocks", DIM, HEADS, dtype=torch.float64, **options)
    assert isinstance(mixer, BlockAttention2d)
    for i, parameter in enumerate(mixer.parameters()):
        parameter.data = 0.6 * normal(*parameter.shape, seed=i)
    return mixer


def dense(mixer: BlockAttention2d, x: Tensor, topk: int | None = None) -> Tensor:
    """Compute the weights of all tokens of one image from exponentials, as the equation has them."""
    if mixer.is_causal:
        x = x.reshape(1, -1, DIM)
    rows, columns = torch.meshgrid(*(torch.arange(n) // mixer.block_size for n in x.shape[:2]), indexing="ij")
    numbers = (rows * (columns.max() + 1) + columns).flatten()
    member = F.one_hot(numbers).to(x.dtype)  # [N, blocks]
    same = member @ member.T  # [N, N]
    visible = torch.ones_like(same)
    tokens = x.reshape(-1, DIM)
    q, k, v = F.linear(tokens, mixer.qkv.weight, mixer.qkv.bias).split(DIM, -1)
    means = member.T / member.sum(0)[:, None]
    keys = means @ k if mixer.landmark is None else F.linear(means @ tokens, mixer.landmark.weight, mixer.landmark.bias)
    outputs = []
    for channels in torch.arange(DIM).split(DIM // HEADS):
        query = q[:, channels] / math.sqrt(DIM // HEADS)
        tokenwise = (query @ k[:, channels].T).exp()
        blockwise = (query @ keys[:, channels].T).exp() * member.sum(0) * (1 - member)  # own landmark ignored
        if mixer.is_causal:
            visible = torch.ones_like(same).tril()
            blockwise = blockwise * (torch.arange(member.shape[1]) < numbers[:, None])
        if topk is not None:
            rank = blockwise.argsort(-1, descending=True).argsort(-1)
            blockwise = blockwise * (rank < topk)
        own = tokenwise * same * visible
        inside = tokenwise / (tokenwise @ member @ member.T)  # softmax of each token in its block
        weights = own + (blockwise @ member.T) * inside * (1 - same)
        outputs.append(weights @ v[:, channels] / weights.sum(-1, keepdim=True))
    return F.linear(torch.cat(outputs, -1), mixer.proj.weight, mixer.proj.bias)


@pytest.mark.parametrize(
    "options",
    [{}, {"summary": "mean", "block_size": 3}, {"is_causal": True}, {"topk": 2, "block_size": 2}],
    ids=lambda options: "-".join(map(str, options)) or "landmark",
)
@each_size
def test_output_and_gradients_equal_the_dense_reference(options: dict[str, object], size: tuple[int, int]) -> None:
    mixer = layer(**options).train("topk" not in options)
    x = normal(*size, DIM, seed=9).requires_grad_()
    out, expected = mixer(x[None])[0], dense(mixer, x, mixer.topk).view_as(x)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    inputs = [x, *mixer.parameters()]
    weights = normal(*x.shape, seed=10)
    found, wanted = (torch.autograd.grad(y, inputs, weights, materialize_grads=True) for y in (out, expected))
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_log_sum_exp_as_logit_gives_full_attention() -> None:
    scores = 3 * normal(2, 20, 5, 4)
    own = torch.eye(5, dtype=torch.bool).repeat_interleave(4, 0)
    weights = two_level_weights(scores, scores.logsumexp(-1), own)
    torch.testing.assert_close(weights, scores.flatten(-2).softmax(-1), atol=1e-14, rtol=0)


@each_size
def test_one_block_is_full_attention(size: tuple[int, int]) -> None:
    mixer = layer(block_size=16, summary="mean")
    full = create_mixer("full", DIM, HEADS, dtype=torch.float64)
    full.load_state_dict(mixer.state_dict())
    x = normal(2, *size, DIM)
    torch.testing.assert_close(mixer(x), full(x), atol=1e-12, rtol=0)


def test_blocks_of_one_token_are_full_attention() -> None:
    mixer = layer(block_size=1, summary="mean")
    full = create_mixer("full", DIM, HEADS, dtype=torch.float64)
    full.load_state_dict(mixer.state_dict())
    x = normal(2, 5, 7, DIM)
    torch.testing.assert_close(mixer(x), full(x), atol=1e-12, rtol=0)


def test_equal_scores_weigh_all_tokens_of_a_ragged_map_equally() -> None:
    mixer = layer()
    mixer.qkv.weight.data[: 2 * DIM] = 0
    mixer.qkv.bias.data[: 2 * DIM] = 0
    x = normal(1, 5, 7, DIM)
    mean = x.mean((1, 2), keepdim=True).expand_as(x)
    torch.testing.assert_close(mixer(x), mixer.eval()(mean), atol=1e-12, rtol=0)


def test_topk_acts_in_evaluation_alone_and_may_change() -> None:
    mixer, x = layer(block_size=2, topk=0), normal(1, 6, 6, DIM)
    everything = mixer(x)
    mixer.eval()
    moved = x.clone()
    moved[:, 2:] += 1
    torch.testing.assert_close(mixer(moved)[:, :2], mixer(x)[:, :2], atol=0, rtol=0)  # own blocks alone
    assert not torch.allclose(mixer(x), everything)
    for mixer.topk in (8, 99, None):
        torch.testing.assert_close(mixer(x), everything, atol=1e-14, rtol=0)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"topk": 1}], ids=str)
def test_queries_in_portions_give_the_same(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = layer(**options).eval(), normal(2, 5, 7, DIM)
    whole = mixer(x)
    monkeypatch.setattr(blocks, "MAX_SCORES", 1000)
    torch.testing.assert_close(mixer(x), whole, atol=1e-14, rtol=0)


@pytest.mark.parametrize(("summary", "count"), [("landmark", 5 * 64**2 + 5 * 64), ("mean", 4 * 64**2 + 4 * 64)])
def test_number_of_parameters(summary: str, count: int) -> None:
    assert sum(p.numel() for p in create_mixer("blocks", 64, 2, summary=summary).parameters()) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1; got 0"),
        ({"summary": "max"}, "summary must be one of landmark, mean; got 'max'"),
        ({"topk": -1}, "topk must be at least 0, or None for all blocks; got -1"),
    ],
    ids=lambda x: "" if isinstance(x, str) else next(iter(x)),
)
def test_option_out_of_range_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mixer("blocks", 16, 2, **options)
