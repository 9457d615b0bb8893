"""Cut heads: a smaller network that computes what the whole one does with these heads masked."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from visionattn.analysis.heads import HeadLayer, change_heads, head_layers, replace_heads
from visionattn.errors import UserError
from visionattn.models.cut_heads import HeadlessAttention, cut_heads
from visionattn.training import create_model

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
SWIN: dict[str, Any] = {
    "img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (3, 3),
    "num_classes": 5,
}  # fmt: skip
ISO: dict[str, Any] = {"num_classes": 5, "embed_dim": 48, "depth": 2, "num_heads": 3}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_nano": ("vit_nano_patch4_32", {}),
    "ViT, qk_norm, LayerScale, no bias": (
        "vit_tiny_patch16_224",
        {**VIT, "qk_norm": True, "init_values": 0.3, "qkv_bias": False, "proj_bias": False},
    ),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "ViT, registers": ("vit_small_patch14_reg4_dinov2", VIT),
    "BEiT": ("beit_base_patch16_224", VIT),
    "EVA, separate projections, rotary": ("eva02_base_patch14_224", VIT | {"embed_dim": 48, "depth": 2}),
    "DINOv3": ("vit_small_patch16_dinov3_qkvb", VIT | {"embed_dim": 48}),
    "relative positions, MLP": ("vit_relpos_small_patch16_224", VIT),
    "relative positions, table": ("vit_relpos_small_patch16_224", {**VIT, "rel_pos_type": "bias"}),
    "rotary": ("vit_small_patch16_rope_224", VIT | {"embed_dim": 48}),
    "Swin": ("swin_tiny_patch4_window7_224", SWIN),
    "Swin v2": ("swinv2_tiny_window8_256", SWIN),
    "NAT": ("nat_pico", {"num_classes": 5}),
    "full": ("iso_nano_full", ISO),
    "core": ("iso_nano_core", ISO),
    "power": ("iso_nano_power", ISO),
    "parallax": ("iso_nano_parallax", ISO),
    "local_linear": ("iso_nano_local_linear", ISO),
    "blocks": ("iso_nano_blocks", ISO),
    "taylor": ("iso_nano_taylor", ISO),
    "DCAL": ("dcal_vit_nano", {"num_classes": 5}),
    "DCAL, Swin": ("dcal_swin_tiny_patch4_window7_224", SWIN),
}


def build(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Return a network with random weights, also of biases and scales, in evaluation mode."""
    model = create_model(name, **options).to(dtype).eval()
    for key, parameter in model.named_parameters():
        nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in key and key.endswith("weight") else nn.init.normal_(
            parameter, std=0.15
        )
    return model


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(1))


def chosen(layers: list[HeadLayer]) -> dict[HeadLayer, list[int]]:
    """Choose the last head of the first layer, and the others of the last one."""
    first, last = layers[0], layers[-1]
    return {first: [first.num_heads - 1], last: list(range(last.num_heads - 1))}


def masked(model: nn.Module, heads: Mapping[HeadLayer, list[int]], values: Mapping[HeadLayer, Any]) -> Tensor:
    edits = {layer: replace_heads(numbers, values.get(layer, 0.0)) for layer, numbers in heads.items()}
    with change_heads(edits), torch.no_grad():
        return model(images(next(model.parameters()).dtype))


def named(values: Mapping[HeadLayer, Any]) -> dict[str, Any]:
    return {layer.name: value for layer, value in values.items()}


def means(layers: list[HeadLayer]) -> dict[HeadLayer, Tensor]:
    return {
        layer: torch.randn(layer.num_heads, layer.module.proj.in_features // layer.num_heads).double()
        for layer in layers
    }


@pytest.mark.parametrize(("name", "options"), NETWORKS.values(), ids=NETWORKS.keys())
def test_cut_network_computes_what_masked_heads_do(name: str, options: dict[str, Any]) -> None:
    model = build(name, **options)
    layers = head_layers(model)
    heads, values = chosen(layers), means(layers)
    whole = masked(model, {}, {})
    for constants in ({}, values):
        expected = masked(model, heads, constants)
        cut = cut_heads(copy.deepcopy(model), named(heads), named(constants))
        with torch.no_grad():
            torch.testing.assert_close(cut(images()), expected, atol=1e-12, rtol=1e-12)
        assert (expected - whole).abs().max() > 1e-3
    assert count(cut) < count(model)


@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "nat_pico"])
def test_single_precision_agrees_closely(name: str) -> None:
    model = build(name, torch.float32)
    layers = head_layers(model)
    heads, values = chosen(layers), means(layers)
    expected = masked(model, heads, values)
    cut = cut_heads(copy.deepcopy(model), named(heads), named(values))
    torch.testing.assert_close(cut(images(torch.float32)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "options"), NETWORKS.values(), ids=NETWORKS.keys())
def test_arguments_rebuild_the_network_and_it_trains(name: str, options: dict[str, Any]) -> None:
    heads = named(chosen(head_layers(create_model(name, **options))))
    cut = cut_heads(build(name, torch.float32, **options), heads)
    rebuilt: Any = create_model(name, cut_heads=heads, **options)
    rebuilt.load_state_dict(cut.state_dict())
    assert torch.equal(rebuilt.eval()(images(torch.float32)), cut(images(torch.float32)))
    rebuilt.train()(images(torch.float32)).sum().backward()
    attention = head_layers(rebuilt)[-1].module
    assert attention.num_heads == 1
    assert attention.proj.weight.grad.shape == attention.proj.weight.shape


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_are_those_of_the_heads_that_are_left() -> None:
    model: Any = create_model("vit_nano_patch4_32")
    cut = cut_heads(copy.deepcopy(model), {"blocks.3": [1], "blocks.5": [0, 2]})
    assert count(model) - count(cut) == 3 * (4 * 96 * 32 + 3 * 32)
    kept = [*range(32), *range(64, 96)]
    rows = [part * 96 + place for part in range(3) for place in kept]
    attention: Any = cut.get_submodule("blocks.3.attn")
    whole = model.blocks[3].attn
    assert torch.equal(attention.qkv.weight, whole.qkv.weight[rows])
    assert torch.equal(attention.qkv.bias, whole.qkv.bias[rows])
    assert torch.equal(attention.proj.weight, whole.proj.weight[:, kept])
    assert (attention.qkv.out_features, attention.proj.in_features, attention.attn_dim) == (192, 64, 64)


@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "nat_pico"])
def test_heads_cut_one_after_the_other_are_those_cut_at_once(name: str) -> None:
    model = build(name)
    last = head_layers(model)[-1]
    once = cut_heads(copy.deepcopy(model), {last.name: [0, 2]})
    twice = cut_heads(cut_heads(copy.deepcopy(model), {last.name: [2]}), {last.name: [0]})
    assert all(torch.equal(value, twice.state_dict()[key]) for key, value in once.state_dict().items())


@pytest.mark.parametrize("network", ["vit_nano", "BEiT", "relative positions, MLP", "Swin", "Swin v2", "NAT"])
def test_attention_without_heads_is_the_bias_of_its_projection(network: str) -> None:
    name, options = NETWORKS[network]
    model = build(name, **options)
    layers = head_layers(model)
    layer = layers[1]
    everything, values = {layer: list(range(layer.num_heads))}, means([layer])
    expected = masked(model, everything, values)
    cut: Any = cut_heads(copy.deepcopy(model), named(everything), named(values))
    with torch.no_grad():
        out = cut(images())
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    assert not out.requires_grad
    assert isinstance(cut.get_submodule(f"{layer.name}.attn"), HeadlessAttention)
    assert [left.name for left in head_layers(cut)] == [other.name for other in layers if other is not layer]
    if hasattr(cut, "set_input_size") and network != "vit_nano":
        cut.set_input_size(img_size=(64, 64))
        assert cut(images().repeat(1, 1, 2, 2)).shape == (2, 5)


def test_attention_without_heads_keeps_half_precision_and_takes_a_mask() -> None:
    attention = nn.Module()
    attention.proj, attention.proj_drop = nn.Linear(3, 4), nn.Identity()
    out = HeadlessAttention(attention.bfloat16())(torch.randn(2, 5, 4, dtype=torch.bfloat16), attn_mask=None)
    assert torch.equal(out, attention.proj.bias.expand(2, 5, 4))  # type: ignore[operator]


def test_dcal_trains_and_uses_either_inference() -> None:
    model = build("dcal_vit_nano", num_classes=5)
    heads = {head_layers(model)[0]: [0, 1], head_layers(model)[4]: [2]}
    cut: Any = cut_heads(copy.deepcopy(model), named(heads))
    for inference in ("combined", "sa"):
        for network in (model, cut):
            network.set_inference(inference)
        torch.testing.assert_close(cut(images()), masked(model, heads, {}), atol=1e-12, rtol=1e-12)
    branches = cut.train().forward_branches(images(), torch.tensor([1, 0]))
    assert set(branches) == {"sa", "glca", "pwca"}
    sum(branch.logits.sum() for branch in branches.values()).backward()
    with pytest.raises(UserError, match=r"DCAL's rollout wants a head in every layer: leave one of the 1 in blocks\.0"):
        cut_heads(cut, {"blocks.0": [0]})


def test_pairs_of_windows_pass_an_attention_without_heads() -> None:
    model: Any = build(*NETWORKS["DCAL, Swin"][:1], **SWIN)
    layer = head_layers(model)[1]
    everything = {layer: [0, 1, 2]}
    with change_heads({layer: replace_heads([0, 1, 2], 0.0)}):
        expected = model.forward_branches(images(), torch.tensor([1, 0]))["sa"].logits
    cut: Any = cut_heads(model, named(everything))
    found = cut.forward_branches(images(), torch.tensor([1, 0]))
    torch.testing.assert_close(found["sa"].logits, expected, atol=1e-12, rtol=1e-12)
    assert found["pwca"].logits.isfinite().all()


def test_pretrained_weights_are_those_of_the_whole_model() -> None:
    name = "vit_nano_patch4_32.cifar10"
    model = create_model(name, pretrained=True)
    expected = cut_heads(model, {"blocks.2": [0]}).state_dict()
    found = create_model(name, pretrained=True, cut_heads={"blocks.2": [0]}).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


ERRORS: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    "layer": (
        "vit_nano_patch4_32",
        {},
        {"blocks.9": [0]},
        r"no heads to cut in 'blocks\.9'; .* in blocks\.0, blocks\.1",
    ),
    "attention, not its block": (
        "vit_nano_patch4_32",
        {},
        {"blocks.1": [0], "blocks.1.attn": [0]},
        r"no heads to cut in 'blocks\.1\.attn'; the model has them in blocks\.0, blocks\.1",
    ),
    "no attention": ("resnet_pico", {}, {"layer1": [0]}, r"no heads to cut in 'layer1'; timm's ViT.* have such heads"),
    "head": ("vit_nano_patch4_32", {}, {"blocks.1": [0, 3]}, r"no head 3 in blocks\.1, which has heads 0 to 2"),
    "negative": ("vit_nano_patch4_32", {}, {"blocks.1": [-1]}, r"no head -1 in blocks\.1"),
    "number": (
        "vit_nano_patch4_32",
        {},
        {"blocks.1": 1},
        r'lists of heads by block, such as \{"blocks\.3": \[1, 2\]\}',
    ),
    "kind": ("vit_nano_patch4_32", {}, [1], r"cut_heads are lists of heads by block"),
    "HaloNet": ("halo_pico", {}, None, r"HaloNet has no output projection after them; timm's ViT.* allow it"),
    "scale_norm": ("vit_tiny_patch16_224", {**VIT, "scale_attn_norm": True}, {"blocks.0": [0]}, r"all are normalised"),
    "inner norm": (
        "eva02_base_patch14_224",
        {**VIT, "embed_dim": 48, "scale_attn_inner": True},
        {"blocks.0": [0]},
        r"all are normalised together before the output projection",
    ),
    "shared": ("vit_srelpos_small_patch16_224", VIT, {"blocks.0": [0]}, r"share the relative positions of each head"),
    "rotary": ("vit_small_patch16_rope_mixed_224", VIT, {"blocks.0": [0]}, r"rotary positions of its own for each"),
    "power_heads": (
        "iso_nano_power",
        {"mixer_kwargs": {"power_heads": True}},
        {"blocks.0": [0]},
        r"with power_heads they share out the scales",
    ),
    "routing": ("iso_nano_routing", {}, {"blocks.0": [0]}, r"RoutingAttention2d is none of the known kinds"),
}


@pytest.mark.parametrize(("name", "options", "heads", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_impossible_cut_leaves_the_model_as_it_was(
    name: str, options: dict[str, Any], heads: Any, message: str
) -> None:
    model = create_model(name, **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if heads is None:
        heads = {head_layers(model)[0].name: [0]}
    if name == "vit_nano_patch4_32" and isinstance(heads, dict):
        heads = {"blocks.0": [0], **heads}
    with pytest.raises(UserError, match=message) as caught:
        cut_heads(model, heads)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(UserError, match=message):
        create_model(name, cut_heads=heads, **options)


def test_layer_whose_heads_are_all_cut_has_none_left() -> None:
    cut = create_model("vit_nano_patch4_32", cut_heads={"blocks.1": [0, 1, 2]})
    with pytest.raises(UserError, match=r"blocks\.1 has no heads left"):
        cut_heads(cut, {"blocks.1": [0]})
