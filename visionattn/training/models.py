"""Models of timm's registry by name, with errors for users."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models import is_model_pretrained
from torch import nn

import visionattn.models  # noqa: F401  registers this project's models with timm
from visionattn.checks import reason
from visionattn.io import WEIGHT_SOURCES
from visionattn.models.cut_heads import cut_heads as cut
from visionattn.suggestions import suggest
from visionattn.training.checkpoints.files import read_checkpoint

NUMPY_SUFFIXES = (".npz", ".npy")
"""Files of weights that models of timm read by themselves."""


def create_model(name: str, *, cut_heads: Mapping[str, Sequence[int]] | None = None, **kwargs: Any) -> nn.Module:
    """Return ``timm.create_model(name, **kwargs)``, less some attention heads, with errors for users.

    Args:
        name: a registered model, with or without a pretrained tag, or ``hf-hub:…`` or ``local-dir:…``.
        cut_heads: numbers of the heads to cut by block, such as ``{"blocks.3": [1, 2]}``, see
            `visionattn.models.cut_heads`; weights that ``kwargs`` ask for are those of the whole model.
        **kwargs: arguments of ``timm.create_model`` and of the model.

    Raises:
        FileNotFoundError: the file of weights in ``pretrained_cfg_overlay`` does not exist.
        ValueError: an unknown name (the message lists near matches), an argument that the model does not take, heads
            that do not exist or cannot be cut, or pretrained weights that do not exist, are damaged or cannot be
            fetched.
    """
    model = _create(name, kwargs)
    return cut(model, cut_heads) if cut_heads else model


def _create(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    check_model_name(name)
    file = (kwargs.get("pretrained_cfg_overlay") or {}).get("file")
    if kwargs.get("pretrained") and file and Path(file).suffix not in NUMPY_SUFFIXES:
        read_checkpoint(Path(file))  # timm's own errors do not name the file
    try:
        return timm.create_model(name, **kwargs)
    except Exception as error:
        if match := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            raise ValueError(f"model {name!r} takes no argument {match[1]!r}") from error
        if str(error).startswith("Error(s) in loading state_dict"):
            keys = textwrap.shorten(str(error).partition(":")[2], 200)
            raise ValueError(f"model {name!r}: its weights do not fit the arguments that were given: {keys}") from error
        # The user's errors: a size that the model cannot have, a missing folder, weights that cannot be fetched, and in
        # timm's words a missing tag.
        if isinstance(error, ValueError | OSError) or (isinstance(error, RuntimeError) and "retrained" in str(error)):
            raise ValueError(f"model {name!r}: {reason(error)}") from error
        # A folder or repository may hold anything.
        if is_elsewhere(name):
            kind = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
            raise ValueError(f"model {name!r}: its config.json or weights are of no use ({kind})") from error
        raise


def create_regularized(name: str, rates: Mapping[str, float | None], **options: Any) -> nn.Module:
    """Create a model, as `create_model` does, with rates of dropout and stochastic depth by argument.

    None leaves a rate to the model, and so does 0 if the model has no such argument.
    """
    given = {key: rate for key, rate in rates.items() if rate is not None}
    try:
        return create_model(name, **{**options, **given})
    except ValueError as error:
        unknown = next((key for key, rate in given.items() if not rate and f"no argument {key!r}" in str(error)), None)
        if unknown is None:
            raise
    return create_regularized(name, {**given, unknown: None}, **options)


def check_model_name(name: str) -> None:
    """Check that timm knows a model and the tag of its weights; ``hf-hub:…`` and ``local-dir:…`` are left to timm.

    Raises:
        ValueError: an unknown name; the message lists near matches.
    """
    if is_elsewhere(name):
        return
    if not timm.is_model(name):
        near = suggest(name.partition(".")[0], timm.list_models(), count=5).removeprefix("; ")
        raise ValueError(f"unknown model {name!r}: {near or 'timm.list_models() lists all'}")
    known = timm.models.get_arch_pretrained_cfgs(name.partition(".")[0])
    if "." in name and name not in known:
        raise ValueError(f"unknown weights {name!r}{suggest(name, known) or '; known are ' + ', '.join(known)}")


def has_weights(name: str, model_kwargs: Mapping[str, Any] | None = None) -> bool:
    """Return whether ``create_model(name, pretrained=True, **model_kwargs)`` has weights to load."""
    overlay = (model_kwargs or {}).get("pretrained_cfg_overlay") or {}
    return is_elsewhere(name) or is_model_pretrained(name) or bool(WEIGHT_SOURCES & set(overlay))


def is_elsewhere(name: str) -> bool:
    """Return whether timm looks for the architecture in a folder or a repository."""
    return bool({":", "/"} & set(name))


def label_names(pretrained_cfg: Mapping[str, Any]) -> list[str]:
    """Return the class names that weights come with, in the order of the outputs; empty if they have none."""
    names: Any = pretrained_cfg.get("label_names") or ()
    if isinstance(names, Mapping):  # by number, which JSON turns into a string
        names = [names[number] for number in sorted(names, key=int)]
    return [str(name) for name in names]
