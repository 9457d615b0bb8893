"""DCAL against its paper, plain forms, and the timm models that it builds on."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import model_entrypoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import visionattn  # registers the models  # noqa: F401
from visionattn.layers.dual_cross_attention import DualCrossBlock, GlobalLocalCrossAttention
from visionattn.models import DcalVisionTransformer

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
VIT = {**SMALL, "num_classes": 5}
SWIN: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 8,
    "num_classes": 5,
    "drop_path_rate": 0.0,
    "depths": (2, 2, 1, 1),
    "num_heads": (1, 2, 2, 2),
}
VITS = sorted(set(timm.list_models("dcal_*")) - set(timm.list_models("dcal_swin*")))
SWINS = timm.list_models("dcal_swin*")
BACKBONES = [name for name in (*VITS, *SWINS) if "_nano" not in name and "_pico" not in name]  # those of timm
PAIR = torch.tensor([1, 2, 0])
EXACT = {"atol": 1e-10, "rtol": 1e-10}


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model("dcal_vit_pico", **{**VIT, **options})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def images(count: int = 3, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def cost(model: nn.Module, size: int) -> tuple[int, int, int]:
    """Parameters, FLOPs of a forward, and those among them of linear layers."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    by_operator = counter.get_flop_counts()["Global"]
    linear = by_operator[torch.ops.aten.addmm]
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops(), linear


# The paper


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_cost_over_the_backbone(size: str) -> None:
    # 8 to 9% more parameters and 2 to 3% more operations in linear layers, of 784 patches and 200 birds. Counting the
    # products of attention, too, which grow with the backbone, it is less.
    options: dict[str, Any] = {"img_size": 448, "num_classes": 200, "device": "meta"}
    plain = cost(timm.create_model(f"deit_{size}_patch16_224", **options).eval(), 448)
    model = timm.create_model(f"dcal_deit_{size}_patch16_224", glca_pool="avg", **options).eval()
    params, flops, linear = cost(model, 448)
    assert 1.08 < params / plain[0] < 1.09
    assert 1.02 < linear / plain[2] < 1.03
    assert 1.015 < flops / plain[1] < 1.02
    # Pair-wise attention is for training, and self-attention alone costs what the backbone does.
    without = timm.create_model(f"dcal_deit_{size}_patch16_224", glca_pool="avg", pwca=False, **options).eval()
    assert cost(without, 448) == (params, flops, linear)
    model.set_inference("sa")
    assert cost(model, 448)[1:] == plain[1:]
    # The class token alone is answered for less.
    token = timm.create_model(f"dcal_deit_{size}_patch16_224", **options).eval()
    assert 1.005 < cost(token, 448)[1] / plain[1] < 1.015


@pytest.mark.parametrize("glca_pool", ["token", "avg"])
def test_glca_is_fed_by_the_block_before_the_last_and_keeps_the_class_token(glca_pool: str) -> None:
    model = vit(glca_pool=glca_pool, glca_ratio=0.2).eval()
    outputs: list[Tensor] = []
    seen: dict[str, Tensor] = {}
    original = DualCrossBlock.forward_parts

    def forward_parts(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        outputs.append(found[0])
        return found

    def forward_selected(self: Any, selected: Tensor, x: Tensor) -> Tensor:
        seen.update(selected=selected, x=x)
        return selected

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(DualCrossBlock, "forward_parts", forward_parts)
        patch.setattr(DualCrossBlock, "forward_selected", forward_selected)
        model(images())
    assert len(outputs) == 4
    assert torch.equal(seen["x"], outputs[2])
    assert torch.equal(seen["selected"][:, 0], outputs[2][:, 0])
    _, chosen = model.rollout_maps(images())
    assert seen["selected"].shape[1] == (4 if glca_pool == "avg" else 1)
    for row, places, tokens in zip(seen["selected"], chosen, outputs[2], strict=True):
        assert torch.equal(row[1:], tokens[1 + places] if glca_pool == "avg" else row[1:])


def test_rollout_is_that_of_the_models_own_blocks() -> None:
    model = vit(glca_pool="avg").double().eval()
    x, found = images(dtype=torch.float64), []
    tokens = model._embed(x)
    for block in model.blocks[:-1]:
        q, k, _ = block.attn.qkv(block.norm1(tokens)).view(3, 17, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
        found.append((q @ k.mT / 8**0.5).softmax(-1).mean(1))
        tokens = block(tokens)
    eye = torch.eye(17, dtype=torch.float64)
    product = (0.5 * found[2] + 0.5 * eye) @ (0.5 * found[1] + 0.5 * eye) @ (0.5 * found[0] + 0.5 * eye)
    rollout, _ = model.rollout_maps(x)
    torch.testing.assert_close(rollout, product[:, 0, 1:], **EXACT)
    assert model.grid == (4, 4)


@pytest.mark.parametrize("source", ["sa", "pwca"])
def test_pair_wise_attention_is_in_every_block_and_both_images_go_along(source: str) -> None:
    model = vit(pair_source=source).double()
    x = images(dtype=torch.float64)
    own = paired = model._embed(x)
    for block in model.blocks:

        def project(tokens: Tensor, block: Any = block) -> tuple[Tensor, ...]:
            return block.attn.qkv(block.norm1(tokens)).view(3, 17, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)

        q, k, v = project(paired)
        _, k2, v2 = project(own if source == "sa" else paired)
        keys, values = torch.cat([k, k2[PAIR]], dim=2), torch.cat([v, v2[PAIR]], dim=2)
        attended = (q @ keys.mT / 8**0.5).softmax(-1) @ values
        paired = paired + block.attn.proj(attended.transpose(1, 2).reshape(3, 17, 24))
        paired = paired + block.mlp(block.norm2(paired))
        own = block(own)
    branches = model.forward_branches(x, PAIR)
    torch.testing.assert_close(branches["pwca"].features, model.norm(paired)[:, 0], **EXACT)
    torch.testing.assert_close(branches["pwca"].logits, model.head(model.norm(paired)[:, 0]), **EXACT)
    torch.testing.assert_close(branches["sa"].features, model.norm(own)[:, 0], **EXACT)


def test_pair_wise_attention_without_the_other_image_is_self_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model, original = vit().double(), F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> Tensor:
        own = q.shape[2] if k.shape[2] == 2 * q.shape[2] else k.shape[2]
        return original(q, k[:, :, :own], v[:, :, :own], *args)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    branches = model.forward_branches(images(dtype=torch.float64), PAIR)
    torch.testing.assert_close(branches["pwca"], branches["sa"], **EXACT)


def test_swin_pairs_of_an_image_with_itself_are_self_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("dcal_swin_tiny_patch4_window7_224", **SWIN).double()
    x = images(dtype=torch.float64)
    branches = model.forward_branches(x, PAIR)
    torch.testing.assert_close(branches["sa"].logits, model(x), **EXACT)
    assert (branches["pwca"].logits - branches["sa"].logits).abs().max() > 1e-3
    original = F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
        own = q.shape[2]
        return original(q, k[:, :, :own], v[:, :, :own], bias[..., :own], dropout)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    branches = model.forward_branches(x, PAIR)
    torch.testing.assert_close(branches["pwca"], branches["sa"], **EXACT)


# Weights


@pytest.mark.parametrize("name", BACKBONES)
def test_pretrained_weights_are_intact_after_construction(name: str, tmp_path: Path) -> None:
    backbone = name.removeprefix("dcal_")
    if "swin" in name:
        small: dict[str, Any] = SWIN
    else:
        small = {"depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5, "img_size": 64}
    torch.manual_seed(1)
    plain = timm.create_model(backbone, **small).eval()
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5, "custom_load": False}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **small).eval()
    state = model.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(state[key], value), key
    x = images(size=small["img_size"])
    if "swin" not in name:
        # What is not in the weights begins as what stands beside it.
        assert torch.equal(model.glca.block.mlp.fc1.weight, plain.blocks[-1].mlp.fc1.weight)
        assert torch.equal(model.glca_head.weight, plain.head.weight)
        torch.testing.assert_close(model(x).softmax(-1), plain(x).softmax(-1))
        model.set_inference("sa")
    torch.testing.assert_close(model(x), plain(x))


def test_weights_with_glca_keep_it_and_another_head_is_new(tmp_path: Path) -> None:
    model = vit()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5}
    again = timm.create_model("dcal_vit_pico", pretrained=True, pretrained_cfg_overlay=overlay, **VIT)
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    other = timm.create_model(
        "dcal_vit_pico", pretrained=True, pretrained_cfg_overlay=overlay, **{**VIT, "num_classes": 7}
    )
    torch.testing.assert_close(other.glca.state_dict(), model.glca.state_dict())
    assert (other.head.out_features, other.glca_head.out_features) == (7, 7)


def test_tags_of_timms_backbones_are_all_registered() -> None:
    for name in BACKBONES:
        tags = {tag.partition(".")[2] for tag in timm.list_pretrained(name.removeprefix("dcal_") + ".*")}
        assert tags
        assert {tag.partition(".")[2] for tag in timm.list_pretrained(name + ".*")} == tags


# Branches


@pytest.mark.parametrize("glca_pool", ["token", "avg"])
def test_inference_takes_self_attention_and_glca_together_or_the_former(glca_pool: str) -> None:
    model = vit(glca_pool=glca_pool).eval()
    x = images()
    branches = model.forward_branches(x)
    assert list(branches) == ["sa", "glca"]
    probabilities = [branch.logits.softmax(-1) for branch in branches.values()]
    torch.testing.assert_close(model(x).softmax(-1), (probabilities[0] + probabilities[1]) / 2)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(features, torch.cat([branch.features for branch in branches.values()], dim=1))
    model.set_inference("sa")
    torch.testing.assert_close(model(x), branches["sa"].logits)
    assert (
        model.forward_head(model.forward_features(x), pre_logits=True).shape == (3, model.head_hidden_size) == (3, 24)
    )


def test_branches_can_be_left_out() -> None:
    x = images()
    assert list(vit(glca=False).forward_branches(x, PAIR)) == ["sa", "pwca"]
    assert list(vit(pwca=False).forward_branches(x, PAIR)) == ["sa", "glca"]
    model = vit(glca=False, pwca=False).eval()
    assert list(model.forward_branches(x, PAIR)) == ["sa"]
    plain = timm.create_model("vit_tiny_patch16_224", **VIT).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("glca_pool", ["token", "avg"])
def test_parameters_all_receive_a_gradient_with_and_without_recomputing(glca_pool: str) -> None:
    model = vit(glca_pool=glca_pool, drop_path_rate=0.2, attn_drop_rate=0.1)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        sum(branch.logits.square().mean() for branch in model.forward_branches(images(), PAIR).values()).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*grads)


def test_swin_recomputes_pairs() -> None:
    model = timm.create_model("dcal_swin_tiny_patch4_window7_224", **SWIN)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        sum(branch.logits.square().mean() for branch in model.forward_branches(images(), PAIR).values()).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*grads)
    assert list(model.forward_branches(images())) == ["sa"]


@pytest.mark.parametrize("glca_pool", ["token", "avg"])
def test_branches_and_forward_compile_in_one_graph(glca_pool: str) -> None:
    model = vit(glca_pool=glca_pool, depth=2).eval()
    x = images()
    compiled = torch.compile(model.forward_branches, fullgraph=True, backend="eager")
    expected = model.forward_branches(x, PAIR)
    for name, branch in compiled(x, PAIR).items():
        torch.testing.assert_close(branch.logits, expected[name].logits)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_bfloat16_autocast_selects_the_same_patches() -> None:
    model = vit(glca_pool="avg", glca_ratio=0.25).eval()
    with torch.autocast("cpu", torch.bfloat16):
        rollout, _ = model.rollout_maps(images())
        loss = sum(branch.logits.float().square().mean() for branch in model.forward_branches(images(), PAIR).values())
    torch.testing.assert_close(rollout.float(), model.rollout_maps(images())[0], atol=5e-3, rtol=0.05)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# timm's contract, for models of tokens


@pytest.mark.parametrize("name", [*VITS, *SWINS])
def test_config_is_true(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        cfg = model.pretrained_cfg
        logits = model(torch.empty(1, *cfg["input_size"]))
    assert logits.shape == (1, model.num_classes or model.head_hidden_size)
    assert model.get_submodule(cfg["first_conv"]).weight.shape[1] == cfg["input_size"][0]
    given, heads = cfg["classifier"], model.get_classifier()
    names, heads = ((given,), (heads,)) if isinstance(given, str) else (given, heads)
    assert all(model.get_submodule(name) is head for name, head in zip(names, heads, strict=True))
    assert cfg["license"]
    assert model_entrypoint(name).__doc__


@pytest.mark.parametrize("glca", [True, False])
def test_classifier_can_change(glca: bool) -> None:
    model = vit(glca=glca).eval().double()
    x = images(dtype=torch.float64)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (3, model.head_hidden_size)
    model.reset_classifier(7)
    assert model(x).shape == (3, 7)
    heads = model.get_classifier() if glca else (model.get_classifier(),)
    assert {(head.weight.dtype, head.out_features, head.training) for head in heads} == {(torch.float64, 7, False)}
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), model.forward_features(x))


@pytest.mark.parametrize("glca_pool", ["token", "avg"])
def test_intermediates_end_in_the_features(glca_pool: str) -> None:
    model = vit(glca_pool=glca_pool, reg_tokens=2).eval()
    x = images()
    plain = timm.create_model("vit_tiny_patch16_224", **VIT, reg_tokens=2).eval()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("glca")})
    for options in ({}, {"norm": True}, {"indices": [1]}, {"indices": 2, "output_fmt": "NLC"}):
        features, levels = model.forward_intermediates(x, **options)
        torch.testing.assert_close(features, model.forward_features(x))
        torch.testing.assert_close(levels, plain.forward_intermediates(x, **options)[1])
    both = {"return_prefix_tokens": True, "intermediates_only": True, "indices": [0], "stop_early": True}
    torch.testing.assert_close(model.forward_intermediates(x, **both), plain.forward_intermediates(x, **both))
    early = model.forward_intermediates(x, indices=[1], stop_early=True)[0]
    torch.testing.assert_close(early, plain.forward_intermediates(x, indices=[1], stop_early=True)[0])
    with pytest.raises(ValueError, match="output_fmt must be NCHW or NLC; got 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_pruned_and_features_only() -> None:
    model = vit().eval()
    x = images()
    level = model.forward_intermediates(x, indices=[1], intermediates_only=True, norm=True, output_fmt="NLC")[0]
    assert model.prune_intermediate_layers([1]) == [1]
    torch.testing.assert_close(model.forward_features(x)[:, 1:], level)
    assert (model.glca, model.branch_names) == (None, ["sa", "pwca"])
    with pytest.raises(ValueError, match="no GLCA to combine with"):
        model.set_inference("combined")
    with pytest.raises(ValueError, match="no GLCA that would select"):
        model.rollout_maps(x)
    maps = timm.create_model("dcal_vit_pico", features_only=True, **SMALL, out_indices=(1, 3))(x)
    assert [tuple(m.shape) for m in maps] == [(3, 24, 4, 4)] * 2


@pytest.mark.parametrize("options", [{"glca_pool": "avg"}, {"glca_pool": "token"}, {"glca": False}], ids=str)
def test_fx_graph_gives_the_same(options: dict[str, Any]) -> None:
    from timm.models._features_fx import GraphExtractNet

    model = vit(**options).eval()
    x = images()
    with torch.no_grad():
        traced = GraphExtractNet(model, ["head"], squeeze_out=True)
        torch.testing.assert_close(traced(x), model.forward_branches(x)["sa"].logits)


def test_layer_decay_has_glca_beside_the_last_block() -> None:
    from timm.optim import create_optimizer_v2

    model = vit()
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5).param_groups
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.glca.block.mlp.fc1.weight)] == scale[id(model.blocks[3].mlp.fc1.weight)] == 0.5
    assert scale[id(model.glca_head.weight)] == scale[id(model.head.weight)] == 1
    assert scale[id(model.blocks[0].mlp.fc1.weight)] == 0.5**4


@pytest.mark.parametrize("name", [*VITS, *SWINS])
def test_meta_device_and_dtype_reach_every_tensor(name: str) -> None:
    model = timm.create_model(name, device=torch.device("meta"), dtype=torch.bfloat16)
    tensors = [x for x in (*model.parameters(), *model.buffers()) if x.is_floating_point()]
    # timm's Swin keeps its masks in the default type.
    masks = {id(x) for name, x in model.named_buffers() if name.endswith("attn_mask")}
    assert {(x.device.type, x.dtype) for x in tensors if id(x) not in masks} == {("meta", torch.bfloat16)}


def test_another_input_size_and_other_channels() -> None:
    model = vit(in_chans=1, glca_pool="avg").eval()
    model.set_input_size((48, 24))
    assert model(torch.randn(2, 1, 48, 24)).shape == (2, 5)
    assert model.grid == (6, 3)
    dynamic = vit(dynamic_img_size=True, glca_pool="avg").eval()
    assert dynamic(torch.randn(2, 3, 64, 40)).shape == (2, 5)


def test_hub_folder_round_trip(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    model = vit().eval()
    save_for_hf(model, tmp_path, model_args=VIT, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(loaded(images()), model(images()))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"global_pool": "avg"}, ValueError, "class tokens: global_pool must be 'token' or '', got 'avg'"),
        ({"pair_source": "ga"}, ValueError, "pair_source must be sa or pwca, got 'ga'"),
        ({"depth": 1}, ValueError, "needs one before it: depth is 1"),
        ({"glca_ratio": 2}, ValueError, r"glca_ratio must lie in \(0, 1\], got 2"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vit(**options)
    assert isinstance(vit(), DcalVisionTransformer)
    assert isinstance(vit().glca, GlobalLocalCrossAttention)
