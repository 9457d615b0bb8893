"""Models with several branches (DCAL) and plain ones, seen alike."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

Inference = Literal["combined", "sa"]
"""What a model of several branches gives: all of them together, or self-attention alone."""

ONLY = "all"
"""Name of the one branch of a plain model."""


def branch_names(model: nn.Module) -> list[str]:
    """Names of the branches that are trained."""
    names: Any = getattr(model, "branch_names", (ONLY,))
    return list(names)


def branch_logits(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Logits [B, num_classes] of each branch, in training."""
    if not hasattr(model, "forward_branches"):
        return {ONLY: model(image)}
    return {name: branch.logits for name, branch in _forward(model, image).items()}


def branch_features(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Features [B, D] of each branch, in training."""
    if not hasattr(model, "forward_branches"):
        return {ONLY: _pooled(model, image)}
    return {name: branch.features for name, branch in _forward(model, image).items()}


def _forward(model: Any, image: Tensor) -> dict[str, Any]:
    """Where the model attends to pairs of images (DCAL's PWCA), the batch meets a random permutation of itself."""
    # Drawn on the CPU, so that a seed means the same pairs on any device.
    pair = torch.randperm(len(image)).to(image.device) if "pwca" in branch_names(model) else None
    branches: dict[str, Any] = model.forward_branches(image, pair)
    return branches


def _pooled(model: Any, image: Tensor) -> Tensor:
    if not model.num_classes:
        return model(image)  # the same by timm's contract, and compiled where the model is
    features: Tensor = model.forward_head(model.forward_features(image), pre_logits=True)
    return features


def compile_branches(model: Any) -> None:
    """Does for ``forward_branches`` what ``model.compile()`` does for ``forward``."""
    if hasattr(model, "forward_branches"):
        model.forward_branches = torch.compile(model.forward_branches)


def num_features(model: nn.Module) -> int:
    """Width of each branch's features."""
    # With several branches, what precedes the classifier may be several features side by side.
    width = None if hasattr(model, "forward_branches") else getattr(model, "head_hidden_size", None)
    return int(width or model.num_features)  # type: ignore[arg-type]


def reid_features(model: Any, image: Tensor, flip: bool = False) -> Tensor:
    """Features [B, D] to compare images [B, C, H, W] by; of several branches, one after the other.

    Args:
        model: which is asked.
        image: images.
        flip: add the features of the mirrored images.
    """
    if flip:
        return reid_features(model, image) + reid_features(model, image.flip(-1))
    return _pooled(model, image)


def choose_inference(model: Any, name: str, inference: Inference) -> None:
    """Lets a model of several branches answer with all of them, or with one.

    Args:
        model: the model.
        name: its name, for the message.
        inference: what it is to give.

    Raises:
        ValueError: a model of one branch.
    """
    if not hasattr(model, "set_inference"):
        raise ValueError(f"{name} has one branch: {inference!r} inference is for DCAL's models")
    model.set_inference(inference)
