"""HaloNet against its paper's table (arXiv 2103.12731)."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import visionattn  # noqa: F401 (registers the models)
from visionattn.layers.halo_attention import HaloAttention2d

META = torch.device("meta")
# name: parameters in millions
TABLE = {
    "halo_h0": 5.50,
    "halo_h1": 8.10,
    "halo_h2": 9.41,
    "halo_h3": 11.84,
    "halo_h4": 19.10,
    "halo_h5": 30.72,
    "halo_h6": 43.46,
    "halo_h7": 67.43,
}


def count(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


@pytest.mark.parametrize("name", TABLE)
def test_parameters_of_the_table(name: str) -> None:
    assert count(timm.create_model(name, device=META)) == pytest.approx(TABLE[name], abs=0.005)


def test_h3_has_the_paper_count_with_another_final_width() -> None:
    assert count(timm.create_model("halo_h3", final_dim=1280, device=META)) == pytest.approx(12.30, abs=0.005)


def test_h1_has_as_many_parameters_as_that_of_timm() -> None:
    ours, theirs = (count(timm.create_model(name, device=META)) for name in ("halo_h1", "halonet_h1"))
    assert ours == pytest.approx(theirs, abs=0.005)


@pytest.mark.parametrize(("name", "layers"), [("halo_h0", 50), ("halo_h1", 59), ("halo_h4", 65), ("halo_h7", 107)])
def test_layers_of_the_table(name: str, layers: int) -> None:
    """The paper counts three layers per block, the stem and the classifier."""
    model = timm.create_model(name, device=META)
    assert 3 * sum(len(stage.blocks) for stage in model.stages) + 2 == layers


@pytest.mark.parametrize(
    ("name", "conv_stages", "patch"),
    [
        ("halo_h4_conv12", 2, False),
        ("halo_h7_conv12", 2, False),
        ("halo_h4_base128_conv12", 2, False),
        ("halo_h4_base128_patch4", 0, True),
    ],
)
def test_hybrids_convolve_early(name: str, conv_stages: int, patch: bool) -> None:
    model = timm.create_model(name, device=META)
    attends = [all(isinstance(block.attn, HaloAttention2d) for block in stage.blocks) for stage in model.stages]
    convolves = [all(isinstance(block.attn, nn.Conv2d) for block in stage.blocks) for stage in model.stages]
    assert convolves == [i < conv_stages for i in range(4)]
    assert attends == [i >= conv_stages for i in range(4)]
    assert model.stem.conv.conv.kernel_size == ((4, 4) if patch else (7, 7))


def test_pico_with_a_stem_of_two_convolutions() -> None:
    model = timm.create_model("halo_pico_stem")
    x = torch.randn(1, 3, 32, 32)
    first = model.stem.conv(x)
    assert (first.shape, model.stem(x).shape) == ((1, 24, 32, 32), (1, 48, 16, 16))
    assert [level["reduction"] for level in model.feature_info] == [2, 4, 8]
    attentions = [name.split(".")[1] for name, module in model.named_modules() if isinstance(module, HaloAttention2d)]
    assert attentions == ["1"] * 3 + ["2"] * 2


def test_base128_doubles_the_widths_and_keeps_the_window() -> None:
    model, narrow = (timm.create_model(name, device=META) for name in ("halo_h4_base128", "halo_h4"))
    layers, narrow_layers = ([m for m in x.modules() if isinstance(m, HaloAttention2d)] for x in (model, narrow))
    assert [x.kv.in_channels for x in layers] == [2 * x.kv.in_channels for x in narrow_layers]
    assert {(x.block_size, x.halo_size) for x in layers} == {(12, 2)}


def awake(model: nn.Module) -> nn.Module:
    """Branches that start at zero would hide what they compute."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def test_parameters_of_h0_all_receive_a_gradient() -> None:
    model = awake(timm.create_model("halo_h0", num_classes=5))
    model(torch.randn(2, 3, 96, 96)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (200, 320), (600, 600)], ids=str)
def test_h0_takes_any_size(size: tuple[int, int]) -> None:
    model = awake(timm.create_model("halo_h0", num_classes=5)).eval()
    with torch.no_grad():
        features = model.forward_features(torch.randn(1, 3, *size))
        assert features.shape[-2:] == tuple(-(-n // 32) for n in size)
        assert model.forward_head(features).isfinite().all()


@pytest.mark.parametrize("size", [(75, 75), (38, 38), (19, 19)], ids=str)
def test_downsampling_attention_counts_offsets_in_positions(size: tuple[int, int]) -> None:
    """Every second query of the stride-1 layer: the maps of H7 at 600, which no block of 10 divides."""
    torch.manual_seed(0)
    whole, strided = (HaloAttention2d(16, num_heads=2, block_size=10, halo_size=3, stride=s) for s in (1, 2))
    strided.load_state_dict(whole.state_dict())
    x = torch.randn(1, 16, *size)
    torch.testing.assert_close(strided(x), whole(x)[..., ::2, ::2], atol=1e-5, rtol=1e-4)


def small(**options: Any) -> nn.Module:
    return awake(timm.create_model("halo_pico", num_classes=3, **options)).eval()


def padded_by_hand(layer: HaloAttention2d, x: Tensor) -> Tensor:
    """The layer on a map that stands in a larger one of noise, of which only keys on the map may be seen."""
    height, width = x.shape[-2:]
    block = layer.block_size
    room = [-n % block + block for n in (height, width)]
    noise = 100 * torch.randn(1, x.shape[1], height + room[0], width + room[1])
    noise[..., :height, :width] = x
    q, kv = layer.q(noise), layer.kv(noise)
    head_dim = layer.q.out_channels // layer.num_heads
    q = q.unflatten(1, (layer.num_heads, -1))
    k, v = kv.unflatten(1, (layer.num_heads, -1)).tensor_split([head_dim], 2)
    on_map = torch.zeros(noise.shape[-2:], dtype=torch.bool)
    on_map[:height, :width] = True
    position = torch.stack(torch.meshgrid(*map(torch.arange, noise.shape[-2:]), indexing="ij"), -1).flatten(0, 1)
    first = position // block * block - layer.halo_size
    offset = position[None] - first[:, None]  # [query, key, axis]
    seen = ((offset >= 0) & (offset < block + 2 * layer.halo_size)).all(-1) & on_map.flatten()
    relative = (position[None] - position[:, None]).clamp(-(n := len(layer.pos_embed.height_rel) // 2), n) + n
    r = layer.pos_embed.height_rel[relative[..., 0]] + layer.pos_embed.width_rel[relative[..., 1]]
    flat_q = q.flatten(3)
    scores = torch.einsum("bhcq,bhck->bhqk", flat_q, k.flatten(3)) + torch.einsum("bhcq,qkc->bhqk", flat_q, r)
    p = (scores * head_dim**-0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    out = torch.einsum("bhqk,bhck->bhcq", p, v.flatten(3)).flatten(1, 2)
    return out.unflatten(-1, noise.shape[-2:])[..., :height, :width]


@pytest.mark.parametrize("size", [(5, 7), (8, 6), (3, 3)], ids=str)
def test_outputs_do_not_depend_on_padding(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = HaloAttention2d(16, num_heads=2, block_size=4, halo_size=2, scale_rel_pos=True)
    x = torch.randn(1, 16, *size)
    torch.testing.assert_close(layer(x), padded_by_hand(layer, x), atol=1e-5, rtol=1e-4)


def test_checkpoint_of_another_window_is_interpolated(tmp_path) -> None:
    model = small()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 3}
    options: dict[str, Any] = {"block_size": 6, "halo_size": 3}
    other = timm.create_model("halo_pico", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, **options)
    changed = small()
    changed.load_state_dict(model.state_dict())
    changed.set_input_size(48, **options)
    torch.testing.assert_close(other.state_dict(), changed.state_dict())
    x = torch.randn(1, 3, 48, 40)
    torch.testing.assert_close(other.eval()(x), changed(x))
    same = small()
    same.load_state_dict(model.state_dict())
    same.set_input_size(64)
    torch.testing.assert_close(same.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": (2, 4)}, "num_heads must have one entry per stage, 3; got 2"),
        ({"conv_stages": 4}, "conv_stages must be from 0 to the number of stages, 3; got 4"),
        ({"stem": "pool"}, "stem must be 'conv', 'patch', 'small' or 'deep'; got 'pool'"),
        ({"num_heads": (3, 4, 8)}, "num_heads must divide dim; got dim 32 and num_heads 3"),
    ],
)
def test_bad_configurations_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("halo_pico", **options)


def test_network_compiles_without_graph_breaks() -> None:
    model = small()
    x = torch.randn(2, 3, 36, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
