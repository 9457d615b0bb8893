"""Models to evaluate: from a checkpoint, from a file of weights, or from timm's registry."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, overload

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from visionattn.data import image_transform
from visionattn.data.own_transform import warn_of_own_transform
from visionattn.errors import UsageError, UserError
from visionattn.training import ModelSpec, Weights, create_model, describe_model, load_checkpoint, weights_origin
from visionattn.training.models import check_model_name, has_weights

if TYPE_CHECKING:
    from visionattn.training.predictions import Prediction

HEAD = ".json"
"""Suffix of a head on a frozen backbone, as ``linear`` and ``probe --export`` write it."""
WEIGHT_FILES = (".bin", ".ckpt", HEAD, ".pt", ".pth", ".safetensors", ".tar")
"""Suffixes that no model's name has."""


@dataclass(frozen=True)
class Origin:
    """Origin of weights, as results say it.

    Attributes:
        checkpoint: the file, if there is one.
        weights: ``average`` or ``raw`` of a checkpoint of train.py, ``probe`` for a head on a frozen backbone, ``file``
            for any other file, ``pretrained`` for weights that timm knows, ``random`` for none.
    """

    checkpoint: str | None
    weights: str


class LoadedModel(NamedTuple):
    """A model that is ready for evaluation.

    Attributes:
        model: in evaluation mode, on the CPU.
        spec: its architecture, preprocessing and classes.
        origin: where its weights come from.
    """

    model: nn.Module
    spec: ModelSpec
    origin: Origin

    @property
    def name(self) -> str:
        """The checkpoint's path or the model's name, for messages."""
        return self.origin.checkpoint or self.spec.model

    def require_weights(self, work: str, *, head: bool = False) -> None:
        """Raise a UserError, "nothing to ``work``", if the weights are random, or those of the ``head`` are."""
        _require_weights(self.origin, self.name, work)
        known = (getattr(self.model, "pretrained_cfg", None) or {}).get("num_classes")
        if head and self.origin.weights == "pretrained" and known and self.spec.num_classes not in (0, known):
            raise UserError(
                f"nothing to {work}, for the head of {self.name} is random: its weights have {known} outputs, not "
                f"{self.spec.num_classes}; leave num_classes out"
            )

    def transform(self) -> Callable[[Any], Tensor]:
        """Return the transform from an image to a normalised tensor [C, H, W], as the weights want it.

        The image is as `visionattn.data.read_image` reads it, in RGB; for models of other than 1 or 3 channels, an
        array [C, H, W]. A transform of the user's own is not imported: a warning says so.
        """
        warn_of_own_transform(self.spec.preprocessing, None)
        return image_transform(self.spec.preprocessing)

    @overload
    def predict(self, images: Image.Image, **options: Any) -> "Prediction": ...
    @overload
    def predict(self, images: Sequence[str | Path] | Sequence[Image.Image], **options: Any) -> list["Prediction"]: ...
    @overload
    def predict(self, images: str | Path, **options: Any) -> "Prediction | list[Prediction]": ...
    def predict(self, images: Any, **options: Any) -> Any:
        """Predict the classes of images, as `visionattn.evaluation.predict`, which lists the options.

        Args:
            images: an image in memory or its file; or several, in a list or a folder.
            **options: ``topk=5``, ``threshold``, ``device="auto"``, ``batch_size``, ``on_error``, ….

        Returns:
            A `Prediction` with ``classes`` and their ``probabilities``; of several images a list.
        """
        from visionattn.evaluation.prediction import predict

        found = list(predict(self, images, **options))
        is_one = isinstance(images, Image.Image) or (isinstance(images, str | Path) and not Path(images).is_dir())
        return found[0] if is_one else found


@dataclass(frozen=True)
class ModelSource:
    """A model and its weights, by name.

    Args:
        checkpoint: file that train.py wrote, or a head (.json) of ``linear`` or ``probe``; together with ``model`` also
            a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: fetch the weights that are published for the model.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.

    Raises:
        UsageError: neither a checkpoint nor a model, or both a checkpoint and published weights.
    """

    checkpoint: Path | None = None
    model: str | None = None
    pretrained: bool = False
    model_kwargs: Mapping[str, Any] | None = None
    weights: Weights = "average"

    def __post_init__(self) -> None:
        if self.checkpoint is not None and self.pretrained:
            raise UsageError("--pretrained and --checkpoint name different weights: give one of them")
        if self.checkpoint is None and self.model is None:
            raise UsageError("nothing to evaluate: give --checkpoint FILE, or --model NAME --pretrained")
        if self._is_head and (self.model or self.model_kwargs):
            raise UsageError(f"{self.checkpoint} names its backbone: leave out the model and its arguments")

    @property
    def _is_head(self) -> bool:
        return self.checkpoint is not None and self.checkpoint.suffix == HEAD

    @property
    def origin(self) -> Origin:
        """Origin of the weights; reads the checkpoint."""
        if self._is_head:
            return Origin(str(self.checkpoint), "probe")
        weights = weights_origin(self.pretrained, self.model_kwargs, self.checkpoint, self.weights)
        return Origin(None if self.checkpoint is None else str(self.checkpoint), weights)

    def load(self, work: str = "", *, remedy: str = "") -> LoadedModel:
        """Build the model, in evaluation mode on the CPU; warn if its weights are random.

        Args:
            work: work that needs trained weights, such as "predict"; random ones are then an error.
            remedy: end of that error, with a further remedy of this work.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: an unknown model, random weights, or a checkpoint that is damaged or does not fit.
        """
        if work and self.model is not None and self.checkpoint is None:
            check_model_name(self.model)
            _require_weights(self.origin, self.model, work, remedy)
        return self._load(self.model_kwargs or {})

    def load_frozen(self, seed: int = 0) -> LoadedModel:
        """Build the model without its classifier; see `load` for errors.

        Args:
            seed: for random weights, so that cached features of such a model are found again.
        """
        if self._is_head:
            raise UsageError(
                f"{self.checkpoint} is a head on a frozen backbone: give the backbone, by its name or file"
            )
        kwargs = self.model_kwargs or {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            loaded = self._load(kwargs if self.checkpoint else {"num_classes": 0, **kwargs})
        if getattr(loaded.model, "num_classes", 0):
            model: Any = loaded.model
            model.reset_classifier(0)
        return loaded

    def _load(self, kwargs: Mapping[str, Any]) -> LoadedModel:
        if self._is_head:
            from visionattn.probing.classifier import load_probe

            classifier = load_probe(cast(Path, self.checkpoint))
            return LoadedModel(classifier, classifier.spec, self.origin)
        if self.checkpoint is not None:
            return LoadedModel(*load_checkpoint(self.checkpoint, self.weights, self.model, kwargs), self.origin)
        assert self.model is not None
        model = create_model(self.model, pretrained=self.pretrained, **kwargs).eval()
        origin = self.origin
        if origin.weights == "random":
            warnings.warn(f"{self.model} has random weights; give --pretrained or --checkpoint FILE", stacklevel=3)
        spec = describe_model(model, self.model, pretrained=self.pretrained, **kwargs)
        return LoadedModel(model, spec, origin)


def _require_weights(origin: Origin, name: str, work: str, also: str = "") -> None:
    if origin.weights == "random":
        remedy = "give a checkpoint, or a name with published weights (timm.list_pretrained() lists them)"
        if has_weights(name):
            remedy = "pass --pretrained for those that are published, or a checkpoint"
        raise UserError(f"nothing to {work}, for the weights of {name} are random: {remedy}{also}")


def draw_weights(spec: ModelSpec, seed: int) -> LoadedModel:
    """Build the architecture of a spec without its classifier, in evaluation mode, with random weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(spec.model, **{**spec.model_kwargs, "num_classes": 0}).eval()
    return LoadedModel(model, spec, Origin(None, "random"))


def load_model(
    path_or_name: str | Path,
    *,
    model: str | None = None,
    pretrained: bool | None = None,
    weights: Weights = "average",
    model_kwargs: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a trained model with its preprocessing and class names, in evaluation mode on the CPU.

    Args:
        path_or_name: a checkpoint of train.py, a head (.json) of ``linear`` or ``probe``, another file of weights, or
            the name of a registered model.
        model: architecture, for files that do not say it.
        pretrained: use the weights that are published for a registered model; by default if there are any. Otherwise
            weights are random, of which a warning tells.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.
        model_kwargs: further arguments for the model, such as ``{"num_classes": 10}``.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an unknown model, or a checkpoint that is damaged or does not fit.
    """
    return find_model(path_or_name, model, pretrained, weights, model_kwargs).load()


def find_model(
    path_or_name: str | Path,
    model: str | None = None,
    pretrained: bool | None = None,
    weights: Weights = "average",
    model_kwargs: Mapping[str, Any] | None = None,
) -> ModelSource:
    """Return the source of a model that one word names, a file or a registered model; arguments as of `load_model`."""
    name = str(path_or_name)
    is_path = isinstance(path_or_name, Path) or Path(name).suffix in WEIGHT_FILES or ("/" in name and ":" not in name)
    if is_path or model is not None or (not timm.is_model(name) and Path(name).exists()):
        return ModelSource(Path(name), model, bool(pretrained), model_kwargs, weights)
    if pretrained is None:
        pretrained = has_weights(name, model_kwargs)
    return ModelSource(None, name, pretrained, model_kwargs, weights)
