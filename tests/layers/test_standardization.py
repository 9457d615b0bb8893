"""Standardization over instances, the batch and groups of either, against statistics written out."""

import pytest
import torch
from torch import Tensor

from visionattn.layers.standardization import BatchStandardization, GroupStandardization, instance_standardize

EPS = 1e-5


def standardize(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) / (var + EPS).sqrt()


def test_instances() -> None:
    x = 3 + 2 * torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(instance_standardize(x), standardize(x, (2, 3)))
    assert instance_standardize(torch.randn(2, 4, 1, 1)).abs().max() < 1e-3


def test_batch_and_its_running_statistics() -> None:
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


def test_a_folded_map_standardizes_its_output() -> None:
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
    out = GroupStandardization(24)(x)
    for group in range(12):
        channels = slice(2 * group, 2 * group + 2)
        expected = by_instance if group % 2 else by_batch
        torch.testing.assert_close(out[:, channels], expected[:, channels])


def test_what_has_no_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one value per channel"):
        BatchStandardization(4)(torch.ones(1, 4, 1, 1))
    with pytest.raises(ValueError, match="num_groups must be even and divide dim; got num_groups 12 and dim 20"):
        GroupStandardization(20)
