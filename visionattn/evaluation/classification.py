"""Accuracy of a classifier."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassStatScores

from visionattn.evaluation.as_trained import ImageOptions, open_images
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.loop import Result, evaluate
from visionattn.evaluation.source import LoadedModel
from visionattn.layers.prepared import frozen_weights
from visionattn.progress import ShowProgress, no_progress
from visionattn.tasks import TASKS, ClassificationTask
from visionattn.tasks.classification import require_finite
from visionattn.training.branches import Inference, choose_inference
from visionattn.training.preprocessing import describe_preprocessing

AS_TRAINED = ImageOptions()


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassificationResult(Result):
    """Accuracy of a classifier on a split; more in `Result`.

    Attributes:
        inference: for DCAL models, the branches that answered.
        split: name of the split, as given.
        num_classes: width of the head.
        top1: share of images whose class has the highest logit.
        top5: share of images whose class is among the five highest.
        per_class: a row for each class: ``class``, ``num_images``, ``top1``, ``num_predicted``, ``precision``; a share
            of no image is None.
        class_names: a name for each output.
        confusion_matrix: counts ``[num_classes, num_classes]``, true classes in rows; None unless asked for.
    """

    inference: Inference | None
    split: str | None
    num_classes: int
    top1: float
    top5: float
    per_class: list[dict[str, Any]] = field(repr=False)
    class_names: list[str] = field(repr=False)
    confusion_matrix: Tensor | None = field(repr=False)


def evaluate_classifier(
    loaded: LoadedModel,
    options: ImageOptions = AS_TRAINED,
    *,
    inference: Inference | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "32-true",
    channels_last: bool = False,
    confusion_matrix: bool = False,
    progress: ShowProgress = no_progress,
    announce: Callable[[str], object] | None = None,
) -> ClassificationResult:
    """Evaluate top-1 and top-5 accuracy of a classifier.

    Args:
        loaded: the classifier; it is moved to the device.
        options: images; data set and preprocessing are by default those of the training.
        inference: for DCAL models, use both branches (``combined``) or self-attention only (``sa``).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        precision: as Lightning's Trainer names it.
        channels_last: lay tensors out in channels-last memory format.
        confusion_matrix: count the confusion matrix also.
        progress: shows the number of batches.
        announce: called with one line that says how images are prepared, before the first one.

    Raises:
        ValueError: a model without classes, data that are missing or do not fit, logits that are not finite.
    """
    model, spec, origin = loaded
    require_classes(loaded)
    if inference is not None:
        choose_inference(model, spec.model, inference)
    resolved = resolve_device(device)
    data = open_images(spec, options)
    if announce is not None:
        announce(describe_preprocessing(data.preprocessing, spec.preprocessing, loaded.name))
    model = model.to(resolved).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    metrics = _metrics(spec.num_classes, confusion_matrix).to(resolved)

    def update(logits: Tensor, batch: Any) -> None:
        require_finite(logits, batch.name, spec.model)
        metrics.update(logits.float(), batch.target.to(resolved, non_blocking=True))

    with frozen_weights(model):
        about = evaluate(
            model, data, update, spec.model, origin, options, device=resolved, precision=precision, progress=progress
        )
    counts = metrics.compute()
    names = data.class_names
    names = names + [str(index) for index in range(len(names), spec.num_classes)]
    return ClassificationResult(
        **about,
        inference=getattr(model, "inference", None),
        split=options.split,
        num_classes=spec.num_classes,
        top1=int(counts["per_class"][:, 0].sum()) / about["num_images"],
        top5=int(counts["top5"][0]) / about["num_images"],
        per_class=_class_rows(counts["per_class"], names),
        class_names=names,
        confusion_matrix=counts["matrix"].cpu() if confusion_matrix else None,
    )


def require_classes(loaded: LoadedModel) -> None:
    """Raise a ValueError unless the model classifies, with what to do with it instead."""
    spec, name = loaded.spec, loaded.name
    task = TASKS.get(spec.task, ClassificationTask)
    if not task.has_head and task.model_alone:
        raise ValueError(f"{name} gives features, not classes: eval.py {task.eval_command} evaluates it")
    if not task.has_head:
        raise ValueError(
            f"{name} is a pretrained encoder, without classes: train.py fit --model.name {spec.model} "
            f"--model.checkpoint_path {name} fine-tunes it"
        )
    if not spec.num_classes:
        raise ValueError(
            f"{name} holds no classifier: visionattn linear trains one on its features, "
            f"train.py fit --model.name {spec.model} --model.checkpoint_path FILE fine-tunes it"
        )


def _metrics(num_classes: int, with_matrix: bool) -> MetricCollection:
    """Return counts, which are exact, unlike rates in single precision: (tp, fp, tn, fn, support) of torchmetrics."""
    options: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
    metrics: dict[str, Any] = {
        "top5": MulticlassStatScores(average="micro", top_k=min(5, num_classes), **options),
        "per_class": MulticlassStatScores(average=None, **options),
    }
    if with_matrix:
        metrics["matrix"] = MulticlassConfusionMatrix(**options)
    return MetricCollection(metrics, compute_groups=False)


def _class_rows(counts: Tensor, names: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "class": name,
            "num_images": support,
            "top1": right / support if support else None,
            "num_predicted": right + wrong,
            "precision": right / (right + wrong) if right + wrong else None,
        }
        for name, (right, wrong, _, _, support) in zip(names, counts.tolist(), strict=True)
    ]
