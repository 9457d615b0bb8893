"""Requirements of timm on a model, for every model that is registered here."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import is_model
from torch import Tensor, nn

import visionattn  # registers the models
from tests import zoo
from visionattn.layers.precision import AtLeastSingle
from visionattn.models.backbone import take_indices

ALL_MODELS = [x for x in timm.list_models() if timm.models.model_entrypoint(x).__module__.startswith("visionattn.")]
# Models of tokens, not of maps, and controls of timm's classes have tests of their own.
OTHERS = ("dcal_", "vit_", "slot_vit_", "resnet")
MODELS = sorted(x for x in ALL_MODELS if not x.startswith(OTHERS))
# What runs, one per kind: plain, stem with batch norms, dilation, layer scale; halo attention, a final layer, early
# convolutions, patches; models of images of one size; plain convolutions.
NATS = ("nat_pico", "nat_pico_stem", "dinat_pico", "nat_mini", "nat_base", "dinat_mini", "dinat_s_tiny")
ISOTROPIC = (
    "dinat_isotropic_small",
    "vitrpb_small",
    "vittt_tiny",
    *sorted(name for name in MODELS if name.startswith("iso_")),
)
HALOS = ("halo_pico", "halo_h0", "halo_h4", "halo_h4_conv12", "halo_h4_base128_patch4")
FIXED = ("terminator_pico",)
PLAIN = ("slot_cnn_pico",)
KINDS = (*NATS, *ISOTROPIC, *HALOS, *FIXED, *PLAIN)
NARROW: dict[str, Any] = {"embed_dim": 32, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8)}
NARROW_ISOTROPIC: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2}
NARROW_TERMINATOR: dict[str, Any] = {"embed_dims": (12, 24, 12), "slow_depths": (3, 2, 2)}
NARROW_CNN: dict[str, Any] = {"embed_dims": (8, 8, 8, 8)}
each_model = pytest.mark.parametrize("name", MODELS)
each_kind = pytest.mark.parametrize("name", KINDS)
each_kind_of_any_size = pytest.mark.parametrize("name", [name for name in KINDS if name not in FIXED])


def create(name: str, **options: Any) -> nn.Module:
    """The model with few narrow blocks, so that a test takes milliseconds; small ones as they are."""
    if name.startswith("terminator"):
        narrow = NARROW_TERMINATOR if "1d" in name else {"img_size": 64, **NARROW_TERMINATOR}
    elif name.startswith("slot_cnn"):
        narrow = NARROW_CNN
    else:
        isotropic = name.startswith(("iso_", "vitrpb_", "vittt_")) or "isotropic" in name
        narrow = NARROW_ISOTROPIC if isotropic else NARROW
        if name.endswith("local_linear"):  # each step of its solver is two attentions
            narrow = {**narrow, "mixer_kwargs": {"steps": 1}}
    model = timm.create_model(name, **({} if "_pico" in name and name not in FIXED else narrow), **options)
    for module in model.modules():
        if (
            isinstance(module, nn.BatchNorm2d) and module.affine
        ):  # a branch that starts at zero would hide what it computes
            nn.init.ones_(module.weight)
    return model


def image(model: nn.Module, batch: int = 2, size: int = 64) -> Tensor:
    cfg = model.pretrained_cfg
    return torch.randn(batch, cfg["input_size"][0], *(model.img_size if cfg.get("fixed_input_size") else (size, size)))


def test_models_are_registered_under_names_of_their_own() -> None:
    assert {"nat_pico", "nat_mini", "nat_base", "dinat_mini", "dinat_large"} <= set(MODELS)
    assert set(timm.list_models("nat_*")) == {name for name in MODELS if name.startswith("nat_")}
    timm_files = {path.stem for path in Path(timm.models.__path__[0]).glob("*.py")}
    own_files = {path.stem for path in Path(visionattn.models.__path__[0]).glob("*.py")} - {"__init__"}
    assert not own_files & timm_files


@each_model
def test_config_is_true(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        cfg = model.pretrained_cfg
        features = model.forward_features(torch.empty(1, *cfg["input_size"]))
    assert tuple(features.shape[-2:]) == tuple(cfg["pool_size"])
    assert features.shape[1] == model.num_features
    assert model.num_classes == cfg["num_classes"]
    assert model.get_submodule(cfg["first_conv"]).weight.shape[1] == cfg["input_size"][0]
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert cfg["license"]
    assert {cfg["interpolation"]} <= {"bicubic", "bilinear"}
    for entry in model.feature_info:
        assert model.get_submodule(entry["module"]) is not None
    assert len(model.feature_info) >= 3
    zoo.check_size(name, model)


@pytest.mark.parametrize("name", sorted({*ALL_MODELS} - {*MODELS}))
def test_zoo_has_the_sizes_of_the_others(name: str) -> None:
    with torch.device("meta"):
        zoo.check_size(name, timm.create_model(name))


@pytest.mark.parametrize("name", [name for name in ALL_MODELS if "_pico" in name or "_nano" in name])
def test_config_gives_the_number_of_classes(name: str) -> None:
    """The folder of a hub states it there."""
    with torch.device("meta"):
        assert timm.create_model(name, pretrained_cfg_overlay={"num_classes": 7}).num_classes == 7


@each_kind
def test_parameters_all_receive_a_gradient(name: str) -> None:
    model = create(name, num_classes=5, **({} if name in FIXED + PLAIN else {"drop_path_rate": 0.0}))
    logits = model(image(model, size=40))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@each_kind_of_any_size
@pytest.mark.parametrize("size", [(32, 32), (33, 70), (96, 41)], ids=str)
def test_any_size_from_32_up(name: str, size: tuple[int, int]) -> None:
    model = create(name, num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, *size)).isfinite().all()


@each_kind
def test_images_do_not_depend_on_their_batch(name: str) -> None:
    model = create(name).eval()
    x = image(model, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["nat_pico", "halo_pico", "slot_cnn_pico"])
def test_weights_can_be_mapped_over(name: str) -> None:
    models = [create(name).eval() for _ in range(2)]
    x = image(models[0], size=32)
    states = [model.state_dict() for model in models]
    stacked = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    with torch.no_grad():
        mapped = torch.vmap(lambda state: torch.func.functional_call(models[0], state, (x,)))(stacked)
        torch.testing.assert_close(mapped, torch.stack([model(x) for model in models]), rtol=1e-3, atol=1e-4)


@each_kind
def test_classifier_and_pooling_can_change(name: str) -> None:
    model = create(name).eval()
    x = image(model)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    assert model(x).shape == model.forward_features(x).shape
    bare = create(name, num_classes=0, global_pool="")
    assert bare(x).shape == model(x).shape


@each_kind
def test_intermediates_end_in_the_features(name: str) -> None:
    model = create(name).eval()
    x = image(model)
    features, levels = model.forward_intermediates(x)
    torch.testing.assert_close(features, model.forward_features(x))
    assert [(f.shape[1], 64 // f.shape[2]) for f in levels] == [
        (i["num_chs"], i["reduction"]) for i in model.feature_info
    ]
    normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
    torch.testing.assert_close(normed, [features])
    early = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True, output_fmt="NHWC")
    torch.testing.assert_close(early[0].permute(0, 3, 1, 2), levels[0])
    with pytest.raises(ValueError, match="output_fmt must be NCHW or NHWC; got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


@each_kind
def test_pruned_model_gives_the_level_it_was_pruned_to(name: str) -> None:
    model = create(name).eval()
    x = image(model)
    level = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1]) == [1]
    torch.testing.assert_close(model.forward_features(x), level)
    assert model(x).shape[1] == model.num_features == level.shape[1]


@each_kind
def test_features_only(name: str) -> None:
    model = create(name, features_only=True)
    x = torch.randn(1, 3, 64, 64)
    shapes = [(f.shape[1], 64 // f.shape[2]) for f in model(x)]
    assert shapes == list(zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True))
    last = create(name, features_only=True, out_indices=[-1])(x)
    assert [f.shape[1] for f in last] == [shapes[-1][0]]


@each_kind
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    model = create(name, num_classes=3)
    x = image(model, size=32)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        model(x).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*grads)


@each_kind
def test_fx_graph_gives_the_same(name: str) -> None:
    from timm.models._features_fx import create_feature_extractor

    model = create(name).eval()
    x = image(model, 1)
    expected = model(x)
    traced = create_feature_extractor(model, ["head"])
    torch.testing.assert_close(traced(x)["head"], expected)


@each_model
def test_unknown_arguments_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        create(name, no_such_option=1)


@each_model
def test_layer_decay_and_weight_decay_groups(name: str) -> None:
    from timm.optim import create_optimizer_v2

    model = create(name)
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5).param_groups
    assert len({group["lr_scale"] for group in groups}) > 3
    assert max(group["lr_scale"] for group in groups) == 1.0
    names = ("rpb", "height_rel", "width_rel", "filters.weight", "tap_bias", "position_bias")
    tables = {id(p) for n, p in model.named_parameters() if n.endswith(names)}
    decayed = {id(p) for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    assert tables or name.startswith(("slot_cnn", "iso_nano_", "vittt_"))
    assert not tables & decayed


@each_kind
def test_model_takes_other_channels_and_classes(name: str) -> None:
    model = create(name, in_chans=1, num_classes=10)
    assert model(image(model)[:, :1]).shape == (2, 10)


@each_model
def test_meta_device_and_dtype_reach_every_tensor(name: str) -> None:
    model = create(name, device=torch.device("meta"), dtype=torch.bfloat16)
    exact = {id(x) for m in model.modules() if isinstance(m, AtLeastSingle) for x in (*m.parameters(), *m.buffers())}
    tensors = [x for x in (*model.parameters(), *model.buffers()) if x.is_floating_point() and id(x) not in exact]
    assert {(x.device.type, x.dtype) for x in tensors} == {("meta", torch.bfloat16)}


@each_kind
def test_new_classifier_has_device_and_dtype_of_the_model(name: str) -> None:
    model = create(name, global_pool="max").eval().to(torch.float64)
    assert model.grad_checkpointing is False
    model.reset_classifier(0)
    model.reset_classifier(3)
    fresh = model.get_classifier()
    assert (fresh.weight.dtype, fresh.weight.device) == (torch.float64, torch.device("cpu"))
    assert not any(module.training for module in model.modules())
    x = image(model).double()
    pooled = model.forward_features(x).amax((2, 3))
    torch.testing.assert_close(model(x), fresh(pooled))


@each_kind
def test_frozen_parameters_stay_frozen(name: str) -> None:
    model = create(name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.reset_classifier(3)
    if hasattr(model, "set_input_size"):
        model.set_input_size((96, 96))
    assert {n.partition(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"head"}


def test_hub_folder_round_trip(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    model = create("nat_pico", num_classes=4).eval()
    save_for_hf(model, tmp_path, model_config={"num_classes": 4}, safe_serialization=True)
    assert (tmp_path / "model.safetensors").exists()
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = image(model)
    torch.testing.assert_close(loaded(x), model(x))


def test_checkpoint_file_with_another_head(tmp_path: Path) -> None:
    model = create("nat_pico", num_classes=4)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    same = timm.create_model("nat_pico", num_classes=4, checkpoint_path=str(tmp_path / "weights.pth"))
    torch.testing.assert_close(same.state_dict(), model.state_dict())
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 4}
    new_head = timm.create_model("nat_pico", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=6)
    torch.testing.assert_close(new_head.levels.state_dict(), model.levels.state_dict())
    assert new_head(image(model)).shape == (2, 6)


def test_bfloat16_autocast_and_training_in_channels_last() -> None:
    model = create("nat_pico", num_classes=4).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(image(model).to(memory_format=torch.channels_last)).float().logsumexp(1).mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_registered_names_are_known_to_timm() -> None:
    assert all(is_model(name) for name in MODELS)


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("nat_pico", {"depths": (1, 1), "num_heads": (2, 4)}),
        ("halo_pico", {"depths": (1, 1), "num_heads": (2, 4)}),
        ("terminator_pico", {"embed_dims": (12, 24), "slow_depths": (2, 2)}),
    ],
)
def test_features_only_of_fewer_levels(name: str, arch: dict[str, Any]) -> None:
    assert len(timm.create_model(name, features_only=True, **arch)(torch.randn(1, 3, 32, 32))) == 2


@pytest.mark.parametrize(
    ("indices", "expected"),
    [(None, ([0, 1, 2, 3], 3)), (1, ([3], 3)), (3, ([1, 2, 3], 3)), ([2, -4], ([2, 0], 2))],
    ids=str,
)
def test_take_indices_resolves_indices_as_timm_does(indices: Any, expected: tuple[list[int], int]) -> None:
    assert take_indices(4, indices) == expected


@pytest.mark.parametrize("indices", [0, -1, 5, [], [4], [-5]], ids=str)
def test_take_indices_refuses_positions_outside_the_stack(indices: Any) -> None:
    with pytest.raises(ValueError, match="indices must name some of 4 modules"):
        take_indices(4, indices)
