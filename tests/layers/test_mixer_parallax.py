"""Parallax attention: its equation with dense covariances, and how it starts from neighborhood attention."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.layers.dense_neighborhoods import (
    DIM,
    HEADS,
    join,
    moments,
    probabilities,
    random_map,
    random_module,
    split,
    with_gradients,
)
from tests.layers.test_mixers import each_size
from tests.models.nat_layouts import ISOTROPIC, LAYOUTS, random_weights
from visionattn.analysis.attention import attention_layers, record_attention
from visionattn.layers.mixers import create_mixer
from visionattn.layers.mixers.parallax import ParallaxAttention2d
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d
from visionattn.models._nat_checkpoints import checkpoint_filter_fn


def attend_densely(module: ParallaxAttention2d, x: Tensor, dilation: int) -> Tensor:
    size = x.shape[1], x.shape[2]
    q, k, v = (split(part) for part in (x @ module.qkv.weight.T + module.qkv.bias).chunk(3, -1))
    r = split(x @ module.r.weight.T + module.r.bias)
    p = probabilities(q, k, module.rpb, size, module.kernel_size, dilation)
    _, mean, _, covariance = moments(p, k, v)
    return join(mean - (covariance @ r[..., None]).squeeze(-1), size, module.proj)


@pytest.mark.parametrize("dilation", [1, 2])
@each_size
def test_outputs_and_gradients_equal_dense_covariances(size: tuple[int, int], dilation: int) -> None:
    module = random_module(ParallaxAttention2d(DIM, HEADS, kernel_size=3, dilation=dilation, dtype=torch.float64))
    x = random_map(size)
    expected = with_gradients(attend_densely(module, x, dilation), module, x)
    for ours, theirs in zip(with_gradients(module(x), module, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_parameters_as_in_the_paper() -> None:
    module = create_mixer("parallax", 32, 2, rel_pos_bias=False)
    assert sum(p.numel() for p in module.parameters()) == 5 * 32**2 + 5 * 32
    bare = create_mixer("parallax", 32, 2, rel_pos_bias=False, qkv_bias=False)
    assert sum(p.numel() for p in bare.parameters()) == 5 * 32**2 + 32


@pytest.mark.parametrize("legacy_pad", [False, True])
@pytest.mark.parametrize("dilation", [1, None])
def test_it_starts_as_neighborhood_attention_and_learns_r(dilation: int | None, legacy_pad: bool) -> None:
    options: dict[str, Any] = {"kernel_size": 3, "dilation": dilation, "legacy_pad": legacy_pad}
    parallax, plain = ParallaxAttention2d(16, 2, **options), NeighborhoodAttention2d(16, 2, **options)
    parallax.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 2, 7, 16)
    torch.testing.assert_close(parallax(x), plain(x), rtol=0, atol=1e-6)
    parallax(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in parallax.parameters())


def parallax_of(name: str, weights: dict[str, Tensor], **options: Any) -> nn.Module:
    model = timm.create_model(name, mixer="parallax", num_classes=5, **options)
    model.pretrained_cfg["num_classes"] = 5
    model.load_state_dict(checkpoint_filter_fn(weights, model))
    return model.eval()


@pytest.mark.parametrize("mixer", ["parallax", ["parallax", "neighborhood"]], ids=str)
def test_packaged_weights_give_the_neighborhood_model(mixer: Any) -> None:
    model = timm.create_model("nat_pico.cifar10", pretrained=True, mixer=mixer).eval()
    plain = timm.create_model("nat_pico.cifar10", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-6)
    assert any(isinstance(module, ParallaxAttention2d) for module in model.modules())
    assert not any(p.any() for name, p in model.named_parameters() if ".attn.r." in name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_give_the_neighborhood_model(layout: str) -> None:
    name, options, to_theirs, _, size = LAYOUTS[layout]
    theirs = to_theirs(random_weights(name, **options))
    plain = timm.create_model(name, num_classes=5, **options)
    plain.pretrained_cfg["num_classes"] = 5
    with warnings.catch_warnings(action="ignore"):
        plain.load_state_dict(checkpoint_filter_fn(theirs, plain))
        model = parallax_of(name, theirs, **options)
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain.eval()(x), rtol=0, atol=1e-6)


def test_trained_r_is_kept_and_what_is_missing_is_named(tmp_path: Path) -> None:
    ours = random_weights("nat_isotropic_small", mixer="parallax", **ISOTROPIC)
    save_file(dict(ours), tmp_path / "model.safetensors")
    held = load_file(tmp_path / "model.safetensors")
    model = parallax_of("nat_isotropic_small", held, **ISOTROPIC)
    assert model.blocks[2].attn.r.weight.any()
    torch.testing.assert_close(dict(model.state_dict()), held, rtol=0, atol=0)

    # A file that has r in some blocks alone is damaged; so is one without another parameter.
    for absent in ("blocks.1.attn.r.weight", "blocks.1.attn.qkv.weight"):
        cut = {name: value for name, value in held.items() if name != absent}
        with pytest.raises(ValueError, match=f"1 key missing in the file: {absent}"):
            parallax_of("nat_isotropic_small", cut, **ISOTROPIC)
    with pytest.raises(ValueError, match=r"6 keys left over in the file: blocks\.0\.attn\.r"):
        checkpoint_filter_fn(held, timm.create_model("nat_isotropic_small", num_classes=5, **ISOTROPIC))


def test_recorded_weights_are_those_of_the_values() -> None:
    model = timm.create_model(
        "nat_isotropic_small", depth=3, embed_dim=16, num_heads=2, kernel_size=3, mixer="parallax"
    )
    attention = model.double().eval().blocks[0].attn
    random_module(attention)
    layers = {layer.name: layer for layer in attention_layers(model)}
    with record_attention(layers) as found, torch.no_grad():
        model(torch.randn(1, 3, 80, 64, dtype=torch.float64))
    recorded = found["blocks.0"]
    weights = recorded.row((2, 1))
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones(1, 2, dtype=torch.float64))
    _, values = attention.project(recorded.inputs).split((48, 16), -1)
    out = torch.einsum("bhyx,byxhc->bhc", weights, values.unflatten(-1, (2, -1)))
    direct = attention.attend(attention.project(recorded.inputs))[:, 2, 1].unflatten(-1, (2, -1))
    torch.testing.assert_close(out, direct)
    assert not weights[..., ~recorded.visible((2, 1))].any()
