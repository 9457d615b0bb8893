"""One interface to models with several branches (DCAL) and to plain models."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

Inference = Literal["combined", "sa"]
"""Output of a model with several branches: all combined, or self-attention (``sa``) only."""

ONLY = "all"
"""Name of the one branch of a plain model."""


def branch_names(model: nn.Module) -> list[str]:
    """Return the names of the branches that are trained."""
    names: Any = getattr(model, "branch_names", (ONLY,))
    return list(names)


def branch_logits(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return logits [B, num_classes] of each branch, in training."""
    if not hasattr(model, "forward_branches"):
        return {ONLY: model(image)}
    return {name: branch.logits for name, branch in _forward(model, image).items()}


def branch_features(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return features [B, D] of each branch, in training."""
    if not hasattr(model, "forward_branches"):
        return {ONLY: _pooled(model, image)}
    return {name: branch.features for name, branch in _forward(model, image).items()}


def _forward(model: Any, image: Tensor) -> dict[str, Any]:
    """Call the branches; for attention to pairs of images (PWCA), the batch is paired with a permutation of itself."""
    # Drawn on the CPU, so that a seed means the same pairs on any device.
    pair = torch.randperm(len(image)).to(image.device) if "pwca" in branch_names(model) else None
    branches: dict[str, Any] = model.forward_branches(image, pair)
    return branches


def _pooled(model: Any, image: Tensor) -> Tensor:
    if not model.num_classes:
        return model(image)  # equal by timm's contract, and compiled if the model is
    features: Tensor = model.forward_head(model.forward_features(image), pre_logits=True)
    return features


def compile_branches(model: Any) -> None:
    """Compile ``forward_branches`` in place."""
    if hasattr(model, "forward_branches"):
        model.forward_branches = torch.compile(model.forward_branches)


def num_features(model: nn.Module) -> int:
    """Return the width of the features of each branch."""
    # With several branches, the input of the classifier may be several features side by side.
    width = None if hasattr(model, "forward_branches") else getattr(model, "head_hidden_size", None)
    return int(width or model.num_features)  # type: ignore[arg-type]


def reid_features(model: Any, image: Tensor, flip: bool = False) -> Tensor:
    """Return features [B, D] for comparing images [B, C, H, W]; those of several branches are concatenated.

    ``flip`` adds the features of the mirrored images.
    """
    if flip:
        return reid_features(model, image) + reid_features(model, image.flip(-1))
    return _pooled(model, image)


def choose_inference(model: Any, name: str, inference: Inference) -> None:
    """Set whether a model with several branches answers with all of them or with one.

    Raises:
        ValueError: the model has one branch; the message gives its name.
    """
    if not hasattr(model, "set_inference"):
        raise ValueError(f"{name} has one branch: {inference!r} inference is for DCAL's models")
    model.set_inference(inference)
