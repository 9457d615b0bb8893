"""Checkpoints: what one says about itself, and how to build the model that it holds."""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

import visionattn.models  # noqa: F401  registers this project's models with timm
from visionattn.checks import reason
from visionattn.files import WEIGHT_SOURCES, as_text
from visionattn.suggestions import suggest
from visionattn.tasks.preprocessing import adapt_preprocessing, model_preprocessing
from visionattn.training.checkpoints.files import read_checkpoint
from visionattn.training.fitting import adapt_weights, head_width, load_weights

METADATA_KEY = "visionattn"
"""Under this key a training checkpoint holds ``ClassifierSpec.to_dict()``."""

AVERAGE_BESIDE = "current_model_state"
"""Under this key Lightning keeps the raw weights where the state dict is their moving average."""

NUMPY_SUFFIXES = (".npz", ".npy")
"""Files of weights that models of timm read by themselves."""

MODEL_PREFIX = "model."
"""The model's place in the LightningModule, hence the prefix of its weights in a training checkpoint."""

Weights = Literal["average", "raw"]


@dataclass(frozen=True)
class ClassifierSpec:
    """All that is needed, beside the weights, to build a trained model and to feed it images.

    Attributes:
        model: name of the architecture in timm's registry.
        model_kwargs: further arguments of ``timm.create_model``, plain values.
        num_classes: width of the head.
        class_names: one name per output of the head, in its order; empty where they are not known.
        preprocessing: ``input_size`` (channels, height, width), ``mean``, ``std``, ``interpolation``, ``crop_pct``
            and ``crop_mode``, as timm's data configuration has them; for sequences of pixels also ``sequence`` and
            ``permutation_seed``, as ``--data`` takes them (``input_size`` is then that of the image).
        dataset: name of the data set that it was trained on, as ``--data.name`` takes it.
        task: what it was trained for, as ``--task`` takes it. Models for re-identification and pretrained encoders
            (``mae``, ``object_discovery``) give features and have no classes; ``class_names`` are then the identities
            or classes of the training images.
    """

    model: str
    model_kwargs: dict[str, Any]
    num_classes: int
    class_names: list[str]
    preprocessing: dict[str, Any]
    dataset: str
    task: str = "classification"

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
    _check_overlay(kwargs)
    try:
        return timm.create_model(name, **kwargs)
    except Exception as error:
        if match := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            raise ValueError(f"model {name!r} takes no argument {match[1]!r}") from error
        if str(error).startswith("Error(s) in loading state_dict"):
            keys = textwrap.shorten(str(error).partition(":")[2], 200)
            raise ValueError(f"model {name!r}: its weights do not fit the arguments that were given: {keys}") from error
        # A size that the model cannot have, a folder that is not there, weights that cannot be fetched; and timm's own
        # words for a missing or unknown pretrained tag. Anything else is not known to be the user's,
        if isinstance(error, ValueError | OSError) or (isinstance(error, RuntimeError) and "retrained" in str(error)):
            raise ValueError(f"model {name!r}: {reason(error)}") from error
        # unless it comes from a folder or repository with whatever in it.
        if _is_elsewhere(name):
            kind = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
            raise ValueError(f"model {name!r}: its config.json or weights are of no use ({kind})") from error
        raise


def _check_overlay(kwargs: Mapping[str, Any]) -> None:
    """Looks at a file of weights before timm does, whose errors do not name it.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no file of weights, or a damaged one.
    """
    file = (kwargs.get("pretrained_cfg_overlay") or {}).get("file")
    if kwargs.get("pretrained") and file and Path(file).suffix not in NUMPY_SUFFIXES:
        read_checkpoint(Path(file))


def check_model_name(name: str) -> None:
    """Checks that timm knows the architecture ``name``; ``hf-hub:…`` and ``local-dir:…`` are left to timm.

    Raises:
        ValueError: an unknown name; the message lists near matches.
    """
    if not _is_elsewhere(name) and not timm.is_model(name):
        near = suggest(name.partition(".")[0], timm.list_models(), count=5).removeprefix("; ")
        raise ValueError(f"unknown model {name!r}: {near or 'timm.list_models() lists all'}")


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
    pretrained = bool(kwargs.get("pretrained"))
    kwargs = {key: value for key, value in kwargs.items() if key not in ("pretrained", "num_classes")}
    # What timm's configuration says of classes holds for the head that comes with it.
    names = label_names(getattr(model, "pretrained_cfg", {}))
    named = len(names) == num_classes and weights_origin(pretrained, kwargs) == "pretrained"
    return ClassifierSpec(name, kwargs, num_classes, names if named else [], preprocessing, dataset="")


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
    width = head_width(model, _select_weights(checkpoint, "average"))
    return replace(spec, class_names=[], num_classes=width or spec.num_classes)


def weights_origin(
    pretrained: bool,
    model_kwargs: Mapping[str, Any] | None,
    checkpoint: Path | None = None,
    weights: Weights = "average",
) -> str:
    """Where weights come from, as results and model cards say it.

    Args:
        pretrained: whether the model was built with weights that timm finds.
        model_kwargs: what else it was built with.
        checkpoint: the file that its weights were read from instead.
        weights: which of that file's.

    Returns:
        ``average`` or ``raw`` of a checkpoint of ``train.py``, ``pretrained`` for weights that timm knows for the name,
        ``file`` for those of any other file or address, ``random`` for none.
    """
    if checkpoint is not None:
        content = read_checkpoint(checkpoint)
        return "file" if METADATA_KEY not in content else weights if AVERAGE_BESIDE in content else "raw"
    kwargs = model_kwargs or {}
    if kwargs.get("checkpoint_path") or (
        pretrained and WEIGHT_SOURCES & set(kwargs.get("pretrained_cfg_overlay") or {})
    ):
        return "file"
    return "pretrained" if pretrained else "random"


def load_classifier(
    path: str | Path,
    weights: Weights = "average",
    model_name: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, ClassifierSpec]:
    """Builds the classifier that a file holds, in evaluation mode on the CPU.

    Args:
        path: a checkpoint that ``train.py`` wrote; together with ``model_name`` also a ``.safetensors`` file, a
            ``torch.save``d state dict or a checkpoint of another training script, see
            :func:`~visionattn.training.fitting.adapt_weights`.
        weights: where the run kept an exponential moving average, whether to take that or the weights as trained;
            without one the two are the same.
        model_name: the architecture, for files that do not say it. It gets as many classes as the file's head has; for
            a file without a head, it gives features.
        model_kwargs: further arguments of that architecture.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, a damaged one, one that does not say its architecture where ``model_name`` does
            not either, or says one that is to be read from elsewhere; or weights that do not fit the architecture or
            are not finite.
    """
    checkpoint = read_checkpoint(Path(path))
    held = _select_weights(checkpoint, weights)
    stored = stored_spec(checkpoint, path)
    if stored is not None and model_name is None:
        require_own_model(stored, path)
    if stored is not None and model_name in (None, stored.model) and not model_kwargs:
        # Every weight comes from the file, so nothing is to be fetched.
        kwargs = {**stored.model_kwargs, "pretrained": False, "num_classes": stored.num_classes}
        model, spec = create_classifier(stored.model, **kwargs), stored
        load_weights(model, held, path, stored.model)
    elif model_name is not None:
        model, spec = _load_as(model_name, dict(model_kwargs or {}), held, path, stored)
    elif stored is None:
        raise ValueError(
            f"{path} does not say which model it holds: a plain state dict or .safetensors file loads with "
            "--model NAME --checkpoint FILE together"
        )
    else:
        raise ValueError(f"{path} says how its {stored.model} is built: arguments for the model need --model NAME, too")
    return model.eval(), spec


def _load_as(
    name: str, kwargs: dict[str, Any], held: Mapping[str, Tensor], path: str | Path, stored: ClassifierSpec | None
) -> tuple[nn.Module, ClassifierSpec]:
    """The model of a name with the weights of a file that was not written for just this model."""
    body = create_classifier(name, **{**kwargs, "num_classes": 0})
    adapted = adapt_weights(held, body, path)
    width = head_width(body, adapted)
    model = create_classifier(name, **({} if width is None else {"num_classes": width}) | kwargs)
    load_weights(model, adapted, path, name, stored.model if stored else "", exact=False)
    return model, _described_by_file(describe_classifier(model, name, **kwargs), stored, kwargs)


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
    """The classifier's state dict from a training checkpoint of Lightning, timm or DINO, or from a bare state dict."""
    averaged, raw = ("state_dict_ema", "model_ema", "teacher"), (AVERAGE_BESIDE, "student")
    preferred = averaged if weights == "average" else raw
    key = next((key for key in (*preferred, "state_dict", "model") if isinstance(checkpoint.get(key), Mapping)), None)
    held = {
        name: value
        for name, value in (checkpoint[key] if key else checkpoint).items()
        if isinstance(value, Tensor) and isinstance(name, str)
    }
    if key in ("state_dict", AVERAGE_BESIDE) and any(name.startswith(prefix) for name in held):
        # The rest is the LightningModule's own: losses, metrics.
        held = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
    # torch.compile and DistributedDataParallel wrap the model and prefix every name.
    return {re.sub(r"^(_orig_mod\.|module\.)+", "", name): value for name, value in held.items()}


def _plain(value: Any, where: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where} must be a plain value to go into a checkpoint, got {type(value).__name__}: {value!r}")
