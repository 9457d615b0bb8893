"""Checkpoints in every published layout, against a forward of that layout written in plain torch.

The layouts are those of the authors' classifiers and detection backbones and of Hugging Face's classes. Each forward
below reads the weights by the names of its layout and gathers a copy of the keys for every query; nothing of the
package takes part in it.
"""

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visionattn  # noqa: F401 (registers the models)
from visionattn.models._nat_checkpoints import checkpoint_filter_fn
from visionattn.models._nat_padding import PADDING

Weights = Mapping[str, Tensor]
PYRAMID: dict[str, Any] = {"embed_dim": 16, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 4, 8), "kernel_size": 3}
DILATIONS = (3, 2, 2, 1)
ISOTROPIC: dict[str, Any] = {"embed_dim": 16, "depth": 3, "num_heads": 2, "kernel_size": 3}


def neighbours(length: int, kernel_size: int, dilation: int) -> Tensor:
    """Per query its nearest keys among those a multiple of the dilation away, `[length, kernel_size]`."""
    rows = []
    for query in range(length):
        group = [key for key in range(length) if (key - query) % dilation == 0]
        rows.append(sorted(sorted(group, key=lambda key: abs(key - query))[:kernel_size]))
    return torch.tensor(rows)


def attend(qkv: Tensor, rpb: Tensor, dilation: int) -> Tensor:
    """Neighborhood attention: `[B, H, W, 3 * dim]` to `[B, H, W, dim]`; the table is read at key - query."""
    heads, size = rpb.shape[0], (rpb.shape[1] + 1) // 2
    height, width = qkv.shape[1:3]
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(3)  # [B, H, W, heads, head_dim]
    rows, columns = neighbours(height, size, dilation), neighbours(width, size, dilation)
    k, v = (x[:, rows[:, None, :, None], columns[None, :, None, :]] for x in (k, v))  # [B, H, W, K, K, heads, head_dim]
    down = (rows - torch.arange(height)[:, None]) // dilation + size - 1
    right = (columns - torch.arange(width)[:, None]) // dilation + size - 1
    bias = rpb[:, down[:, None, :, None], right[None, :, None, :]]  # [heads, H, W, K, K]
    scores = torch.einsum("bhwnd,bhwijnd->bnhwij", q * q.shape[-1] ** -0.5, k) + bias
    probabilities = scores.flatten(-2).softmax(-1).view_as(scores)
    return torch.einsum("bnhwij,bhwijnd->bhwnd", probabilities, v).flatten(-2)


def attend_everywhere(qkv: Tensor, rpb: Tensor, index: Tensor) -> Tensor:
    """Their ViT's attention: the bias of (query, key) stands in the flattened table at the stored index."""
    heads = rpb.shape[0]
    q, k, v = qkv.flatten(1, 2).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, N, head_dim]
    bias = rpb.flatten(1)[:, index]
    out = ((q * q.shape[-1] ** -0.5) @ k.mT + bias).softmax(-1) @ v
    return out.transpose(1, 2).reshape(*qkv.shape[:3], -1)


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def conv(w: Weights, name: str, x: Tensor, stride: int, padding: int) -> Tensor:
    """On `[B, H, W, C]`."""
    x = F.conv2d(x.permute(0, 3, 1, 2), w[f"{name}.weight"], w.get(f"{name}.bias"), stride, padding)
    return x.permute(0, 2, 3, 1)


def authors_block(w: Weights, name: str, x: Tensor, dilation: int) -> Tensor:
    height, width = x.shape[1:3]
    y, rpb = norm(w, f"{name}.norm1", x), w[f"{name}.attn.rpb"]
    if (index := w.get(f"{name}.attn.relative_position_index")) is not None:
        attended = attend_everywhere(linear(w, f"{name}.attn.qkv", y), rpb, index)
    else:
        window = (rpb.shape[1] + 1) // 2 * dilation  # zeros fill a smaller map up, and are attended
        y = F.pad(y, (0, 0, 0, max(0, window - width), 0, max(0, window - height)))
        attended = attend(linear(w, f"{name}.attn.qkv", y), rpb, dilation)[:, :height, :width]
    x = x + w.get(f"{name}.gamma1", 1.0) * linear(w, f"{name}.attn.proj", attended)
    hidden = F.gelu(linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.norm2", x)))
    return x + w.get(f"{name}.gamma2", 1.0) * linear(w, f"{name}.mlp.fc2", hidden)


def authors_pyramid(w: Weights, stack: str, x: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """To the output of the last level, `[B, H, W, C]`, without a norm."""
    x = x.permute(0, 2, 3, 1)
    if stack == "levels":
        x = conv(w, "patch_embed.proj.1", conv(w, "patch_embed.proj.0", x, 2, 1), 2, 1)
    else:
        x = conv(w, "patch_embed.proj", x, 4, 0)
    x = norm(w, "patch_embed.norm", x)
    for level, dilation in enumerate(dilations):
        depth = len({name.split(".")[3] for name in w if name.startswith(f"{stack}.{level}.blocks.")})
        for block in range(depth):
            x = authors_block(w, f"{stack}.{level}.blocks.{block}", x, dilation if block % 2 else 1)
        down = f"{stack}.{level}.downsample"
        if level == len(dilations) - 1:
            break
        if stack == "levels":
            x = norm(w, f"{down}.norm", conv(w, f"{down}.reduction", x, 2, 1))
        else:
            squares = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
            x = linear(w, f"{down}.reduction", norm(w, f"{down}.norm", torch.cat(squares, -1)))
    return x


def nat(w: Weights, x: Tensor, dilations: tuple[int, ...] = (1, 1, 1, 1)) -> Tensor:
    return linear(w, "head", norm(w, "norm", authors_pyramid(w, "levels", x, dilations)).mean((1, 2)))


def dinat(w: Weights, x: Tensor) -> Tensor:
    return nat(w, x, DILATIONS)


def dinat_s(w: Weights, x: Tensor) -> Tensor:
    return linear(w, "head", norm(w, "norm", authors_pyramid(w, "layers", x, DILATIONS)).mean((1, 2)))


def isotropic(w: Weights, x: Tensor, dilation: int = 1) -> Tensor:
    x = norm(w, "patch_embed.norm", conv(w, "patch_embed.proj", x.permute(0, 2, 3, 1), 16, 0))
    for block in range(ISOTROPIC["depth"]):
        x = authors_block(w, f"layers.{block}", x, dilation if block % 2 else 1)
    return linear(w, "head", norm(w, "norm", x).mean((1, 2)))


def dinat_isotropic(w: Weights, x: Tensor) -> Tensor:
    return isotropic(w, x, 2)


def hugging_face(w: Weights, x: Tensor) -> Tensor:
    """`DinatForImageClassification`."""
    x = x.permute(0, 2, 3, 1)
    patches = "dinat.embeddings.patch_embeddings.projection"
    x = norm(w, "dinat.embeddings.norm", conv(w, f"{patches}.1", conv(w, f"{patches}.0", x, 2, 1), 2, 1))
    for level, (depth, dilation) in enumerate(zip(PYRAMID["depths"], DILATIONS, strict=True)):
        stage = f"dinat.encoder.levels.{level}"
        for number in range(depth):
            layer = f"{stage}.layers.{number}"
            scale = w.get(f"{layer}.layer_scale_parameters", torch.ones(2, 1))
            y = norm(w, f"{layer}.layernorm_before", x)
            qkv = torch.cat([linear(w, f"{layer}.attention.self.{part}", y) for part in ("query", "key", "value")], -1)
            y = attend(qkv, w[f"{layer}.attention.self.rpb"], dilation if number % 2 else 1)
            x = x + scale[0] * linear(w, f"{layer}.attention.output.dense", y)
            y = F.gelu(linear(w, f"{layer}.intermediate.dense", norm(w, f"{layer}.layernorm_after", x)))
            x = x + scale[1] * linear(w, f"{layer}.output.dense", y)
        if f"{stage}.downsample.norm.weight" in w:
            x = norm(w, f"{stage}.downsample.norm", conv(w, f"{stage}.downsample.reduction", x, 2, 1))
    return linear(
        w,
        "dinat.classifier" if "dinat.classifier.weight" in w else "classifier",
        norm(w, "dinat.layernorm", x).mean((1, 2)),
    )


def random_weights(name: str, **options: Any) -> dict[str, Tensor]:
    """Weights of every tensor of a model, far from any initialisation."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **options)
    return {
        key: 0.3 * torch.randn_like(value) + (key.endswith("norm.weight")) for key, value in model.state_dict().items()
    }


def to_authors(ours: Weights, stack: str = "levels") -> dict[str, Tensor]:
    """Our names to theirs: a level ends in its downsampling; LayerScale and the classifier are no modules."""
    theirs = {}
    for name, value in ours.items():
        name = re.sub(r"^levels\.(\d+)\.downsample", lambda m: f"levels.{int(m[1]) - 1}.downsample", name)
        name = name.replace("ls1.gamma", "gamma1").replace("ls2.gamma", "gamma2").replace("head.fc", "head")
        theirs[re.sub(r"^(levels|blocks)\.", f"{stack}.", name)] = value
    return theirs


def to_vit(ours: Weights) -> dict[str, Tensor]:
    """With the index that their ViT stores: 4x4 positions, (query - key) turned around on both axes."""
    theirs = to_authors(ours, "layers")
    place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
    offset = place[:, :, None] - place[:, None, :] + 3
    index = torch.flipud(torch.fliplr(offset[0] * 7 + offset[1]))
    for block in range(ISOTROPIC["depth"]):
        theirs[f"layers.{block}.attn.relative_position_index"] = index
    return theirs


def to_detector(ours: Weights) -> dict[str, Tensor]:
    theirs = {name: value for name, value in to_authors(ours).items() if not name.startswith(("norm.", "head."))}
    for level in range(4):
        for part in ("weight", "bias"):
            theirs[f"norm{level}.{part}"] = ours[f"norm.{part}"] if level == 3 else torch.randn(16 * 2**level)
    return theirs


def to_hugging_face(ours: Weights) -> dict[str, Tensor]:
    renamed = {
        "norm1.": "layernorm_before.",
        "norm2.": "layernorm_after.",
        "attn.rpb": "attention.self.rpb",
        "attn.proj.": "attention.output.dense.",
        "mlp.fc1.": "intermediate.dense.",
        "mlp.fc2.": "output.dense.",
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
        "patch_embed.norm.": "embeddings.norm.",
    }
    theirs: dict[str, Tensor] = {}
    for name, value in to_authors(ours).items():
        if name.startswith("head."):
            theirs[name.replace("head", "classifier")] = value
            continue
        if name.startswith("norm."):
            name = f"layer{name}"
        for old, new in renamed.items():
            name = name.replace(old, new)
        name = re.sub(
            r"^levels\.(\d+)\.(blocks\.)?", lambda m: f"encoder.levels.{m[1]}.{'layers.' if m[2] else ''}", name
        )
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs[f"dinat.{name.replace('attn.qkv', f'attention.self.{part}')}"] = third
        elif name.endswith("gamma1"):
            gamma2 = ours[re.sub(r".*levels\.(\d+)\.layers\.(\d+)\.gamma1", r"levels.\1.blocks.\2.ls2.gamma", name)]
            theirs[f"dinat.{name.replace('gamma1', 'layer_scale_parameters')}"] = torch.stack([value, gamma2])
        elif not name.endswith("gamma2"):
            theirs[f"dinat.{name}"] = value
    return theirs


def load(name: str, weights: Mapping[str, Any], folder: Path, **options: Any) -> nn.Module:
    path = folder / "weights.pth"
    torch.save(dict(weights), path)
    overlay = {"file": str(path), "num_classes": 5}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()


def weights_of(model: nn.Module) -> Weights:
    """The state dict without its word on padding."""
    return {name: value for name, value in model.state_dict().items() if name != PADDING}


LAYOUTS: dict[str, tuple[str, dict[str, Any], Callable[[Weights], dict[str, Tensor]], Callable[..., Tensor], int]] = {
    "nat": ("nat_mini", PYRAMID, to_authors, nat, 96),
    "nat-layer-scale": ("nat_base", PYRAMID, to_authors, nat, 96),
    "dinat": ("dinat_mini", {**PYRAMID, "dilations": DILATIONS}, to_authors, dinat, 200),
    "small-maps": ("dinat_mini", {**PYRAMID, "dilations": DILATIONS, "legacy_pad": True}, to_authors, dinat, 56),
    "dinat-s": ("dinat_s_tiny", {**PYRAMID, "dilations": DILATIONS}, lambda w: to_authors(w, "layers"), dinat_s, 192),
    "nat-isotropic": ("nat_isotropic_small", ISOTROPIC, lambda w: to_authors(w, "layers"), isotropic, 96),
    "dinat-isotropic": ("dinat_isotropic_small", ISOTROPIC, lambda w: to_authors(w, "layers"), dinat_isotropic, 112),
    "vitrpb": ("vitrpb_small", {**ISOTROPIC, "kernel_size": None, "img_size": 64}, to_vit, isotropic, 64),
    "hugging-face": ("dinat_mini", {**PYRAMID, "dilations": DILATIONS}, to_hugging_face, hugging_face, 200),
    "hugging-face-layer-scale": (
        "dinat_base",
        {**PYRAMID, "dilations": DILATIONS},
        to_hugging_face,
        hugging_face,
        200,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_and_logits_are_those_of_the_layout(layout: str, tmp_path: Path) -> None:
    name, options, to_theirs, forward, size = LAYOUTS[layout]
    ours = random_weights(name, **options)
    theirs = to_theirs(ours)
    model = load(name, theirs, tmp_path, **options)
    torch.testing.assert_close(weights_of(model), ours, rtol=0, atol=0)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(logits, forward(theirs, x), rtol=1e-4, atol=1e-4)
    assert logits.std() > 0.1


def test_detection_backbone(tmp_path: Path) -> None:
    """The norm of the last level is the only one that a classifier has; the classifier stays, with a warning."""
    options = {**PYRAMID, "dilations": DILATIONS}
    ours = random_weights("dinat_mini", **options)
    detector = to_detector(ours)
    with pytest.warns(UserWarning, match=r"no classifier: head\.fc\.weight, head\.fc\.bias keep their values"):
        model = load("dinat_mini", detector, tmp_path, **options)
    loaded = model.state_dict()
    for name, value in ours.items():
        assert torch.equal(loaded[name], value) != name.startswith("head."), name
    x = torch.randn(1, 3, 200, 200)
    features = norm(detector, "norm3", authors_pyramid(detector, "levels", x, DILATIONS))
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(x).permute(0, 2, 3, 1), features, rtol=1e-4, atol=1e-4)

    whole = {f"backbone.{name}": value for name, value in detector.items()} | {"neck.conv.weight": torch.zeros(3)}
    with warnings.catch_warnings(action="ignore"):
        model = load("dinat_mini", {"meta": {"epoch": 36}, "state_dict": whole}, tmp_path, **options)
    assert torch.equal(model.norm.weight, ours["norm.weight"])


def test_hugging_face_model_and_backbone_without_classifier(tmp_path: Path) -> None:
    ours = random_weights("nat_mini", **PYRAMID)
    bare = {name.removeprefix("dinat."): value for name, value in to_hugging_face(ours).items()}
    bare = {name: value for name, value in bare.items() if not name.startswith("classifier.")}
    backbone = {name: value for name, value in bare.items() if not name.startswith("layernorm.")}
    backbone |= {f"hidden_states_norms.stage4.{part}": bare[f"layernorm.{part}"] for part in ("weight", "bias")}
    backbone |= {f"hidden_states_norms.stage2.{part}": torch.zeros(32) for part in ("weight", "bias")}
    for weights in (bare, backbone):
        model = load("nat_mini", weights, tmp_path, num_classes=0, **PYRAMID)
        torch.testing.assert_close(weights_of(model), {k: v for k, v in ours.items() if not k.startswith("head.")})


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "state_dict_ema", "model_ema"])
def test_wrappers_and_prefixes(wrapper: str) -> None:
    ours = random_weights("nat_mini", **PYRAMID)
    wrapped = {wrapper: {f"module.{name}": value for name, value in to_authors(ours).items()}, "epoch": 3}
    model = timm.create_model("nat_mini", num_classes=5, **PYRAMID)
    model.pretrained_cfg["num_classes"] = 5
    torch.testing.assert_close(checkpoint_filter_fn(wrapped, model), ours | {PADDING: torch.tensor(True)})


def test_our_own_layout_passes_as_it_is(tmp_path: Path) -> None:
    for name, options in (("dinat_s_tiny", PYRAMID | {"dilations": DILATIONS}), ("vitrpb_small", ISOTROPIC)):
        ours = random_weights(name, **options)
        torch.testing.assert_close(load(name, ours, tmp_path, **options).state_dict(), ours)


def test_another_number_of_classes_or_channels_is_left_to_timm(tmp_path: Path) -> None:
    ours = random_weights("nat_mini", **PYRAMID)
    model = load("nat_mini", to_authors(ours), tmp_path, num_classes=3, in_chans=1, **PYRAMID)
    assert model.head.fc.weight.shape == (3, 128)
    torch.testing.assert_close(model.patch_embed.proj[0].weight, ours["patch_embed.proj.0.weight"].sum(1, keepdim=True))
    torch.testing.assert_close(model.levels.state_dict()["3.blocks.0.attn.rpb"], ours["levels.3.blocks.0.attn.rpb"])
    features = load("nat_mini", to_authors(ours), tmp_path, features_only=True, **PYRAMID)
    torch.testing.assert_close(features.levels_2.blocks[0].norm1.weight, ours["levels.2.blocks.0.norm1.weight"])


def test_tables_of_another_kernel_size_are_interpolated(tmp_path: Path) -> None:
    ours = random_weights("nat_mini", **PYRAMID)
    model = load("nat_mini", to_authors(ours), tmp_path, **{**PYRAMID, "kernel_size": 5})
    expected = F.interpolate(ours["levels.2.blocks.1.attn.rpb"][None], (9, 9), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(model.levels[2].blocks[1].attn.rpb.data, expected)

    vit = random_weights("vitrpb_small", **{**ISOTROPIC, "kernel_size": None, "img_size": 64})
    larger = load("vitrpb_small", to_vit(vit), tmp_path, **{**ISOTROPIC, "kernel_size": None, "img_size": (96, 64)})
    assert larger.blocks[0].attn.rpb.shape == (2, 11, 7)


REJECTED: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (
        lambda w: (w.pop("norm.weight"), w.pop("levels.0.downsample.norm.bias")),
        r"2 keys missing in the file: levels\.1\.downsample\.norm\.bias, norm\.weight",
    ),
    "half-a-classifier": (lambda w: w.pop("head.bias"), r"1 key missing in the file: head\.fc\.bias"),
    "left-over": (
        lambda w: w.update({"levels.0.blocks.0.gamma1": torch.ones(16)}),
        r"1 key left over in the file: levels\.0\.blocks\.0\.gamma1",
    ),
    "no-tensor": (lambda w: w.update({"epoch": 3}), "1 key left over in the file: epoch"),  # type: ignore[dict-item]
    "heads": (
        lambda w: w.update({"levels.1.blocks.0.attn.rpb": torch.zeros(4, 5, 5)}),
        r"levels\.1\.blocks\.0\.attn\.rpb \(4×5×5 in the file, 2×5×5 in the model\)",
    ),
    "classes": (
        lambda w: w.update({"head.weight": torch.zeros(6, 128)}),
        r"head\.weight \(6×128 in the file, 5×128 in the model\)",
    ),
    "two-final-norms": (
        lambda w: w.update({"norm3.weight": torch.zeros(128)}),
        r"1 key left over in the file: norm3\.weight",
    ),
    "many": (lambda w: w.clear(), r"keys missing in the file: (\S+, ){3}\S+ and \d+ more"),
}


@pytest.mark.parametrize("defect", REJECTED)
def test_unfit_keys_are_named_in_one_line(defect: str, tmp_path: Path) -> None:
    spoil, message = REJECTED[defect]
    weights = to_authors(random_weights("nat_mini", **PYRAMID))
    spoil(weights)
    with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match=message) as error:
        load("nat_mini", weights, tmp_path, **PYRAMID)
    assert "does not fit nat_mini" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_key_of_hugging_face_is_named(tmp_path: Path) -> None:
    weights = to_hugging_face(random_weights("nat_mini", **PYRAMID))
    del weights["dinat.encoder.levels.0.layers.1.attention.self.key.weight"]
    with pytest.raises(
        ValueError, match=r"missing in the file: levels\.0\.blocks\.1\.attn\.qkv\.weight; 2 keys left over"
    ):
        load("nat_mini", weights, tmp_path, **PYRAMID)


@pytest.mark.parametrize(
    "name", [name for name in timm.list_models(["nat_*", "dinat_*", "vitrpb_*"]) if "pico" not in name]
)
def test_published_models_all_have_a_url(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.url.startswith("https://shi-labs.com/projects/")
    assert cfg.url.endswith(".pth")
    assert cfg.license == "mit"
    assert cfg.num_classes == 1000


def test_pretrained_tags_build_what_they_were_trained_with() -> None:
    model = timm.create_model("dinat_large_384_k11.in22k", device=torch.device("meta"))
    assert model.num_classes == 21841
    assert model.pretrained_cfg["input_size"] == (3, 384, 384)
    assert model.levels[0].blocks[1].attn.rpb.shape == (6, 21, 21)
    assert timm.get_pretrained_cfg("dinat_large_384.in22k_ft_in1k").crop_pct == 1.0


def outputs(model: nn.Module, size: int = 56) -> Tensor:
    with torch.no_grad():
        return model.eval()(torch.linspace(-2, 2, 3 * size * size).view(1, 3, size, size))


SMALL_MAPS: dict[str, Any] = {**PYRAMID, "dilations": DILATIONS}


def fitting(legacy_pad: bool, ours: Weights) -> Tensor:
    model = timm.create_model("dinat_mini", num_classes=5, legacy_pad=legacy_pad, **SMALL_MAPS)
    model.load_state_dict(ours)
    return outputs(model)


@pytest.mark.parametrize("to_theirs", [to_authors, to_hugging_face])
def test_published_weights_pad_unless_told_otherwise(to_theirs: Callable[..., Any], tmp_path: Path) -> None:
    ours = random_weights("dinat_mini", **SMALL_MAPS)
    with pytest.warns(UserWarning, match="trained with zeros around maps that are smaller than a window") as said:
        model = load("dinat_mini", to_theirs(ours), tmp_path, **SMALL_MAPS)
    assert len([warning for warning in said if "zeros" in str(warning.message)]) == 1
    torch.testing.assert_close(outputs(model), fitting(True, ours))
    told = load("dinat_mini", to_theirs(ours), tmp_path, legacy_pad=False, **SMALL_MAPS)
    torch.testing.assert_close(outputs(told), fitting(False, ours))
    assert not torch.allclose(outputs(told), outputs(model))
    scratch = timm.create_model("dinat_mini", num_classes=5, **SMALL_MAPS)
    scratch.load_state_dict(ours)
    torch.testing.assert_close(outputs(scratch), outputs(told))


@pytest.mark.filterwarnings("ignore:these weights")
def test_padding_travels_with_the_weights(tmp_path: Path) -> None:
    ours = random_weights("dinat_mini", **SMALL_MAPS)
    model = load("dinat_mini", to_authors(ours), tmp_path, **SMALL_MAPS)
    other = timm.create_model("dinat_mini", num_classes=5, **SMALL_MAPS)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(outputs(other), outputs(model))
    whole = nn.ModuleDict({"model": timm.create_model("dinat_mini", num_classes=5, **SMALL_MAPS)})
    whole.load_state_dict({f"model.{name}": value for name, value in model.state_dict().items()})
    torch.testing.assert_close(outputs(copy.deepcopy(whole)["model"]), outputs(model))
    other.load_state_dict({name: ours[name] for name in ours if name.startswith("head.")}, strict=False)
    torch.testing.assert_close(outputs(other), outputs(model))
    other.load_state_dict(ours)  # weights that say nothing were trained without
    torch.testing.assert_close(outputs(other), fitting(False, ours))
