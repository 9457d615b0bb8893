"""Weights of a file converted to fit a model, by the rules of the model's family, or a one-line error."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

EVALUATED = ("encoder_q.", "base_encoder.", "teacher.")
"""Prefixes of the network that MoCo, MoCo v3 and DINO evaluate; the file also holds a copy of it."""


def adapt_weights(held: Mapping[str, Tensor], model: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """Convert weights from the layout and sizes of a file to those of a model, as timm does for published ones.

    A prefix that training scripts add to the names of a backbone is removed. The filter of the model's family renames
    keys and resamples position tables. The first convolution is adapted to other channels. Unused names in the file are
    counted in a warning. The classifier, which may be missing or of another width, is left unchanged.

    Args:
        held: Tensors by their names in the file.
        model: The model, without a classifier.
        path: The file, for messages.

    Raises:
        ValueError: The family's filter refuses the file.
    """
    own = model.state_dict()
    prefix = _find_prefix(held, own)
    found = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
    before = set(found)
    try:
        found = _family_filter(model)(dict(found), model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception:
        pass  # Other kinds of files may raise anything; their keys, compared later, say more.
    dropped = before - found.keys() if found.keys() <= before else set()  # a filter that renames keys uses all
    _warn_of_spare(path, model, [name for name in held if not name.startswith(prefix)] + sorted(dropped))
    for name in _names(model, "first_conv"):
        weight, target = found.get(f"{name}.weight"), own.get(f"{name}.weight")
        if weight is not None and target is not None and _differ_in_channels(weight, target):
            found[f"{name}.weight"] = adapt_input_conv(target.shape[1], weight, weight.shape[1])
            channels = f"from {weight.shape[1]} to {target.shape[1]} channels"
            warnings.warn(f"{path}: {name} is adapted {channels}", stacklevel=2)
    return found


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    path: str | Path,
    name: str,
    trained_as: str = "",
    exact: bool = True,
) -> None:
    """Load a state dict strictly, with an error for users.

    Args:
        model: The model.
        weights: Tensors by the model's names.
        path: The file that they come from, for messages.
        name: The model's name.
        trained_as: The model's name in the file.
        exact: Refuse any key that the model does not have. Otherwise keys of parts that the model lacks entirely, such
            as a decoder or a `mask_token`, are counted in a warning.

    Raises:
        ValueError: Weights are missing, unknown, of another shape or not finite; the message names the first of each.
    """
    own = model.state_dict()
    bad = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise ValueError(f"{path} holds weights that are not finite, first {bad[0]}: take an earlier checkpoint")
    reshaped = [key for key, value in weights.items() if key in own and own[key].shape != value.shape]
    fitting = {key: value for key, value in weights.items() if key not in reshaped}
    missing, unknown = model.load_state_dict(fitting, strict=False)
    parts = {key.partition(".")[0] for key in own}
    spare = [] if exact else [key for key in unknown if key.partition(".")[0] not in parts]
    shapes = [f"{k} ({_shape(weights[k])} in the file, {_shape(own[k])} in the model)" for k in reshaped]
    findings = [
        _count("missing in the file", [key for key in missing if key not in reshaped]),
        _count("unknown to the model", [] if len(spare) == len(unknown) else unknown),
        _count("of another shape", shapes),
    ]
    if any(findings):
        origin = f", trained as {trained_as}," if trained_as not in ("", name) else ""
        raise ValueError(
            f"{path}{origin} does not fit {name}: {'; '.join(filter(None, findings))}. "
            "Name the architecture and the arguments that it was trained with"
        )
    _warn_of_spare(path, model, spare)


def head_width(model: nn.Module, weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of the head in `weights`; 0 without a head, None if its name is unknown."""
    names = _names(model, "classifier")
    weight = next((weights[f"{name}.weight"] for name in names if f"{name}.weight" in weights), None)
    return (0 if names else None) if weight is None else weight.shape[0]


def _find_prefix(held: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Return the shortest prefix under which the file has the model's first name; "" if there is none.

    In a file of two networks, the one that its authors evaluate is preferred.
    """
    first = next(iter(own), "")
    if held.keys() & own.keys():
        return ""
    found = [key.removesuffix(first) for key in held if key.endswith(f".{first}")]
    return min(found, key=lambda prefix: (not any(name in prefix for name in EVALUATED), len(prefix)), default="")


def _family_filter(model: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]:
    """Return the filter for published weights of the model's family; in timm, a function in the module of the class."""
    for cls in type(model).__mro__:
        if found := getattr(sys.modules[cls.__module__], "checkpoint_filter_fn", None):
            return found
    return lambda weights, _: weights


def _names(model: Any, key: str) -> Sequence[str]:
    """Return the modules that timm's configuration of a model names under a key."""
    found = (getattr(model, "pretrained_cfg", None) or {}).get(key) or ()
    return (found,) if isinstance(found, str) else found


def _differ_in_channels(weight: Tensor, target: Tensor) -> bool:
    same = weight.shape[:1] + weight.shape[2:] == target.shape[:1] + target.shape[2:]
    return weight.dim() == 4 and same and weight.shape != target.shape


def _warn_of_spare(path: str | Path, model: nn.Module, names: Sequence[str]) -> None:
    if names:
        found = _count(f"that {type(model).__name__} has no use for", names)
        warnings.warn(f"{path}: {found}", stacklevel=3)


def _count(kind: str, keys: Sequence[str]) -> str:
    return f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {kind}, first {keys[0]}" if keys else ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
