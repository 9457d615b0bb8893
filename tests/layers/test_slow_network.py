"""Slow networks: initial frequencies, sizes, and refused arguments."""

import math
from typing import Any

import pytest
import torch

from visionattn.layers.slow_network import ContextSlowNetwork, SlowNetwork, resize_kernel


def test_band_limited_kernels_hold_no_frequency_beyond_the_grid() -> None:
    torch.manual_seed(0)
    net = SlowNetwork(4, (1, 33), ndim=1, hidden=16, depth=3, init="band_limited")
    per_layer = net.filters.weight.view(4, 16).abs().amax(1)
    step = 2 / 32  # between coordinates
    assert per_layer.sum() * step <= math.pi + 1e-6  # products of sines add frequencies up
    assert (per_layer.sum() * step > 0.8 * math.pi).all()
    finer = SlowNetwork(4, (1, 65), ndim=1, hidden=16, depth=3, init="band_limited")
    finer.load_state_dict({**net.state_dict(), "tap_bias": torch.zeros(65, 1)})
    torch.testing.assert_close(finer()[:, :, ::2], net())  # the same function, sampled twice as often


def test_released_frequencies_are_gamma_times_uniform() -> None:
    torch.manual_seed(0)
    net = SlowNetwork(4, (3, 3), hidden=4096, depth=2, omega_0=10.0)
    for level, u in enumerate(net.filters.weight.view(3, 4096, 2)):
        shape = 6 / (level + 1)
        mean_square = (2 * math.pi * 10) ** 2 * shape * (shape + 1) / (3 * 2)  # E[gamma^2] E[uniform(±1/sqrt 2)^2]
        assert u.square().mean().item() == pytest.approx(mean_square, rel=0.15)
    assert not net.filters.bias.any()
    assert all((layer.bias == 1).all() for layer in net.layers)
    assert net.proj.weight.square().mean().item() == pytest.approx(1 / 4096 / 9, rel=0.1)


def test_kernel_equals_the_published_formula() -> None:
    net = SlowNetwork(2, (2, 3), hidden=5, depth=1, omega_0=1.0).double()
    torch.nn.init.normal_(net.tap_bias)
    expected = torch.empty(2, 2, 3, dtype=torch.float64)
    for i, y in enumerate((-1.0, 1.0)):
        for j, x in enumerate((-1.0, 0.0, 1.0)):
            g = (net.filters.weight @ torch.tensor([y, x], dtype=torch.float64) + net.filters.bias).sin()
            h = g[5:] * (net.layers[0].weight @ g[:5] + net.layers[0].bias) + net.tap_bias[3 * i + j]
            expected[:, i, j] = net.proj.weight @ h + net.proj.bias
    torch.testing.assert_close(net(), expected)


def test_interpolation_keeps_ends_and_means_of_neighbours() -> None:
    kernel = torch.tensor([[[0.0, 1.0, 4.0]]])
    torch.testing.assert_close(resize_kernel(kernel, (1, 5)), torch.tensor([[[0.0, 0.5, 1.0, 2.5, 4.0]]]))


def test_local_kernels_have_no_gradient_along_hidden_maps() -> None:
    """In `h = stopgrad(h) + 0.1 h / |h|` the direction of h alone has a gradient."""
    net = ContextSlowNetwork(3, (3, 3), hidden=4, depth=1).double()
    pooled = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    net(pooled).square().sum().backward()
    # Scaling W and b of a hidden map scales h.
    (layer,) = net.layers
    along = sum((p * p.grad).sum() for p in (layer.weight, layer.bias))
    assert abs(along) < 1e-9 * max(p.grad.abs().max() for p in layer.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "uniform"}, 'init must be "gamma" or "band_limited"; got \'uniform\''),
        ({"ndim": 1}, "ndim must be 2, or 1 for kernels of one row; got 1 with taps 3x3"),
        ({"ndim": 3}, "got 3"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlowNetwork(2, (3, 3), **options)
