"""Models from checkpoints and other files of weights, and descriptions of models without loading them."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from visionattn.io import WEIGHT_SOURCES
from visionattn.training.checkpoints.files import read_checkpoint
from visionattn.training.checkpoints.spec import METADATA_KEY, ModelSpec, require_own_model, stored_spec
from visionattn.training.fitting import adapt_weights, head_width, load_weights
from visionattn.training.models import create_model, is_elsewhere, label_names
from visionattn.training.preprocessing import adapt_preprocessing, model_preprocessing

AVERAGE_BESIDE = "current_model_state"
"""Key under which Lightning keeps the raw weights if ``state_dict`` is their moving average."""

CONFIG = "config.json"
"""File that describes the model in a folder or repository of a hub."""

MODEL_PREFIX = "model."
"""Prefix of the model's weights in a training checkpoint: its attribute in the LightningModule."""

Weights = Literal["average", "raw"]
"""The weights of a checkpoint to load: its exponential moving average if there is one, or the raw weights."""


def describe_model(model: nn.Module, name: str, **kwargs: Any) -> ModelSpec:
    """Return the spec of a model that was not trained here: timm's preprocessing, and its class names if known.

    ``model`` is what ``create_model(name, **kwargs)`` returned.
    """
    preprocessing = adapt_preprocessing(model_preprocessing(model), kwargs)
    num_classes = int(getattr(model, "num_classes", 0))
    pretrained = bool(kwargs.get("pretrained"))
    kwargs = {key: value for key, value in kwargs.items() if key not in ("pretrained", "num_classes")}
    # The class names in timm's configuration belong to the head that comes with the weights.
    names = label_names(getattr(model, "pretrained_cfg", {}))
    named = len(names) == num_classes and weights_origin(pretrained, kwargs) == "pretrained"
    multi_label = named and is_elsewhere(name) and _says_several_labels(name)
    return ModelSpec(name, kwargs, num_classes, names if named else [], preprocessing, "", multi_label=multi_label)


def _says_several_labels(name: str) -> bool:
    """Return whether ``visionattn export hub`` wrote that the model ``local-dir:…`` or ``hf-hub:…`` has several labels.

    timm has read the same ``config.json``, which is in the cache if it comes from a hub.
    """
    source, _, place = name.partition(":")
    repository, _, revision = place.partition("@")
    folder = source == "local-dir"
    file = Path(place) / CONFIG if folder else hf_hub_download(repository, CONFIG, revision=revision or None)
    written = json.loads(Path(file).read_text(encoding="utf-8")).get(METADATA_KEY)
    return isinstance(written, dict) and written.get("multi_label") is True


def describe_weights(
    name: str, pretrained: bool, checkpoint_path: str | Path | None, model_kwargs: Mapping[str, Any]
) -> ModelSpec | None:
    """Return the spec of the weights that a training or evaluation starts from, without loading them.

    Args:
        name: the model, as in `create_model`.
        pretrained: whether its published weights are used.
        checkpoint_path: a file of weights that replaces them.
        model_kwargs: further arguments of the model.

    Returns:
        The spec; None if weights are random.

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
        model = create_model(name, **kwargs)
    spec = describe_model(model, name, pretrained=pretrained, **kwargs)
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
    """Return where weights come from, as results and model cards say it.

    Args:
        pretrained: whether the model was built with weights that timm finds.
        model_kwargs: its other arguments.
        checkpoint: the file that its weights were read from instead.
        weights: which weights of that file.

    Returns:
        ``average`` or ``raw`` for a checkpoint of ``train.py``, ``pretrained`` for weights that timm knows for the
        name, ``file`` for any other file or address, ``random`` for none.
    """
    if checkpoint is not None:
        content = read_checkpoint(checkpoint)
        if not {METADATA_KEY, "state_dict"} <= content.keys():
            return "file"
        return weights if AVERAGE_BESIDE in content else "raw"
    kwargs = model_kwargs or {}
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if kwargs.get("checkpoint_path") or (pretrained and WEIGHT_SOURCES & set(overlay)):
        return "file"
    return "pretrained" if pretrained else "random"


def load_checkpoint(
    path: str | Path,
    weights: Weights = "average",
    model_name: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, ModelSpec]:
    """Build the model that a file holds, in evaluation mode on the CPU.

    Args:
        path: a checkpoint that ``train.py`` wrote, or a ``.safetensors`` file that describes its model; together with
            ``model_name`` also any other ``.safetensors`` file, a ``torch.save``d state dict or a checkpoint of another
            training script, see :func:`~visionattn.training.fitting.adapt_weights`.
        weights: for a run with an exponential moving average: the average or the raw weights. Without one, the two are
            the same.
        model_name: the architecture, for files that do not name it. The model gets as many classes as the head in the
            file; without a head in the file it gives features.
        model_kwargs: further arguments of that architecture.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a checkpoint or is damaged; neither the file nor ``model_name`` says the
            architecture, or the file says one outside the registry; weights do not fit or are not finite.
    """
    checkpoint = read_checkpoint(Path(path))
    held = _select_weights(checkpoint, weights)
    stored = stored_spec(checkpoint, path)
    if stored is not None and model_name is None:
        require_own_model(stored, path)
    if stored is not None and model_name in (None, stored.model) and not model_kwargs:
        # Every weight comes from the file, so nothing needs to be fetched.
        kwargs = {**stored.model_kwargs, "pretrained": False, "num_classes": stored.num_classes}
        model, spec = create_model(stored.model, **kwargs), stored
        load_weights(model, held, path, stored.model)
    elif model_name is not None:
        model, spec = _load_as(model_name, dict(model_kwargs or {}), held, path, stored)
    elif stored is None:
        raise ValueError(
            f"{path} does not say which model it holds: a plain state dict or .safetensors file loads with "
            "--model NAME --checkpoint FILE together, or FILE --architecture NAME"
        )
    else:
        raise ValueError(f"{path} says how its {stored.model} is built: arguments for the model also need --model NAME")
    return model.eval(), spec


def _load_as(
    name: str, kwargs: dict[str, Any], held: Mapping[str, Tensor], path: str | Path, stored: ModelSpec | None
) -> tuple[nn.Module, ModelSpec]:
    """Build a named model with the weights of a file that was not written for this very model."""
    body = create_model(name, **{**kwargs, "num_classes": 0})
    adapted = adapt_weights(held, body, path)
    width = head_width(body, adapted)
    model = create_model(name, **({} if width is None else {"num_classes": width}) | kwargs)
    load_weights(model, adapted, path, name, stored.model if stored else "", exact=False)
    spec = describe_model(model, name, **kwargs)
    # Class names and preprocessing of the architecture's tag belong to other weights.
    if stored is None:
        return model, replace(spec, class_names=[])
    spec = replace(spec, class_names=[], preprocessing=adapt_preprocessing(stored.preprocessing, kwargs))
    if stored.num_classes != spec.num_classes:
        return model, spec
    return model, replace(spec, class_names=stored.class_names, multi_label=stored.multi_label)


def load_plain(path: str | Path, model_name: str, model_kwargs: Mapping[str, Any] | None = None) -> nn.Module:
    """Return the model of :func:`load_checkpoint` for a known architecture."""
    return load_checkpoint(path, model_name=model_name, model_kwargs=model_kwargs)[0]


def load_beside(
    path: str | Path, prefix: str, weights: Weights = "average"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what a checkpoint of ``train.py`` holds beside the model.

    Args:
        path: the file.
        prefix: prefix of the names of the weights, e.g. ``slots.``, which the returned names lack.
        weights: an exponential moving average if there is one, or the raw weights.

    Returns:
        These weights, without the prefix, and the options that the LightningModule was built with.

    Raises:
        ValueError: the file has none, as a pruned model.
    """
    checkpoint = read_checkpoint(Path(path))
    if "hyper_parameters" not in checkpoint:
        raise ValueError(f"{path} holds a model alone: give a checkpoint of its training")
    return _select_weights(checkpoint, weights, prefix), dict(checkpoint["hyper_parameters"])


def _select_weights(checkpoint: Mapping[str, Any], weights: Weights, prefix: str = MODEL_PREFIX) -> dict[str, Tensor]:
    """Return the model's state dict from a checkpoint of Lightning, timm or DINO, or from a bare state dict."""
    averaged, raw = ("state_dict_ema", "model_ema", "teacher"), (AVERAGE_BESIDE, "student")
    preferred = averaged if weights == "average" else raw
    key = next((key for key in (*preferred, "state_dict", "model") if isinstance(checkpoint.get(key), Mapping)), None)
    held = {
        name: value
        for name, value in (checkpoint[key] if key else checkpoint).items()
        if isinstance(value, Tensor) and isinstance(name, str)
    }
    if key in ("state_dict", AVERAGE_BESIDE) and any(name.startswith(prefix) for name in held):
        # The rest belongs to the LightningModule: losses, metrics.
        held = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
    # torch.compile and DistributedDataParallel wrap the model and prefix every name.
    return {re.sub(r"^(_orig_mod\.|module\.)+", "", name): value for name, value in held.items()}
