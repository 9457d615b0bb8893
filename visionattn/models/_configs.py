"""Configurations of models that build on timm's."""

from dataclasses import asdict
from typing import Any

from timm.models import get_arch_pretrained_cfgs


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
