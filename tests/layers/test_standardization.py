"""Standardization over instances, the batch and groups of either, against statistics written out."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.layers.hyper_interaction import HyperChannelInteraction
from visionattn.layers.standardization import BatchStandardization, GroupStandardization, instance_standardize

EPS = 1e-5


@pytest.fixture(params=["gradients", "no gradients"], autouse=True)
def _path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Test with and without gradients; without them, compiled operators may run."""
    with torch.set_grad_enabled(request.param == "gradients"):
        yield


def standardize(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) / (var + EPS).sqrt()


def test_instance_standardization_has_zero_mean_and_unit_variance() -> None:
    x = 3 + 2 * torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(instance_standardize(x), standardize(x, (2, 3)))
    assert instance_standardize(torch.randn(2, 4, 1, 1)).abs().max() < 1e-3


def test_batch_standardization_keeps_running_statistics() -> None:
    norm, x = BatchStandardization(4), 3 + 2 * torch.randn(8, 4, 5, 6)
    torch.testing.assert_close(norm(x), standardize(x, (0, 2, 3)))
    var, mean = torch.var_mean(x, (0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * var)
    norm.eval()
    expected = (x - 0.1 * mean[:, None, None]) / (0.9 + 0.1 * var + EPS).sqrt()[:, None, None]
    torch.testing.assert_close(norm(x), expected)
    without = BatchStandardization(4, running_stats=False).eval()
    torch.testing.assert_close(without(x), standardize(x, (0, 2, 3)))


def test_folded_map_standardizes_its_output() -> None:
    norm, x = BatchStandardization(4), torch.randn(3, 5, 2, 2)
    weight, bias = torch.randn(4, 5), torch.randn(4)
    norm(torch.randn(8, 4, 3, 3) * 2 + 1)
    norm.eval()
    assert norm.uses_running_stats()
    w, b = norm.fold(weight, bias)
    plain = torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None]
    torch.testing.assert_close(torch.einsum("oc,bchw->bohw", w, x) + b[:, None, None], norm(plain))


def test_groups_alternate() -> None:
    x = torch.randn(3, 24, 4, 5) * torch.rand(3, 24, 1, 1)
    by_batch, by_instance = standardize(x, (0, 2, 3)), standardize(x, (2, 3))
    norm, odd = GroupStandardization(24), torch.arange(24)[:, None, None] // 2 % 2 == 1
    torch.testing.assert_close(norm(x), torch.where(odd, by_instance, by_batch))
    without = GroupStandardization(24, running_stats=False).eval()
    torch.testing.assert_close(without(x), torch.where(odd, by_instance, by_batch))
    mean, var = (
        y.view(6, 2).repeat_interleave(2, 0).view(24, 1, 1) for y in (norm.batch.running_mean, norm.batch.running_var)
    )
    expected = torch.where(odd, by_instance, (x - mean) / (var + EPS).sqrt())
    torch.testing.assert_close(norm.eval()(x), expected)


NORMS: dict[str, Callable[[], Any]] = {
    "instances": lambda: instance_standardize,
    "batch": lambda: BatchStandardization(12),
    "batch, running": lambda: BatchStandardization(12).eval(),
    "groups": lambda: GroupStandardization(12),
    "groups, running": lambda: GroupStandardization(12).eval(),
}


@pytest.mark.parametrize("kind", NORMS)
def test_activation_and_bias_follow(kind: str) -> None:
    norm = NORMS[kind]()
    x, bias = torch.randn(3, 12, 4, 5), torch.randn(1, 4, 5)
    before = x.clone()
    expected = norm(x)
    torch.testing.assert_close(norm(x, bias), expected + bias)
    torch.testing.assert_close(norm(x, bias[0, 0, :1], activate=True), F.gelu(expected) + bias[0, 0, 0])
    assert torch.equal(x, before)
    torch.testing.assert_close(norm(x, activate=True, inplace=True), F.gelu(expected))


def test_gated_channels_are_standardized_at_once() -> None:
    gate, x = HyperChannelInteraction(4), 2 + torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(gate.standardized(x), standardize(gate(x), (2, 3)), rtol=1e-4, atol=1e-5)


def test_batch_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one value per channel"):
        BatchStandardization(4)(torch.ones(1, 4, 1, 1))
    with pytest.raises(ValueError, match="more than one value per channel"):
        GroupStandardization(12, running_stats=False).eval()(torch.ones(1, 12, 1, 1))
    with pytest.raises(ValueError, match="num_groups must be even and divide dim; got num_groups 12 and dim 20"):
        GroupStandardization(20)
