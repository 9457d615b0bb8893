"""Accuracy of a classifier with one label per image."""

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
class ClassifierResult(Result):
    """Part of the result of every classifier; more in `Result`.

    Attributes:
        inference: for DCAL models, the branches that answered.
        split: name of the split, as given.
        num_classes: width of the head.
        per_class: a row of figures for each class.
        class_names: a name for each output.
    """

    inference: Inference | None
    split: str | None
    num_classes: int
    per_class: list[dict[str, Any]] = field(repr=False)
    class_names: list[str] = field(repr=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassificationResult(ClassifierResult):
    """Accuracy of a classifier on a split; more in `ClassifierResult` and `Result`.

    Attributes:
        top1: share of images whose class has the highest logit.
        top5: share of images whose class is among the five highest.
        balanced_top1: mean, over the classes that occur, of their own top-1.
        per_class: a row for each class: ``class``, ``num_images``, ``top1``, ``num_predicted``, ``precision``; a share
            of no image is None.
        confusion_matrix: counts ``[num_classes, num_classes]``, true classes in rows; None unless asked for.
    """

    top1: float
    top5: float
    balanced_top1: float
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
    """Evaluate top-1, top-5 and balanced accuracy of a classifier; of several labels per image see `evaluate_labels`.

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
        ValueError: a model without classes, with random weights or of several labels, data that are missing or do not
            fit, logits that are not finite.
    """
    require_classes(loaded)
    if loaded.spec.multi_label:
        raise ValueError(f"{loaded.name} has several labels for an image: evaluate_labels evaluates it")
    resolved = resolve_device(device)
    metrics = _metrics(loaded.spec.num_classes, confusion_matrix).to(resolved)
    about = show_images(
        loaded,
        options,
        metrics.update,
        inference=inference,
        device=resolved,
        precision=precision,
        channels_last=channels_last,
        progress=progress,
        announce=announce,
    )
    counts = metrics.compute()
    rows = _class_rows(counts["per_class"], about["class_names"])
    recalls = [row["top1"] for row in rows if row["num_images"]]
    return ClassificationResult(
        **about,
        top1=int(counts["per_class"][:, 0].sum()) / about["num_images"],
        top5=int(counts["top5"][0]) / about["num_images"],
        balanced_top1=sum(recalls) / len(recalls),
        per_class=rows,
        confusion_matrix=counts["matrix"].cpu() if confusion_matrix else None,
    )


def show_images(
    loaded: LoadedModel,
    options: ImageOptions,
    update: Callable[[Tensor, Tensor], object],
    *,
    inference: Inference | None,
    device: torch.device,
    precision: Precision,
    channels_last: bool,
    progress: ShowProgress,
    announce: Callable[[str], object] | None,
) -> dict[str, Any]:
    """Show images to a classifier, give its logits [B, num_classes] and their targets to ``update``.

    Return the fields of a `ClassifierResult`, without ``per_class``; `evaluate_classifier` has the arguments.
    """
    model, spec, origin = loaded
    loaded.require_weights("evaluate", head=True)
    if inference is not None:
        choose_inference(model, spec.model, inference)
    data = open_images(spec, options)
    if announce is not None:
        announce(describe_preprocessing(data.preprocessing, spec.preprocessing, loaded.name))
    model = model.to(device).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def check_and_update(logits: Tensor, batch: Any) -> None:
        require_finite(logits, batch.name, spec.model)
        update(logits.float(), batch.target.to(device, non_blocking=True))

    with frozen_weights(model):
        about = evaluate(
            *(model, data, check_and_update, spec.model, origin, options),
            device=device,
            precision=precision,
            progress=progress,
        )
    names = data.class_names
    return {
        **about,
        "inference": getattr(model, "inference", None),
        "split": options.split,
        "num_classes": spec.num_classes,
        "class_names": names + [str(index) for index in range(len(names), spec.num_classes)],
    }


def require_classes(loaded: LoadedModel) -> None:
    """Raise a ValueError unless the model classifies, with what to do with it instead."""
    spec, name = loaded.spec, loaded.name
    task = TASKS.get(spec.task, ClassificationTask)
    if not task.has_head and task.model_alone:
        raise ValueError(f"{name} gives features, not classes: eval.py {task.eval_command} evaluates it")
    if task.eval_command == "test":
        raise ValueError(f"{name} is {task.card_text}: visionattn test evaluates it")
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
