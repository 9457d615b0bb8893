"""timm's configurations and entry points of our models."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_arch_pretrained_cfgs, register_model
from torch import nn


def image_config(**changes: Any) -> dict[str, Any]:
    """Return a configuration for ImageNet's 1000 classes at 224 pixels, without weights; `changes` come on top."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head.fc",
        "license": "apache-2.0",
        "origin_url": "",
        **changes,
    }


def configs_like(prefix: str, changes: dict[str, Any], *backbones: str) -> dict[str, Any]:
    """Return timm's configurations, one for each of the weights, for models that take these weights.

    Args:
        prefix: Prefix of the new names, before the backbone's name.
        changes: Entries that differ from timm's.
        *backbones: Names in timm's registry.
    """
    return {
        prefix + name: {
            key: value for key, value in (asdict(cfg) | changes).items() if key not in ("architecture", "tag")
        }
        for backbone in backbones
        for name, cfg in get_arch_pretrained_cfgs(backbone).items()
    }


def register_variants(
    module: str, build: Callable[..., nn.Module], variants: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> None:
    """Register the models of a family with timm.

    Args:
        module: `__name__` of the family's module; its `default_cfgs` have the configurations.
        build: Function of a model's name, `pretrained` and options.
        variants: Description and options by name. Options of `timm.create_model` override these.
    """
    for name, (description, options) in variants.items():
        entry_point = _entry_point(build, name, options)
        entry_point.__module__, entry_point.__name__, entry_point.__doc__ = module, name, description
        setattr(sys.modules[module], name, register_model(entry_point))


def _entry_point(build: Callable[..., nn.Module], name: str, options: Mapping[str, Any]) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(name, pretrained, **{**options, **kwargs})

    return create
