"""Description of the model in a checkpoint."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from visionattn.io import as_text
from visionattn.training.checkpoints.files import METADATA_KEY as METADATA_KEY
from visionattn.training.models import is_elsewhere


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a trained model and to feed it images, except its weights.

    Attributes:
        model: name of the architecture in timm's registry.
        model_kwargs: further arguments of ``create_model``, plain values.
        num_classes: width of the head.
        class_names: one name per output of the head, in its order; empty if they are unknown.
        preprocessing: ``input_size`` (channels, height, width), ``mean``, ``std``, ``interpolation``, ``crop_pct``
            and ``crop_mode``, as in timm's data configuration; for sequences of pixels also ``sequence`` and
            ``permutation_seed``, as ``--data`` takes them (``input_size`` is then that of the image).
        dataset: name of the training data, as ``--data.name`` takes it.
        task: kind of training, as ``--task`` takes it. Models for re-identification and pretrained encoders (``mae``,
            ``object_discovery``) give features and have no classes; ``class_names`` are then the identities or classes
            of the training images.
        multi_label: whether an image may have any number of the classes; logits then go through a sigmoid, not a
            softmax.
    """

    model: str
    model_kwargs: dict[str, Any]
    num_classes: int
    class_names: list[str]
    preprocessing: dict[str, Any]
    dataset: str
    task: str = "classification"
    multi_label: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (str, int, float, bool, None, list, dict), which ``weights_only=True`` loads.

        Raises:
            TypeError: a value is not plain; the message names the field.
        """
        return {name: _plain(value, name) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Return the spec of which :meth:`to_dict` gave ``values``; keys of later versions are ignored.

        Raises:
            ValueError: a key is missing that all versions wrote, or a value is of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"the checkpoint's description of its model is a {type(values).__name__}")  # noqa: TRY004
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in values]
        if missing:
            raise ValueError(f"the checkpoint's description of its model lacks {', '.join(missing)}")
        for name, hint in get_type_hints(cls).items():
            kind = get_origin(hint) or hint
            if name in values and not (
                isinstance(values[name], kind) and isinstance(values[name], bool) == (kind is bool)
            ):
                raise ValueError(f"the checkpoint's description of its model has {name} {values[name]!r}")
        size = values["preprocessing"].get("input_size")
        if not (isinstance(size, list | tuple) and len(size) == 3 and all(type(x) is int and x > 0 for x in size)):
            raise ValueError(f"the checkpoint's description of its model has an input_size of {size!r}")
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        # Earlier versions stored names of class folders as they were, including bytes that are not UTF-8.
        return cls(**known | {"class_names": [as_text(str(name)) for name in known["class_names"]]})


def stored_spec(checkpoint: Mapping[str, Any], path: str | Path) -> ModelSpec | None:
    """Return what a checkpoint says about its model, without references to other files; None if it says nothing.

    Raises:
        ValueError: the description makes no sense; the message names ``path``.
    """
    if METADATA_KEY not in checkpoint:
        return None
    try:
        spec = ModelSpec.from_dict(checkpoint[METADATA_KEY])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    # timm.create_model would load the file that this argument names.
    kwargs = {key: value for key, value in spec.model_kwargs.items() if key != "checkpoint_path"}
    return replace(spec, model_kwargs=kwargs)


def require_own_model(spec: ModelSpec, path: str | Path, option: str = "--model") -> None:
    """Check that a checkpoint's architecture is registered: a file must not cause other places to be read.

    Raises:
        ValueError: the architecture lies in a folder or a repository; users who trust it can name it by ``option``.
    """
    if is_elsewhere(spec.model):
        raise ValueError(
            f"{path} has its architecture from {spec.model!r}, which is not read because a file says so: "
            f"if you trust that place, pass {option} {spec.model}"
        )


def _plain(value: Any, where: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where} must be a plain value to go into a checkpoint, got {type(value).__name__}: {value!r}")
