"""Power-of-two windows against their equation with dense scores, and the number of layers to see a whole map."""

import math
from collections.abc import Callable
from functools import reduce
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import visionattn  # noqa: F401 - registers the models
from tests.layers.dense_neighborhoods import DIM, random_map, random_module, with_gradients
from visionattn.layers.mixers.power import PowerAttention2d, count_scales
from visionattn_kernels import Window

OFFSETS = tuple(product((-1, 0, 1), repeat=2))


def random_power(num_heads: int = 2, num_scales: int = 4, power_heads: bool = False) -> PowerAttention2d:
    module = random_module(PowerAttention2d(DIM, num_heads, num_scales, power_heads, dtype=torch.float64))
    assert isinstance(module, PowerAttention2d)
    return module


def attend_densely(module: PowerAttention2d, x: Tensor, scales_of_head: Callable[[int], list[int]]) -> Tensor:
    """The equation: per head one softmax of dense scores under an explicit mask, and a bias per scale and offset."""
    height, width = x.shape[1:3]
    heads = module.num_heads
    q, k, v = (x @ module.qkv.weight.T + module.qkv.bias).flatten(1, 2).unflatten(-1, (3, heads, -1)).unbind(2)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, heads, N, d]
    y, x_ = (t.flatten() for t in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    bias = torch.full((heads, len(y), len(y)), -torch.inf, dtype=x.dtype)
    for head in range(heads):
        for (number, scale), (a, b) in product(enumerate(scales_of_head(head)), OFFSETS):
            if number and (a, b) == (0, 0):
                continue  # the centre is a key of the first scale
            key_y, key_x = y + a * 2**scale, x_ + b * 2**scale
            (query,) = ((key_y >= 0) & (key_y < height) & (key_x >= 0) & (key_x < width)).nonzero(as_tuple=True)
            key = (key_y * width + key_x)[query]
            assert (bias[head, query, key] == -torch.inf).all(), "a key counts twice"
            bias[head, query, key] = module.rpb[head, min(number, module.rpb.shape[1] - 1), a + 1, b + 1]
    scores = q.shape[-1] ** -0.5 * q @ k.mT + bias
    out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return (out @ module.proj.weight.T + module.proj.bias).unflatten(1, (height, width))


def check_with_gradients(module: PowerAttention2d, x: Tensor, scales_of_head: Callable[[int], list[int]]) -> None:
    expected = with_gradients(attend_densely(module, x, scales_of_head), module, x)
    for ours, theirs in zip(with_gradients(module(x), module, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "num_scales", "seen"),
    [
        ((1, 1), 4, 1),
        ((1, 9), 4, 4),
        ((5, 7), 4, 3),
        ((16, 16), 4, 4),
        ((14, 11), 4, 4),
        ((5, 7), 2, 3),
        ((1, 9), 1, 4),
    ],
    ids=str,
)
def test_outputs_and_gradients_equal_dense_scores(size: tuple[int, int], num_scales: int, seen: int) -> None:
    """On maps with more scales than tables, further scales use the last table."""
    assert count_scales(size) == seen
    module, x = random_power(num_scales=num_scales), random_map(size)
    check_with_gradients(module, x, lambda head: list(range(seen)))


@pytest.mark.parametrize(
    ("num_heads", "size", "scales"),
    [
        (2, (5, 7), [[0, 2], [1]]),  # fewer heads than scales: each has several
        (4, (9, 5), [[0], [1], [2], [3]]),
        (4, (3, 3), [[0], [1], [2], [3]]),  # the last two see their own position
        (8, (5, 7), [[0], [0], [1], [1], [2], [2], [3], [3]]),
        (2, (17, 2), [[0, 2, 4], [1, 3]]),  # a scale more than in training
    ],
    ids=str,
)
def test_heads_that_share_out_the_scales_equal_dense_scores(
    num_heads: int, size: tuple[int, int], scales: list[list[int]]
) -> None:
    module, x = random_power(num_heads, 4, power_heads=True), random_map(size)
    assert module.rpb.shape == (num_heads, 2 if num_heads == 2 else 1, 3, 3)
    check_with_gradients(module, x, lambda head: scales[head])


def test_entries_without_a_gradient_are_those_that_the_docstring_names() -> None:
    """The centre of all scales but the first, and tables of scales beyond the map."""
    module = random_power(num_scales=6)
    module(random_map((9, 6))).square().sum().backward()
    assert module.rpb.grad is not None
    expected = torch.ones(2, 6, 3, 3, dtype=torch.bool)
    expected[:, 1:, 1, 1] = False
    expected[:, count_scales((9, 6)) :] = False
    expected[:, 3, :, :1] = expected[:, 3, :, 2:] = False  # 8 columns aside of a map of 6
    assert torch.equal(module.rpb.grad != 0, expected)


def test_hosts_know_the_scales_of_their_map() -> None:
    import timm

    for name, options, scales in (("iso_nano_power", {}, 4), ("iso_nano_power", {"img_size": 96}, 6)):
        assert timm.create_model(name, **options).blocks[0].attn.rpb.shape == (2, scales, 3, 3)
    model = timm.create_model("nat_isotropic_small", mixer="power", device="meta")
    assert model.blocks[0].attn.rpb.shape == (12, count_scales((14, 14)), 3, 3)


def test_each_key_on_the_map_is_counted_once() -> None:
    """GMACs of a model are counted on the meta device: a score and a sum per key, of 64 channels."""
    height, width = size = 13, 10
    offsets = {(a * 2**i, b * 2**i) for i in range(count_scales(size)) for a, b in OFFSETS}
    keys = sum(max(0, height - abs(y)) * max(0, width - abs(x)) for y, x in offsets)
    module = PowerAttention2d(64, 2, device=torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        module.attend(torch.empty(1, *size, 192, device="meta"))
    assert counter.get_total_flops() == 2 * 2 * 64 * keys


def test_number_of_scales_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="num_scales must be at least 1; got 0"):
        PowerAttention2d(DIM, 2, num_scales=0)


# What a query sees, from the windows alone


def visible(window: Window, length: int) -> Tensor:
    """Return which of the keys of an axis each of its queries sees, `[length, length]`."""
    rows, columns = window.axes
    assert rows == columns
    return rows.visible(length)[0]


def test_union_of_windows_is_all_power_of_two_offsets() -> None:
    size = (13, 10)
    windows = PowerAttention2d(DIM, 2).windows(size)
    union = torch.zeros(*size, *size, dtype=torch.bool)
    for window in windows:
        rows, columns = (visible(window, length) for length in size)
        union |= rows[:, None, :, None] & columns[None, :, None, :]
    for y, x, i, j in product(*map(range, (*size, *size))):
        offsets = {abs(i - y), abs(j - x)} - {0}
        is_power = len(offsets) < 2 and all(math.log2(offset).is_integer() for offset in offsets)
        assert union[y, x, i, j] == is_power


@pytest.mark.parametrize("scales", range(1, 8))
def test_no_key_is_seen_twice(scales: int) -> None:
    """A query in the middle of a map that all windows fit sees 8m + 1 keys, the centre in every scale."""
    side = 2**scales + 1
    windows = PowerAttention2d(DIM, 2).windows((side, side))[:scales]
    seen = torch.zeros(side, side, dtype=torch.int)
    for window in windows:
        row = visible(window, side)[side // 2].int()
        seen += row[:, None] * row
    seen[side // 2, side // 2] -= scales - 1
    assert seen.max() == 1
    assert seen.sum() == 8 * scales + 1


def test_distances_on_a_line_are_signed_sums_of_powers_of_two() -> None:
    """After l layers the first distance that is not seen is (2^(2l + 1) + 1) / 3."""
    side = 513
    seen = torch.stack([visible(window, side) for window in PowerAttention2d(DIM, 2).windows((side, side))])
    steps = seen.any(0)[side // 2].nonzero().flatten() - side // 2
    reached = {0}
    for first in (3, 11, 43, 171):
        reached = {place + step for place in reached for step in steps.tolist()}
        assert next(distance for distance in range(side) if distance not in reached) == first


def layers_of_axis(masks: list[Tensor]) -> int:
    """Return the number of layers, with these windows in turn, after which each position has seen each other.

    A layer with a single window keeps rows and columns apart, so an axis tells of the map.
    """
    reach, layers = torch.eye(len(masks[0])), 0
    while not reach.all():
        reach = (masks[layers % len(masks)].float() @ reach).clamp(max=1)
        layers += 1
    return layers


def layers_of_power(side: int) -> int:
    """Return the number of layers of `power` after which each position has seen each other.

    Sources are packed as bits. Windows are symmetric under flips and under exchange of the axes, so those of an octant
    are enough.
    """
    half = (side + 1) // 2
    sources = [(y, x) for y in range(half) for x in range(y, half)]
    reach = torch.zeros(side, side, -(-len(sources) // 8), dtype=torch.uint8)
    for number, (y, x) in enumerate(sources):
        reach[y, x, number // 8] |= 1 << number % 8
    full = reduce(torch.bitwise_or, reach.flatten(0, 1))
    places, neighbours = torch.arange(side), []
    for window in PowerAttention2d(DIM, 2).windows((side, side)):
        seen = visible(window, side)
        assert torch.equal(seen, seen.flip(0, 1))
        first, last = seen.int().argmax(1), side - 1 - seen.flip(1).int().argmax(1)
        assert seen[places, places].all()
        assert torch.equal(seen.sum(1), 1 + (first < places).int() + (last > places).int())  # first, own place, last
        neighbours.append((first, last))
    layers = 0
    while not (reach == full).all():
        after = reach.clone()
        for first, last in neighbours:
            rows = reach | reach[first] | reach[last]
            after |= rows | rows[:, first] | rows[:, last]
        reach, layers = after, layers + 1
    return layers


SIDES = (8, 14, 16, 28, 32, 56, 64, 96, 128, 192, 256)
POWER = (3, 4, 4, 4, 5, 5, 5, 5, 6, 6, 7)
NAT = (2, 4, 4, 8, 10, 18, 20, 31, 42, 63, 84)
DINAT = ((2,), (2,), (2, 3), (2,), (3, 4), (3, 4), (3, 4), (4, 5), (6, 7), (9, 10), (12, 13))


@pytest.mark.parametrize(
    ("side", "layers"),
    [pytest.param(*row, marks=[pytest.mark.slow] * (row[0] > 128)) for row in zip(SIDES, POWER, strict=True)],
)
def test_layers_of_power_until_all_positions_see_each_other(side: int, layers: int) -> None:
    assert layers_of_power(side) == layers


@pytest.mark.parametrize(("side", "nat", "dinat"), list(zip(SIDES, NAT, DINAT, strict=True)))
def test_layers_of_nat_and_dinat_until_all_positions_see_each_other(
    side: int, nat: int, dinat: tuple[int, ...]
) -> None:
    """DiNAT takes dilations 1 and ⌊side / 7⌋ in turn; either comes first."""
    near, far = (visible(Window.neighborhood(7, dilation=dilation), side) for dilation in (1, side // 7))
    assert layers_of_axis([near]) == nat
    assert sorted({layers_of_axis([near, far]), layers_of_axis([far, near])}) == list(dinat)
