"""Frozen models for probing, as --model and --checkpoint name them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visionattn.cli.classify import build_classifier
from visionattn.tasks.checkpoint import ClassifierSpec, Weights, create_classifier


def load_frozen(
    checkpoint: Path | None,
    name: str | None,
    pretrained: bool,
    model_kwargs: Mapping[str, Any],
    weights: Weights,
    seed: int = 0,
) -> tuple[nn.Module, ClassifierSpec]:
    """A model without its classifier.

    Args:
        checkpoint: see ``build_classifier``, as for what follows.
        name: of the model.
        pretrained: whether published weights are fetched.
        model_kwargs: further arguments.
        weights: of a checkpoint with a moving average.
        seed: of random weights, which are the same every time, so that caches know them again.

    Raises:
        UsageError: nothing to load, or options that contradict each other.
        ValueError: a model or checkpoint that is not there or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kwargs = dict(model_kwargs) if checkpoint else {"num_classes": 0, **model_kwargs}
        model, spec = build_classifier(checkpoint, name, pretrained, kwargs, weights)
    if getattr(model, "num_classes", 0):
        reset: Any = model
        reset.reset_classifier(0)
    return model, spec


def draw_weights(spec: ClassifierSpec, seed: int) -> nn.Module:
    """The same architecture, without its classifier, in evaluation mode, at random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_classifier(spec.model, **{**spec.model_kwargs, "num_classes": 0}).eval()
