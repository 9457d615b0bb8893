"""Published layouts of NAT checkpoints: a forward of each in plain torch, and converters from our layout.

The layouts are those of the authors' classifiers and detection backbones and of Hugging Face's classes. Each forward
reads the weights by the names of its layout and gathers a copy of the keys for every query, without the package.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import visionattn  # noqa: F401 (registers the models)

Weights = Mapping[str, Tensor]
PYRAMID: dict[str, Any] = {"embed_dim": 16, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 4, 8), "kernel_size": 3}
DILATIONS = (3, 2, 2, 1)
ISOTROPIC: dict[str, Any] = {"embed_dim": 16, "depth": 3, "num_heads": 2, "kernel_size": 3}


def neighbours(length: int, kernel_size: int, dilation: int) -> Tensor:
    """Return the nearest keys of each query among those a multiple of the dilation away, `[length, kernel_size]`."""
    rows = []
    for query in range(length):
        group = [key for key in range(length) if (key - query) % dilation == 0]
        rows.append(sorted(sorted(group, key=lambda key: abs(key - query))[:kernel_size]))
    return torch.tensor(rows)


def attend(qkv: Tensor, rpb: Tensor, dilation: int) -> Tensor:
    """Compute neighborhood attention, `[B, H, W, 3 * dim]` to `[B, H, W, dim]`; the table is read at key - query."""
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
    """Compute the attention of their ViT: the bias of (query, key) is in the flattened table at the stored index."""
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
    """Convolve `[B, H, W, C]`."""
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
    """Return the output of the last level, `[B, H, W, C]`, without a norm."""
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
    """Compute the logits of `DinatForImageClassification`."""
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
    """Return random weights for every tensor of a model, unlike any initialisation."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **options)
    return {
        key: 0.3 * torch.randn_like(value) + (key.endswith("norm.weight")) for key, value in model.state_dict().items()
    }


def to_authors(ours: Weights, stack: str = "levels") -> dict[str, Tensor]:
    """Rename our weights to theirs: levels end with their downsampling; LayerScale and classifier are not modules."""
    theirs = {}
    for name, value in ours.items():
        name = re.sub(r"^levels\.(\d+)\.downsample", lambda m: f"levels.{int(m[1]) - 1}.downsample", name)
        name = name.replace("ls1.gamma", "gamma1").replace("ls2.gamma", "gamma2").replace("head.fc", "head")
        theirs[re.sub(r"^(levels|blocks)\.", f"{stack}.", name)] = value
    return theirs


def to_vit(ours: Weights) -> dict[str, Tensor]:
    """Add the index that their ViT stores: 4x4 positions, with (query - key) reversed on both axes."""
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
