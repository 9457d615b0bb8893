"""Options of a training that follow from the weights it starts from, unless they are given."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from visionattn.data import ImageClassificationData
from visionattn.data.module import ImageData
from visionattn.data.own_transform import warn_of_own_transform
from visionattn.errors import UsageError
from visionattn.tasks import TASKS, TrainingTask
from visionattn.training import ModelSpec, describe_weights
from visionattn.training.preprocessing import describe_preprocessing


def start_from(options: Any, task: type[TrainingTask], command: str, resumed: ModelSpec | None) -> ModelSpec | None:
    """Fill in preprocessing, and the width of an evaluated head, from the weights that a command starts from.

    ``resumed`` is the spec in the checkpoint of ``--ckpt_path``, if there is one. Return the spec of the weights, or
    None if training starts from scratch.

    Raises:
        UsageError: the command would evaluate random weights, or a head of another width than the weights have.
        FileNotFoundError: no such file of weights.
        ValueError: an unknown model, a file that is not a checkpoint, or images that are not square.
    """
    spec = _find_weights(options.model, options.data, task, command) if resumed is None else resumed
    if spec is not None:
        # Weights of the same task decide everything; other weights decide what the data class leaves to them.
        same = bool(spec.dataset) and spec.task == task.kind
        keys = spec.preprocessing if same else task.data_class.weights_decide
        adopt_preprocessing(options.data, spec.preprocessing, keys)
        warn_of_own_transform(spec.preprocessing, options.data.get("transform"))
    return spec


def _find_weights(model: Any, data: Any, task: type[TrainingTask], command: str) -> ModelSpec | None:
    """Return the spec of the weights in the options; set the width of an evaluated head."""
    if command != "fit" and not task.model_alone:
        raise UsageError(f"nothing to {command}: give --ckpt_path FILE, a checkpoint of --task {task.kind}")
    channels = data.get("in_chans")
    kwargs = ({} if channels is None else {"in_chans": channels}) | (model.model_kwargs or {})
    spec = describe_weights(model.name, model.pretrained, model.checkpoint_path, kwargs)
    if command == "fit":
        return spec
    if spec is None:
        raise UsageError(
            f"nothing to {command}, for the weights of {model.name} are random: give --ckpt_path FILE, or --model.name "
            "NAME with --model.pretrained true or --model.checkpoint_path FILE"
        )
    if task.has_head and not _has_head(spec):
        raise UsageError(f"nothing to {command}: {_origin(model)}, of --task {spec.task}, has no head: fit one first")
    if "num_classes" in model:
        if model.num_classes not in (None, spec.num_classes):
            raise UsageError(
                f"--model.num_classes {model.num_classes}: the weights of {_origin(model)} have {spec.num_classes} "
                f"outputs: leave it out to {command}"
            )
        model.num_classes = spec.num_classes
    return spec


def adopt_model(options: Any, spec: ModelSpec) -> None:
    """Take the model from a checkpoint, and also the data set unless another one is given."""
    if not (options.data.get("root") or options.data.get("labels")) or spec.task == "reid":
        options.data.name = options.data.name or spec.dataset
    model = {"name": spec.model, "num_classes": spec.num_classes, "model_kwargs": spec.model_kwargs}
    for key, value in model.items():
        if key in options.model:
            options.model[key] = value
    options.model.pretrained = False


def adopt_preprocessing(data: Any, wanted: Mapping[str, Any], keys: Collection[str]) -> None:
    """Fill in the data options that are not given, which are None, from ``keys`` of the preprocessing of a spec.

    Raises:
        ValueError: images are not square, but those of the data are.
    """
    channels, height, width = wanted["input_size"]
    values = {key: list(value) if key in ("mean", "std") else value for key, value in wanted.items() if key in keys}
    if "input_size" in keys:
        size = height if height == width else [height, width]
        values |= {"img_size": size, "image_size": height, "height": height, "width": width, "in_chans": channels}
        if height != width and "image_size" in data and data["image_size"] is None:
            raise ValueError(f"the weights want {height}×{width} images, not square ones: choose --data.image_size N")
    for key, value in values.items():
        if key in data and data[key] is None:
            data[key] = value


def describe_start(spec: ModelSpec, data: ImageData, model: Any, resume: Path | None) -> str:
    """Return a line that says how images are prepared and why."""
    return describe_preprocessing(data.preprocessing, spec.preprocessing, str(resume or _origin(model)))


def match_classes(spec: ModelSpec, data: ImageData, *, fresh: bool) -> None:
    """Number the classes of the data by name, in the order of the weights; before ``setup`` of the data.

    If a ``fresh`` training starts, its head may differ.
    """
    if fresh:
        data.preferred_classes = spec.class_names if _has_head(spec) else []
    elif isinstance(data, ImageClassificationData) and _has_head(spec):
        data.expect_head(spec.class_names, spec.num_classes)
    else:
        data.expect_classes(spec.class_names)


def _has_head(spec: ModelSpec) -> bool:
    """Return whether the class names of a spec are those of the model's outputs."""
    return spec.task in TASKS and TASKS[spec.task].has_head


def _origin(model: Any) -> str:
    """Return a name for the weights in the model options."""
    return str(model.checkpoint_path or f"{model.name} (pretrained)")
