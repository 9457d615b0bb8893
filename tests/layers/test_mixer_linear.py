"""Linear attention against dense scores in float64, and the claims that the papers make about its features."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.layers.test_mixers import each_size
from visionattn.layers.mixers import create_mixer
from visionattn.layers.mixers.linear import LinearAttention2d, elu_features, taylor_features

each_map = pytest.mark.parametrize("name", ["taylor", "elu"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(name: str, dim: int = 12, num_heads: int = 2, **options: object) -> LinearAttention2d:
    mixer = create_mixer(name, dim, num_heads, dtype=torch.float64, **options)
    assert isinstance(mixer, LinearAttention2d)
    for i, parameter in enumerate(mixer.parameters()):
        parameter.data = 0.5 * normal(*parameter.shape, seed=i)
    return mixer


def dense(name: str, mixer: LinearAttention2d, x: Tensor) -> Tensor:
    """Compute scores of all pairs of tokens by their definition, mask the later ones, and normalise."""
    f, heads, batch = mixer.feature_dim, mixer.num_heads, len(x)
    packed = F.linear(x.flatten(1, 2), mixer.qkv.weight, mixer.qkv.bias)
    q, k, v = packed.split([heads * f, heads * f, x.shape[-1]], -1)
    q, k, v = (y.reshape(batch, -1, heads, y.shape[-1] // heads) for y in (q, k, v))
    if name == "taylor":
        s = torch.einsum("bnhf,bmhf->bhnm", q, k) / math.sqrt(f)
        scores = 1 + s + s**2 / 2
    else:
        scores = torch.einsum("bnhf,bmhf->bhnm", F.elu(q) + 1, F.elu(k) + 1)
    if mixer.is_causal:
        scores = scores * torch.ones_like(scores).tril()
    out = torch.einsum("bhnm,bmhd->bnhd", scores / scores.sum(-1, keepdim=True), v)
    return F.linear(out.reshape(x.shape), mixer.proj.weight, mixer.proj.bias)


@each_map
@pytest.mark.parametrize("is_causal", [False, True], ids=["both-ways", "causal"])
@pytest.mark.parametrize("feature_dim", [None, 1, 4])
@each_size
def test_output_and_gradients_equal_dense_scores(
    name: str, is_causal: bool, feature_dim: int | None, size: tuple[int, int]
) -> None:
    mixer = layer(name, is_causal=is_causal, feature_dim=feature_dim)
    x = normal(2, *size, 12, seed=9).requires_grad_()
    out, expected = mixer(x), dense(name, mixer, x)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    weights = normal(*out.shape, seed=10)
    inputs = [x, *mixer.parameters()]
    found, wanted = (torch.autograd.grad(y, inputs, weights) for y in (out, expected))
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("f", "count"), [(1, 3), (2, 6), (3, 10), (7, 36), (16, 153)])
def test_taylor_features_are_the_series_without_a_pair_twice(f: int, count: int) -> None:
    q, k = normal(5, f), normal(5, f, seed=1)
    s = (q * k).sum(-1) / math.sqrt(f)
    features = taylor_features(q)
    assert features.shape == (5, count)
    torch.testing.assert_close((features * taylor_features(k)).sum(-1), 1 + s + s**2 / 2, atol=1e-13, rtol=1e-13)
    assert torch.linalg.matrix_rank(taylor_features(normal(2 * count, f))) == count


def test_taylor_weights_cannot_be_sharp() -> None:
    """Mean entropies of 2,000 weights whose scores have deviation 4: softmax 2.6, the series 7.0, uniform 7.6."""
    s = 4 * normal(200, 2000)
    series = taylor_features(s[..., None]) @ taylor_features(torch.ones(1, dtype=s.dtype))
    assert series.min() >= 0.5
    entropies = [torch.distributions.Categorical(probs=w).entropy().mean().item() for w in (s.softmax(-1), series)]
    assert entropies == pytest.approx([2.6, 7.0], abs=0.1)
    assert math.log(2000) == pytest.approx(7.6, abs=0.05)


def test_taylor_denominator_is_at_least_half_the_tokens() -> None:
    scores = taylor_features(3 * normal(50, 4)) @ taylor_features(3 * normal(70, 4, seed=1)).T
    assert scores.sum(-1).min() >= 70 / 2


def test_elu_features_are_exact_where_they_are_small() -> None:
    x = torch.tensor([-80.0, -20.0, -1e-3, 0.0, 3.0])
    torch.testing.assert_close(elu_features(x), torch.where(x > 0, x + 1, x.exp()), rtol=1e-6, atol=0)


@each_map
def test_permuted_tokens_permute_the_output(name: str) -> None:
    mixer, x = layer(name), normal(2, 1, 30, 12)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixer(x[:, :, order]), mixer(x)[:, :, order], atol=1e-12, rtol=0)


@each_map
def test_number_of_parameters(name: str) -> None:
    """The sizes of the paper's equation: 2 C heads f + 2 C², and biases."""
    mixer = create_mixer(name, 64, 2)
    assert sum(p.numel() for p in mixer.parameters()) == 3 * 64**2 + 2 * 64 + 64
    mixer = create_mixer(name, 64, 2, feature_dim=8, qkv_bias=False)
    assert sum(p.numel() for p in mixer.parameters()) == 2 * 64 * 2 * 8 + 2 * 64**2 + 64


@each_map
def test_sums_leave_the_range_of_half_precision(name: str) -> None:
    """A sum over 4,096 tokens of values of 40 is beyond float16, their mean is not."""
    mixer = layer(name).half()
    x = (40 + normal(1, 64, 64, 12)).half()
    exact = mixer.double()(x.double())
    found = mixer.half()(x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-2 * exact.abs().max().item())
    with torch.autocast("cpu", torch.bfloat16):
        found = mixer.float()(x.float())
    torch.testing.assert_close(found.double(), exact, rtol=3e-2, atol=3e-2 * exact.abs().max().item())


def test_feature_dim_must_be_positive() -> None:
    with pytest.raises(ValueError, match="feature_dim must be at least 1; got 0"):
        create_mixer("taylor", 16, 2, feature_dim=0)
