"""Checkpoints: what one says about itself, and how to build the model that it holds."""

import difflib
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

import visionattn.models  # noqa: F401  registers this project's models with timm
from visionattn.files import as_text
from visionattn.tasks.preprocessing import adapt_preprocessing, model_preprocessing
from visionattn.tasks.weight_files import read_checkpoint

METADATA_KEY = "visionattn"
"""Under this key a training checkpoint holds ``ClassifierSpec.to_dict()``."""

MODEL_PREFIX = "model."
"""The model's place in the LightningModule, hence the prefix of its weights in a training checkpoint."""

Weights = Literal["average", "raw"]
TaskName = Literal["classification", "fine_grained", "reid", "mae", "object_discovery"]


@dataclass(frozen=True)
class ClassifierSpec:
    """All that is needed, beside the weights, to build a trained model and to feed it pictures.

    Attributes:
        model: name of the architecture in timm's registry.
        model_kwargs: further arguments of ``timm.create_model``, plain values.
        num_classes: width of the head.
        class_names: one name per output of the head, in its order; empty where they are not known.
        preprocessing: ``input_size`` (channels, height, width), ``mean``, ``std``, ``interpolation``, ``crop_pct``
            and ``crop_mode``, as timm's data configuration has them; for sequences of pixels also ``sequence`` and
            ``permutation_seed``, as ``--data`` takes them (``input_size`` is then that of the picture).
        dataset: name of the data set that it was trained on, as ``--data.name`` takes it.
        task: what it was trained for, as ``--task`` takes it. Models for re-identification and pretrained encoders
            (``mae``, ``object_discovery``) give features and have no classes; ``class_names`` are then the identities
            or classes of the training pictures.
    """

    model: str
    model_kwargs: dict[str, Any]
    num_classes: int
    class_names: list[str]
    preprocessing: dict[str, Any]
    dataset: str
    task: TaskName = "classification"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values (str, int, float, bool, None, list, dict), which ``weights_only=True`` loads.

        Raises:
            TypeError: a value in it is not plain; the message names the field.
        """
        values = asdict(self)
        return {name: _plain(value, name) for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClassifierSpec":
        """Inverse of :meth:`to_dict`; keys that a later version may have added are ignored.

        Raises:
            ValueError: a key is missing, other than one that an earlier version did not write, or a value is not of
                its kind.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"the checkpoint's description of its model is a {type(values).__name__}")  # noqa: TRY004
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in values]
        if missing:
            raise ValueError(f"the checkpoint's description of its model lacks {', '.join(missing)}")
        for name, kind in _KINDS.items():
            if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
                raise ValueError(f"the checkpoint's description of its model has {name} {values[name]!r}")
        size = values["preprocessing"].get("input_size")
        if not (isinstance(size, list | tuple) and len(size) == 3 and all(type(x) is int and x > 0 for x in size)):
            raise ValueError(f"the checkpoint's description of its model has an input_size of {size!r}")
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        # Earlier versions kept class folders' names as they were, bytes that are not UTF-8 included.
        return cls(**known | {"class_names": [as_text(str(name)) for name in known["class_names"]]})


_KINDS: dict[str, type] = {
    "model": str,
    "model_kwargs": dict,
    "num_classes": int,
    "class_names": list,
    "preprocessing": dict,
    "dataset": str,
    "task": str,
}


def create_classifier(name: str, **kwargs: Any) -> nn.Module:
    """``timm.create_model`` with errors for users.

    Args:
        name: a registered model, with or without a pretrained tag, or ``hf-hub:…`` or ``local-dir:…``.
        **kwargs: arguments of ``timm.create_model`` and of the model.

    Raises:
        ValueError: an unknown name (the message lists near matches), an argument that the model does not take, or
            pretrained weights that do not exist or cannot be fetched.
    """
    check_model_name(name)
    try:
        return timm.create_model(name, **kwargs)
    except Exception as error:
        if match := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            raise ValueError(f"model {name!r} takes no argument {match[1]!r}") from error
        # A size that the model cannot have, a folder that is not there, weights that cannot be fetched; and timm's own
        # words for a missing or unknown pretrained tag. Anything else is not known to be the user's,
        if isinstance(error, ValueError | OSError) or (isinstance(error, RuntimeError) and "retrained" in str(error)):
            raise ValueError(f"model {name!r}: {error}") from error
        # unless it comes from a folder or repository with whatever in it.
        if _is_elsewhere(name):
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
            raise ValueError(f"model {name!r}: its config.json or weights are of no use ({reason})") from error
        raise


def check_model_name(name: str) -> None:
    """Checks that timm knows the architecture ``name``; ``hf-hub:…`` and ``local-dir:…`` are left to timm.

    Raises:
        ValueError: an unknown name; the message lists near matches.
    """
    if not _is_elsewhere(name) and not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=5, cutoff=0.6)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all"
        raise ValueError(f"unknown model {name!r}: {hint}")


def _is_elsewhere(name: str) -> bool:
    """Whether timm looks for the architecture in a folder or a repository."""
    return bool({":", "/"} & set(name))


def describe_classifier(model: nn.Module, name: str, **kwargs: Any) -> ClassifierSpec:
    """The spec of a model that was not trained here: timm's preprocessing for it, and names of classes if it has some.

    Args:
        model: what ``create_classifier(name, **kwargs)`` built.
        name: its name.
        **kwargs: the arguments that it was built with.
    """
    preprocessing = adapt_preprocessing(model_preprocessing(model), kwargs)
    num_classes = int(getattr(model, "num_classes", 0))
    kwargs = {key: value for key, value in kwargs.items() if key not in ("pretrained", "num_classes")}
    class_names = label_names(getattr(model, "pretrained_cfg", {}))
    if len(class_names) != num_classes:
        class_names = []
    return ClassifierSpec(name, kwargs, num_classes, class_names, preprocessing, dataset="")


def label_names(pretrained_cfg: Mapping[str, Any]) -> list[str]:
    """Return the class names that weights come with, in the order of the outputs; empty where they have none."""
    names: Any = pretrained_cfg.get("label_names") or ()
    if isinstance(names, Mapping):  # from numbers, which JSON makes strings of
        names = [names[number] for number in sorted(names, key=int)]
    return [str(name) for name in names]


def describe_weights(
    name: str, pretrained: bool, checkpoint_path: str | Path | None, model_kwargs: Mapping[str, Any]
) -> ClassifierSpec | None:
    """Return the spec of the weights that a training or evaluation starts from, without loading them.

    Args:
        name: the model, as in `create_classifier`.
        pretrained: whether its published weights are asked for.
        checkpoint_path: a file of weights, which is loaded over them.
        model_kwargs: further arguments of the model.

    Returns:
        None where weights are random.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown model, or a file that is not a checkpoint.
    """
    if checkpoint_path is None and not pretrained:
        return None
    checkpoint = {} if checkpoint_path is None else read_checkpoint(Path(checkpoint_path))
    if stored := stored_spec(checkpoint, checkpoint_path or ""):
        return replace(stored, preprocessing=adapt_preprocessing(stored.preprocessing, model_kwargs))
    kwargs = {key: value for key, value in model_kwargs.items() if key not in ("pretrained", "checkpoint_path")}
    with torch.device("meta"):
        model = create_classifier(name, **kwargs)
    spec = describe_classifier(model, name, pretrained=pretrained, **kwargs)
    if checkpoint_path is None:
        return spec
    width = _head_width(model, _select_weights(checkpoint, "average"))
    return replace(spec, class_names=[], num_classes=width or spec.num_classes)


def load_classifier(
    path: str | Path,
    weights: Weights = "average",
    model_name: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, ClassifierSpec]:
    """Builds the classifier that a file holds, in evaluation mode on the CPU.

    Args:
        path: a checkpoint that ``train.py`` wrote; together with ``model_name`` also a ``.safetensors`` file, a
            ``torch.save``d state dict or a checkpoint of timm's training script.
        weights: where the run kept an exponential moving average, whether to take that or the weights as trained;
            without one the two are the same.
        model_name: the architecture, for files that do not say it. It gets as many classes as the file's head has.
        model_kwargs: further arguments of that architecture.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, a damaged one, one that does not say its architecture where ``model_name`` does
            not either, or says one that is to be read from elsewhere; or weights that do not fit the architecture or
            are not finite.
    """
    checkpoint = read_checkpoint(Path(path))
    state_dict = _select_weights(checkpoint, weights)
    stored = stored_spec(checkpoint, path)
    if stored is not None and model_name is None:
        require_own_model(stored, path)
    if stored is not None and model_name in (None, stored.model) and not model_kwargs:
        spec = stored
        # Every weight comes from the file, so nothing is to be fetched.
        kwargs = {**spec.model_kwargs, "pretrained": False, "num_classes": spec.num_classes}
        model = create_classifier(spec.model, **kwargs)
    elif model_name is not None:
        kwargs = dict(model_kwargs or {})
        model = create_classifier(model_name, **kwargs)
        num_classes = _head_width(model, state_dict) if stored is None else stored.num_classes
        if "num_classes" not in kwargs and num_classes not in (None, getattr(model, "num_classes", None)):
            model = create_classifier(model_name, **kwargs, num_classes=num_classes)
        spec = _described_by_file(describe_classifier(model, model_name, **kwargs), stored, kwargs)
    elif stored is None:
        raise ValueError(
            f"{path} does not say which model it holds: a plain state dict or .safetensors file loads with "
            "--model NAME --checkpoint FILE together"
        )
    else:
        raise ValueError(f"{path} says how its {stored.model} is built: arguments for the model need --model NAME, too")
    _check_fit(model, state_dict, path, spec.model, stored.model if stored else "")
    _check_finite(state_dict, path)
    model.load_state_dict(state_dict)
    return model.eval(), spec


def _described_by_file(
    spec: ClassifierSpec, stored: ClassifierSpec | None, model_kwargs: Mapping[str, Any]
) -> ClassifierSpec:
    """Return the spec of an architecture with what the file says about its weights, class names above all.

    Those that the architecture's tag comes with belong to other weights.
    """
    if stored is None:
        return replace(spec, class_names=[])
    names = stored.class_names if stored.num_classes == spec.num_classes else []
    preprocessing = adapt_preprocessing(stored.preprocessing, model_kwargs)
    return replace(spec, class_names=names, preprocessing=preprocessing)


def load_plain(path: str | Path, model_name: str, model_kwargs: Mapping[str, Any] | None = None) -> nn.Module:
    """:func:`load_classifier` for those who know the architecture and want nothing but the model."""
    return load_classifier(path, model_name=model_name, model_kwargs=model_kwargs)[0]


def load_beside(
    path: str | Path, prefix: str, weights: Weights = "average"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint that ``train.py`` wrote holds beside the model.

    Args:
        path: the file, of which :func:`load_classifier` has read the model.
        prefix: what the names of the weights begin with, ``slots.``.
        weights: an exponential moving average where there is one, or the weights as trained.

    Returns:
        These weights, without the prefix, and the options that the LightningModule was built with.
    """
    checkpoint = read_checkpoint(Path(path))
    return _select_weights(checkpoint, weights, prefix), dict(checkpoint["hyper_parameters"])


def stored_spec(checkpoint: Mapping[str, Any], path: str | Path) -> ClassifierSpec | None:
    """What a checkpoint says about its model, but for other files to take weights from; None where it says nothing.

    Args:
        checkpoint: what :func:`read_checkpoint` gave.
        path: the file, for errors.

    Raises:
        ValueError: what it says makes no sense.
    """
    if METADATA_KEY not in checkpoint:
        return None
    try:
        spec = ClassifierSpec.from_dict(checkpoint[METADATA_KEY])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    # An argument of timm.create_model.
    kwargs = {key: value for key, value in spec.model_kwargs.items() if key != "checkpoint_path"}
    return replace(spec, model_kwargs=kwargs)


def require_own_model(spec: ClassifierSpec, path: str | Path, option: str = "--model") -> None:
    """Checks that a checkpoint's architecture is of the registry: a file must not have other places read.

    Args:
        spec: what it says about itself.
        path: the file.
        option: by which a user, who may trust the place, names it.

    Raises:
        ValueError: it names a folder or a repository.
    """
    if _is_elsewhere(spec.model):
        raise ValueError(
            f"{path} has its architecture from {spec.model!r}, which is not read because a file says so: "
            f"if you trust that place, pass {option} {spec.model}"
        )


def _select_weights(checkpoint: Mapping[str, Any], weights: Weights, prefix: str = MODEL_PREFIX) -> dict[str, Tensor]:
    """The classifier's state dict from a training checkpoint of Lightning or timm, or from a bare state dict."""
    averaged, raw = ("state_dict_ema", "model_ema"), ("current_model_state",)
    preferred = averaged if weights == "average" else raw
    key = next((key for key in (*preferred, "state_dict", "model") if isinstance(checkpoint.get(key), Mapping)), None)
    held = {
        name: value
        for name, value in (checkpoint[key] if key else checkpoint).items()
        if isinstance(value, Tensor) and isinstance(name, str)
    }
    if key in ("state_dict", "current_model_state") and any(name.startswith(prefix) for name in held):
        # The rest is the LightningModule's own: losses, metrics.
        held = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
    # torch.compile and DistributedDataParallel wrap the model and prefix every name.
    return {re.sub(r"^(_orig_mod\.|module\.)+", "", name): value for name, value in held.items()}


def _head_width(model: nn.Module, state_dict: Mapping[str, Tensor]) -> int | None:
    """Number of classes of the head in ``state_dict``, where the model says which key that is."""
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier")
    name = classifier if isinstance(classifier, str) else next(iter(classifier or ()), None)
    weight = state_dict.get(f"{name}.weight")
    return None if weight is None else weight.shape[0]


def _check_fit(
    model: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path, model_name: str, trained_as: str
) -> None:
    """What a strict ``load_state_dict`` checks, in one line that names the first key of each kind that does not fit."""
    own = model.state_dict()
    reshaped = [
        f"{name} ({_shape(value)} in the file, {_shape(own[name])} in the model)"
        for name, value in state_dict.items()
        if name in own and own[name].shape != value.shape
    ]
    findings = [
        _first("missing in the file", [name for name in own if name not in state_dict]),
        _first("unknown to the model", [name for name in state_dict if name not in own]),
        _first("of another shape", reshaped),
    ]
    if any(findings):
        origin = f", trained as {trained_as}," if trained_as != model_name and trained_as else ""
        raise ValueError(
            f"{path}{origin} does not fit {model_name}: {'; '.join(filter(None, findings))}. "
            "Name the architecture and the arguments that it was trained with"
        )


def _check_finite(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    bad = [name for name, value in state_dict.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise ValueError(f"{path} holds weights that are not finite, first {bad[0]}: take an earlier checkpoint")


def _first(kind: str, keys: Sequence[str]) -> str:
    return f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {kind}, first {keys[0]}" if keys else ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _plain(value: Any, where: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where} must be a plain value to go into a checkpoint, got {type(value).__name__}: {value!r}")
