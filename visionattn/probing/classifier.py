"""Classifiers of images that consist of a frozen backbone and an exported head, and their files.

A folder holds for each head its weights, `NAME.safetensors`, and all else, `NAME.json`: the backbone, the layers, the
preprocessing, the classes. Published weights of a backbone are downloaded again. Other weights lie in the same folder,
once for all heads, as `backbone-HASH.safetensors`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from visionattn.checks import reason
from visionattn.probing.frozen import FrozenBackbone, Layer, TokenLayout, weights_hash
from visionattn.probing.heads import ProbingHead, create_head, select_tokens
from visionattn.probing.heads.queries import MeanPooling
from visionattn.training.checkpoints.spec import ModelSpec
from visionattn.training.models import create_model

FORMAT = 1
AMP_DTYPES = {str(dtype): dtype for dtype in (torch.bfloat16, torch.float16)}


class ProbeClassifier(nn.Module):
    """A frozen backbone and a head on tokens of its `layers`, side by side on the axis of features.

    `class_names` has a name for each class, in order.
    """

    backbone: FrozenBackbone
    head: ProbingHead

    def __init__(
        self, backbone: FrozenBackbone, head: ProbingHead, layers: Sequence[Layer], class_names: Sequence[str]
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.layers, self.class_names = tuple(layers), list(class_names)

    @property
    def spec(self) -> ModelSpec:
        """Description of the backbone with the classes of the head."""
        backbone, names = self.backbone, self.class_names
        return ModelSpec(backbone.name, backbone.model_kwargs, len(names), names, backbone.preprocessing, dataset="")

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Preprocessing of images, see `FrozenBackbone`."""
        return self.backbone.preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[B, num_classes]` of images `[B, C, H, W]`."""
        return self.head(self.tokens(images))

    def attention(self, images: Tensor) -> Tensor:
        """Return the weights `[B, M, N]` with which the head pools tokens, see `ProbingHead.attention`."""
        return self.head.attention(self.tokens(images))

    def tokens(self, images: Tensor) -> Tensor:
        """Return the tokens for the head, `[B, N, dim]`."""
        tokens = self.backbone(images)
        return head_tokens(self.head, [(tokens[layer], self.backbone.layouts[layer]) for layer in self.layers])


def head_tokens(head: ProbingHead, layers: Sequence[tuple[Tensor, TokenLayout]]) -> Tensor:
    """Return the tokens `[B, N, dim]` for a head from the tokens of one layer, or of several side by side.

    N is 1 for a head that takes the mean of its tokens, whose layers may differ in layout.

    Raises:
        ValueError: The head needs a class token that is missing, or layers have different numbers of tokens.
    """
    taken = [
        select_tokens(tokens, head.tokens, layout.num_prefix_tokens, layout.num_reg_tokens) for tokens, layout in layers
    ]
    if isinstance(head.pool, MeanPooling):
        taken = [tokens.mean(1, keepdim=True) for tokens in taken]
    if len(lengths := {tokens.shape[1] for tokens in taken}) > 1:
        raise ValueError(
            f"layers with {', '.join(map(str, sorted(lengths)))} tokens cannot be put side by side; take layers of one "
            "stage, or a head that takes the mean of its tokens"
        )
    return torch.cat(taken, dim=2)


def load_probe(path: str | Path, backbone: nn.Module | None = None) -> ProbeClassifier:
    """Return a classifier of images, made of an exported head, in evaluation mode on the CPU.

    Args:
        path: `NAME.json` or `NAME.safetensors` that `export_probe` or `eval.py probe --export` wrote.
        backbone: The backbone as a timm model, which is frozen and becomes part of the classifier. By default it is
            built, with weights from the head's folder or from timm.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is damaged or of another kind, or the head was trained on other weights of the backbone.
    """
    path = Path(path).with_suffix(".json")
    content = _read(path)
    try:
        made, head, weights = content["backbone"], content["head"], path.with_suffix(".safetensors")
        model = _create_backbone(made, path) if backbone is None else backbone
        if (digest := weights_hash(model)) != made["weights"]:
            raise ValueError(
                f"{path}: the backbone {made['model']} has weights {digest[:8]}…, the head was trained on "
                f"{made['weights'][:8]}…; pass the same backbone, without its classifier, as load_probe(…, backbone=…)"
            )
        tapped = FrozenBackbone(
            model,
            made["model"],
            made["layers"],
            made["model_kwargs"],
            content["preprocessing"],
            AMP_DTYPES.get(made["autocast"]),
        )
        if hashlib.blake2b(_bytes(weights), digest_size=16).hexdigest() != content["weights"]:
            raise ValueError(
                f"{weights} is damaged, or not the file that {path.name} belongs to; export the head again"
            )
        module = create_head(head["name"], head["dim"], head["num_classes"], **head["options"])
        module.load_state_dict(load_file(weights))
        return ProbeClassifier(tapped, module, made["layers"], content["class_names"]).eval()
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a head as export_probe does: {error!r}") from error


def _create_backbone(made: Mapping[str, Any], path: Path) -> nn.Module:
    """Build the model without a classifier, with the weights that the head's file names."""
    try:
        model = create_model(made["model"], pretrained=made["file"] is None, num_classes=0, **made["model_kwargs"])
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: no backbone {made['model']!r}: {reason(error)}; pass it as load_probe(…, backbone=…)"
        ) from error
    if made["file"] is not None:
        file = path.parent / Path(made["file"]).name  # never from another folder
        if not file.exists():
            raise FileNotFoundError(f"no weights of the backbone at {file}; pass it as load_probe(…, backbone=…)")
        try:
            model.load_state_dict(load_file(file))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{file} is damaged or does not fit {made['model']!r}; export the head again") from error
    return model


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"no exported head at {path}")
    return path.read_bytes()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, or only part of a file: {error}; export the head again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a head as this version of export_probe does; export it again")
    return content
