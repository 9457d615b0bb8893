"""What a command of train.py takes from the weights that it starts from, unless options say otherwise."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from visionattn.cli.errors import UsageError
from visionattn.data import ImageClassificationData
from visionattn.data.module import ImageData
from visionattn.tasks import TASKS, TrainingTask
from visionattn.tasks.checkpoint import ClassifierSpec, describe_weights
from visionattn.tasks.preprocessing import describe_preprocessing


def start_from(
    options: Any, task: type[TrainingTask], command: str, resumed: ClassifierSpec | None
) -> ClassifierSpec | None:
    """Take preprocessing and the width of an evaluated head from the weights that a command starts from.

    Args:
        options: those of the command, which are filled in.
        task: the class of the task.
        command: fit, validate, test or predict.
        resumed: what the checkpoint of ``--ckpt_path`` says, if there is one.

    Returns:
        What is known of the weights; None where training starts from scratch.

    Raises:
        UsageError: a command that would evaluate random weights, or a head of another width than the weights have.
        FileNotFoundError: no such file of weights.
        ValueError: an unknown model, a file that is not a checkpoint, or images that are not square.
    """
    spec = _find_weights(options.model, options.data, task, command) if resumed is None else resumed
    if spec is not None:
        # What was trained for the same task decides all; other weights decide what the task leaves to them.
        same = bool(spec.dataset) and spec.task == task.kind
        adopt_preprocessing(
            options.data, spec.preprocessing, spec.preprocessing if same else task.data_class.weights_decide
        )
    return spec


def _find_weights(model: Any, data: Any, task: type[TrainingTask], command: str) -> ClassifierSpec | None:
    """Return the spec of the weights that options name; an evaluated head keeps its width."""
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


def adopt_model(options: Any, spec: ClassifierSpec) -> None:
    """Take the model, and unless another one is given the data set, from a checkpoint."""
    if not options.data.root or spec.task == "reid":
        options.data.name = options.data.name or spec.dataset
    model = {"name": spec.model, "num_classes": spec.num_classes, "model_kwargs": spec.model_kwargs}
    for key, value in model.items():
        if key in options.model:
            options.model[key] = value
    options.model.pretrained = False


def adopt_preprocessing(data: Any, wanted: Mapping[str, Any], keys: Collection[str]) -> None:
    """Fill in the preprocessing that the options of the data do not give.

    Args:
        data: the options; those that are not given are None.
        wanted: preprocessing of a spec.
        keys: the parts of it that are taken.

    Raises:
        ValueError: images that are not square, where the data have one size for both edges.
    """
    channels, height, width = wanted["input_size"]
    values = {key: list(value) if key in ("mean", "std") else value for key, value in wanted.items() if key in keys}
    if "input_size" in keys:
        values |= {"img_size": height, "image_size": height, "height": height, "width": width, "in_chans": channels}
        edge = next((key for key in ("img_size", "image_size") if key in data), None)
        if height != width and edge and data[edge] is None and not data.get("sequence"):
            raise ValueError(f"the weights want {height}×{width} images, not square ones: choose --data.{edge} N")
    for key, value in values.items():
        if key in data and data[key] is None:
            data[key] = value


def describe_start(spec: ClassifierSpec, data: ImageData, model: Any, resume: Path | None) -> str:
    """Return the line that says how images are prepared, and what decides it."""
    return describe_preprocessing(data.preprocessing, spec.preprocessing, str(resume or _origin(model)))


def match_classes(spec: ClassifierSpec, data: ImageData, *, fresh: bool) -> None:
    """Number classes by their names, as weights do.

    Args:
        spec: what is known of the weights.
        data: before ``setup``.
        fresh: whether a training starts, whose head may be another one.
    """
    if fresh:
        data.preferred_classes = spec.class_names if _has_head(spec) else []
    elif isinstance(data, ImageClassificationData) and _has_head(spec):
        data.expect_head(spec.class_names, spec.num_classes)
    else:
        data.expect_classes(spec.class_names)


def _has_head(spec: ClassifierSpec) -> bool:
    """Return whether the class names of a spec are those of the model's outputs."""
    return spec.task in TASKS and TASKS[spec.task].has_head


def _origin(model: Any) -> str:
    """Return the name of the weights that options of the model name."""
    return str(model.checkpoint_path or f"{model.name} (pretrained)")
