"""Weights that come with the package, in `weights/MODEL.TAG`.

These are folders as `visionattn export hub` writes them, but large matrices are held in 8 bits.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

FOLDER = Path(__file__).with_name("weights")
CHECKSUMS = FOLDER / "SHA256SUMS"
"""A line `DIGEST  PATH` for each file of weights, as the command `sha256sum` writes it."""
LARGE = 4096
"""Fewest numbers of a matrix that is held in 8 bits."""
SCALE = ":scale"
"""End of the name of a matrix's scales."""


def packaged(name: str) -> dict[str, Any]:
    """Return the part of timm's configuration with the file and the class names, if any, of weights `MODEL.TAG`."""
    config = json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8"))
    labels = {"label_names": tuple(config["label_names"])} if "label_names" in config else {}
    return {"file": str(FOLDER / name / "model.safetensors"), **labels}


def build_model(
    model_cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    filter_fn: Callable[..., Any] | None = None,
    *,
    features: Mapping[str, Any],
    **kwargs: Any,
) -> Any:
    """Call timm's `build_model_with_cfg` after checking the packaged weights that it would read.

    Args:
        model_cls: Class of the model.
        variant: Name of the model.
        pretrained: Whether to load weights.
        filter_fn: Function that fits a state dict to a model.
        features: timm's `feature_cfg`; `out_indices` among the options overrides its own.
        **kwargs: Options of timm and of the class.

    Raises:
        ValueError: weights of the package are damaged or missing.
    """
    if pretrained:
        given = {name: kwargs.get(name) for name in ("pretrained_cfg", "pretrained_cfg_overlay")}
        path = Path(resolve_pretrained_cfg(variant, **given).file or "")
        if path.is_relative_to(FOLDER):
            check(path)
            filter_fn = partial(_unpack_and_filter, filter_fn)
    feature_cfg = {**features, "out_indices": kwargs.pop("out_indices", features["out_indices"])}
    return build_model_with_cfg(
        model_cls, variant, pretrained, pretrained_filter_fn=filter_fn, feature_cfg=feature_cfg, **kwargs
    )


build_vit = partial(build_model, features={"out_indices": 3, "feature_cls": "getter"})
"""Build a ViT of timm, or a subclass; its features are those of three blocks by default."""


def build_pyramid(
    model_cls: type[nn.Module], variant: str, pretrained: bool, filter_fn: Callable[..., Any], **kwargs: Any
) -> Any:
    """Build a `Backbone` with a stack of `depths`; its features are those of every level."""
    features = {"out_indices": tuple(range(len(kwargs["depths"]))), "flatten_sequential": True}
    return build_model(model_cls, variant, pretrained, filter_fn, features=features, **kwargs)


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return large matrices and kernels in 8 bits, and a scale for each of their outputs.

    A scale has four significant bits, so that float16 holds the rounded numbers exactly. Matrices that are beyond the
    range of float16, above or below, are left out, as are small ones.
    """
    packed = {}
    for name, value in state.items():
        if value.ndim > 1 and value.numel() >= LARGE and 2.0**-12 < value.abs().max() < 2.0**15:
            wide = value.float()
            mantissa, exponent = torch.frexp(wide.abs().amax(tuple(range(1, value.ndim)), keepdim=True) / 127)
            scale = torch.ldexp((16 * mantissa).ceil() / 16, exponent).clamp(min=2.0**-21)
            packed[name] = (wide / scale).round().to(torch.int8)
            packed[name + SCALE] = scale.half()
    return packed


def unpack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights, some of which come from `pack`: these in float32."""
    return {
        name: value.float() * state[name + SCALE].float() if name + SCALE in state else value
        for name, value in state.items()
        if not name.endswith(SCALE)
    }


def _unpack_and_filter(filter_fn: Callable[..., Any] | None, state: Mapping[str, Tensor], model: nn.Module) -> Any:
    found = unpack(state)
    return filter_fn(found, model) if filter_fn else found


def check(path: Path) -> None:
    """Compare a packaged file with its checksum.

    Raises:
        ValueError: it is not there, or not what was packaged.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: install visionattn again")
    lines = CHECKSUMS.read_text(encoding="utf-8").splitlines()
    digests = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    if hashlib.sha256(path.read_bytes()).hexdigest() != digests.get(path.relative_to(FOLDER).as_posix()):
        raise ValueError(f"{path} is damaged: it has another checksum than {CHECKSUMS} says; install visionattn again")
