"""Token mixers: modules that exchange information between the positions of a map, by name.

A mixer maps `[B, H, W, dim]` to the same for every H and W from 1 up. Its constructor takes `dim`, `num_heads`, options
of its own, `proj_drop`, `device` and `dtype`.

Some mixers, or modules of theirs, have further methods:

- `auxiliary_losses()` returns losses of their own; a training step calls it once after each forward pass.
- `update_buffers()` changes their buffers; it is called once per step, after the backward passes.
- `init_weights()` starts their linear layers otherwise than a model would; the model calls it.

A mixer that can start from the weights of `NeighborhoodAttention2d` names its further parameters in `zero_if_absent`.
"""

import inspect
from collections.abc import Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, get_args

import torch
from torch import nn

from visionattn.layers.mixers.blocks import BlockAttention2d
from visionattn.layers.mixers.core import CoreContextAttention2d
from visionattn.layers.mixers.full import FullAttention2d
from visionattn.layers.mixers.linear import EluAttention2d, TaylorAttention2d
from visionattn.layers.mixers.local_linear import LocalLinearAttention2d
from visionattn.layers.mixers.metaformer import as_token_mixer
from visionattn.layers.mixers.parallax import ParallaxAttention2d
from visionattn.layers.mixers.power import PowerAttention2d
from visionattn.layers.mixers.routing import RoutingAttention2d
from visionattn.layers.mixers.ttt import TttMixer2d
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d

__all__ = ["MIXERS", "as_token_mixer", "create_mixer"]

MIXERS: dict[str, type[nn.Module]] = {
    "neighborhood": NeighborhoodAttention2d,
    "full": FullAttention2d,
    "core": CoreContextAttention2d,
    "power": PowerAttention2d,
    "parallax": ParallaxAttention2d,
    "local_linear": LocalLinearAttention2d,
    "taylor": TaylorAttention2d,
    "elu": EluAttention2d,
    "routing": RoutingAttention2d,
    "ttt": TttMixer2d,
    "blocks": BlockAttention2d,
}
"""Classes of the mixers by name."""


def create_mixer(
    name: str,
    dim: int,
    num_heads: int,
    *,
    defaults: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Build a mixer.

    Args:
        name: One of `MIXERS`.
        dim: Channels.
        num_heads: Heads; must divide `dim`.
        defaults: Options of the host, such as its kernel size: those that this mixer does not have are left out.
        device: Device of the parameters.
        dtype: Type of the parameters.
        **options: Options of the mixer; they override `defaults`.

    Raises:
        ValueError: there is no such mixer, it has no such option, or the option has another type.
    """
    check_options(name, options)
    taken = {key: value for key, value in (defaults or {}).items() if key in _options(name)}
    return MIXERS[name](dim, num_heads, device=device, dtype=dtype, **{**taken, **options})


def check_mixer(name: str) -> None:
    """Refuse the name of a mixer that does not exist.

    Raises:
        ValueError: `name` is not one of `MIXERS`.
    """
    if name not in MIXERS:
        raise ValueError(f"mixer must be one of {', '.join(MIXERS)}; got {name!r}")


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a mixer does not have.

    Raises:
        ValueError: there is no such mixer, it has no such option, or the option has another type.
    """
    check_mixer(name)
    known = _options(name)
    if unknown := sorted(options.keys() - known.keys()):
        raise ValueError(f"the mixer {name} has no option {unknown[0]}; its options are {', '.join(sorted(known))}")
    for key, value in options.items():
        if not _fits(value, known[key]):
            kind = inspect.formatannotation(known[key])
            raise ValueError(f"the mixer {name} takes {key} of type {kind}; got {value!r}")


def _options(name: str) -> dict[str, Any]:
    """Return the types of a mixer's options by name."""
    parameters = inspect.signature(MIXERS[name]).parameters
    return {key: x.annotation for key, x in parameters.items() if key not in ("dim", "num_heads", "device", "dtype")}


def _fits(value: Any, annotation: Any) -> bool:
    """Return whether a value has the type of a parameter; types other than numbers and None are not looked at."""
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    numbers = {int: Integral, float: Real, bool: bool, NoneType: NoneType}
    return not set(kinds) <= set(numbers) or isinstance(value, tuple(numbers[kind] for kind in kinds))
