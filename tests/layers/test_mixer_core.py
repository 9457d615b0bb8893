"""Core context aware attention against its equation with dense scores, and its limits."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.layers.dense_neighborhoods import DIM, HEADS, bias_of_pairs, random_map, random_module, with_gradients
from visionattn.layers.mixers.core import CoreContextAttention2d
from visionattn.layers.mixers.full import FullAttention2d
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d
from visionattn_kernels import neighborhood_attention_2d


def random_core(kernel_size: int = 3, group_size: int = 4) -> CoreContextAttention2d:
    module = random_module(CoreContextAttention2d(DIM, HEADS, kernel_size, group_size, dtype=torch.float64))
    assert isinstance(module, CoreContextAttention2d)
    return module


def attend_densely(module: CoreContextAttention2d, x: Tensor) -> Tensor:
    """The equation: one softmax over all keys under a mask of the window, with the pooled keys behind them."""
    height, width = x.shape[1:3]
    k_size, edge = module.kernel_size, module.group_size
    assert isinstance(k_size, int)
    q, k, v = (x @ module.qkv.weight.T + module.qkv.bias).flatten(1, 2).unflatten(-1, (3, HEADS, -1)).unbind(2)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, heads, N, d]
    places = list(product(range(height), range(width)))
    scale = q.shape[-1] ** -0.5

    keys, values = [k], [v]
    for top, left in product(range(0, height, edge), range(0, width, edge)):
        block = [i for i, (y, x_) in enumerate(places) if top <= y < top + edge and left <= x_ < left + edge]
        weights = (scale * q[:, :, block].mean(2, keepdim=True) @ k[:, :, block].mT).softmax(-1)
        keys.append(weights @ k[:, :, block])
        values.append(weights @ v[:, :, block])
    keys_and_cores = torch.cat(keys, 2)

    bias = bias_of_pairs(module.rpb, (height, width), k_size, 1)
    none = bias.new_zeros(HEADS, len(places), len(keys) - 1)  # pooled keys are seen by all, without a bias
    scores = scale * q @ keys_and_cores.mT + torch.cat([bias, none], -1)
    out = (scores.softmax(-1) @ torch.cat(values, 2)).transpose(1, 2).flatten(2)
    return (out @ module.proj.weight.T + module.proj.bias).unflatten(1, (height, width))


@pytest.mark.parametrize(
    ("size", "group_size"),
    [((1, 1), 4), ((1, 9), 4), ((5, 7), 4), ((16, 16), 4), ((14, 11), 4), ((5, 7), 1), ((5, 7), 3), ((5, 7), 40)],
    ids=str,
)
def test_outputs_and_gradients_equal_dense_scores(size: tuple[int, int], group_size: int) -> None:
    module, x = random_core(group_size=group_size), random_map(size)
    for found, expected in zip(
        with_gradients(module(x), module, x), with_gradients(attend_densely(module, x), module, x), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(5, 7), (1, 9), (8, 8)])
def test_blocks_of_one_position_and_a_closed_window_are_full_attention(size: tuple[int, int]) -> None:
    """A bias of -3e4 leaves keys of the window a weight of 0. Then each key is seen once, as its own core token."""
    module, x = random_core(group_size=1), random_map(size)
    module.rpb.data.fill_(-3e4)
    full = FullAttention2d(DIM, HEADS, dtype=torch.float64)
    full.load_state_dict({name: value for name, value in module.state_dict().items() if name != "rpb"})
    torch.testing.assert_close(module(x), full(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("group_size", [9, 100])
def test_block_of_the_whole_map_adds_one_key_to_neighborhood_attention(group_size: int) -> None:
    """With the log-sum-exp L of the window's scores, the pooled key of score s has the share sigmoid(s - L)."""
    module, x = random_core(group_size=group_size), random_map((9, 6))
    nat = NeighborhoodAttention2d(DIM, HEADS, 3, dtype=torch.float64)
    nat.load_state_dict(module.state_dict())
    qkv = module.project(x)
    q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).unbind(3)
    weights = torch.einsum("bnc,byxnc->byxn", q.mean((1, 2)), k).div(2).flatten(1, 2).softmax(1)
    core_k, core_v = (torch.einsum("bpn,bpnc->bnc", weights, t.flatten(1, 2)) for t in (k, v))
    score = torch.einsum("byxnc,bnc->byxn", q, core_k) / 2
    local, lse = neighborhood_attention_2d(q, k, v, 3, rpb=nat.rpb, return_lse=True)
    share = torch.sigmoid(score - lse)[..., None]
    expected = (1 - share) * local + share * core_v[:, None, None]
    torch.testing.assert_close(module.attend(qkv), expected.flatten(-2), rtol=0, atol=1e-12)
    torch.testing.assert_close(local.flatten(-2), nat.attend(qkv), rtol=0, atol=1e-12)


def test_group_size_changes_in_a_trained_module() -> None:
    module, x = random_core(), random_map((9, 6))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    outputs = []
    for group_size in (2, 4, 8):
        module.set_group_size(group_size)
        torch.testing.assert_close(module(x), attend_densely(module, x), rtol=0, atol=1e-10)
        outputs.append(module(x))
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_group_size_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size must be at least 1; got 0"):
        CoreContextAttention2d(DIM, HEADS, group_size=0)
    with pytest.raises(ValueError, match="group_size must be at least 1; got -2"):
        random_core().set_group_size(-2)


def count_attention(side: int, group_size: int) -> int:
    """Count the operations of attention on a map."""
    module = CoreContextAttention2d(64, 2, 5, group_size, device=torch.device("meta"))
    qkv = torch.empty(1, side, side, 192, device="meta")
    with FlopCounterMode(display=False) as counter:
        module.attend(qkv)
    return counter.get_total_flops()


@pytest.mark.parametrize("side", [16, 32, 64])
def test_cost_is_linear_in_positions_if_blocks_grow_with_the_map(side: int) -> None:
    """Per position: a score and two sums to pool, then a score and a sum per key of the window and per block."""
    product = 2 * 64
    assert count_attention(side, 4) == side**2 * product * (3 + 2 * (25 + (side // 4) ** 2))
    assert count_attention(2 * side, side // 2) == 4 * count_attention(side, side // 4)
