"""Accuracy of a classifier on a data set."""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassStatScores

from visionattn.cli.device import Precision, autocast, resolve_device
from visionattn.cli.errors import UsageError
from visionattn.cli.images import check_number, check_rollout, save_rollouts
from visionattn.cli.options import renamed
from visionattn.cli.progress import track
from visionattn.cli.report import check_folder, check_writable, print_table, write_csv, write_json
from visionattn.data import ImageClassificationData
from visionattn.data.class_map import ClassMap
from visionattn.layers.prepared import frozen_weights
from visionattn.tasks.checkpoint import (
    ClassifierSpec,
    Weights,
    create_classifier,
    describe_classifier,
    load_classifier,
    weights_origin,
)
from visionattn.tasks.classification import require_finite
from visionattn.tasks.preprocessing import describe_preprocessing
from visionattn.training.branches import Inference, choose_inference
from visionattn.viz.confusion import save_confusion_matrix
from visionattn.viz.figure import check_suffix
from visionattn_kernels.provenance import provenance

NAMED_UNREADABLE = 20


@dataclass(frozen=True)
class EvaluationData:
    """Which images, and how they are read; what is not given is as the classifier was trained.

    Args:
        name: data set as for train.py: digits, folder, torch/cifar10, hfds/NAME, wds/NAME, …
        root: folder of images; for the other data sets, where they are downloaded to.
        split: name of the split, by default the one that training validates on.
        num_classes: where the data set does not say how many classes it has.
        class_map: classes of folders whose names are not the model's, as {plane: airplane}, or a YAML or JSON file with
            that; for a model that does not know its classes, a class is the number of an output.
        download: let torchvision or timm fetch a data set that is not there.
        img_size: height and width in pixels.
        crop_pct: part of the resized image's edge that is kept.
        interpolation: bicubic, bilinear, nearest, …
        batch_size: images per step.
        num_workers: loader processes.
        on_error: an image that cannot be decoded: raise names it and stops, skip leaves it out and counts it.
    """

    name: str | None = None
    root: str | None = None
    split: str | None = None
    num_classes: int | None = None
    class_map: ClassMap = None
    download: bool = False
    img_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    batch_size: int = 128
    num_workers: int | None = None
    on_error: Literal["raise", "skip"] = "raise"


AS_TRAINED = EvaluationData()


def classify(
    checkpoint: Path | None = None,
    model: str | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    inference: Inference | None = None,
    data: EvaluationData = AS_TRAINED,
    device: str = "auto",
    precision: Precision = "32-true",
    channels_last: bool = False,
    output: Path | None = None,
    per_class: Path | None = None,
    confusion_matrix: Path | None = None,
    rollout: Path | None = None,
    num_examples: int = 20,
) -> None:
    """Evaluate top-1 and top-5 accuracy of a checkpoint or a registered model on a data set.

    A checkpoint of train.py knows its model, its preprocessing and, unless it was a folder of images, its data set.

    Args:
        checkpoint: file that train.py wrote; together with --model also a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: fetch the weights that are published for the model.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        weights: of a checkpoint that holds a moving average, that average or the raw weights.
        inference: of DCAL's models the answer of both branches (combined) or of self-attention alone (sa).
        data: which images.
        device: auto, cpu, cuda, cuda:1, …
        precision: as --trainer.precision.
        channels_last: lay tensors out in channels-last memory format.
        output: JSON file for the results.
        per_class: CSV file for the accuracy of each class.
        confusion_matrix: image of the confusion matrix, .png, .pdf or .svg.
        rollout: folder for images of what DCAL's attention is on, and of the patches that it selects.
        num_examples: number of images that are drawn there, evenly spaced.

    Raises:
        UsageError: options that contradict each other.
        ValueError: a model, checkpoint or data set that is not there or does not fit the others.
    """
    check_writable(confusion_matrix, json=output, csv=per_class)
    check_folder(rollout)
    check_number(num_examples)
    if confusion_matrix:
        check_suffix(confusion_matrix)
    resolved = resolve_device(device)
    classifier, spec = build_classifier(checkpoint, model, pretrained, model_kwargs or {}, weights)
    if spec.task == "reid":
        raise ValueError(f"{checkpoint} gives features, not classes: eval.py reid evaluates it")
    if spec.task in ("mae", "object_discovery"):
        raise ValueError(
            f"{checkpoint} is a pretrained encoder, without classes: train.py fit --model.name {spec.model} "
            f"--model.checkpoint_path {checkpoint} fine-tunes it"
        )
    if not spec.num_classes:
        raise ValueError(
            f"{checkpoint or model} holds no classifier: eval.py probe trains one on its features, "
            f"train.py fit --model.name {spec.model} --model.checkpoint_path FILE fine-tunes it"
        )
    if inference is not None:
        choose_inference(classifier, spec.model, inference)
    if rollout:
        check_rollout(classifier, spec.model)
    module = _open(data, spec)
    print(describe_preprocessing(module.preprocessing, spec.preprocessing, str(checkpoint or spec.model)))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    classifier = classifier.to(resolved).to(memory_format=layout)
    metrics = _metrics(spec.num_classes, with_matrix=confusion_matrix is not None).to(resolved)

    start = time.perf_counter()
    with frozen_weights(classifier):
        num_images = _evaluate(classifier, module, metrics, resolved, precision, spec)
    seconds = time.perf_counter() - start

    counts = metrics.compute()
    unreadable = module.broken("validation")
    result = {
        "model": spec.model,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "weights": weights_origin(pretrained, model_kwargs, checkpoint, weights),
        "inference": getattr(classifier, "inference", None),
        "dataset": module.name,
        "root": data.root,
        "split": data.split,
        "num_images": num_images,
        "num_classes": spec.num_classes,
        "top1": _rate(counts["top1"], num_images),
        "top5": _rate(counts["top5"], num_images),
        "num_unreadable": len(unreadable),
        "unreadable": unreadable[:NAMED_UNREADABLE],
        "images_per_second": num_images / seconds,
        "seconds": seconds,
        "batch_size": data.batch_size,
        "precision": precision,
        "preprocessing": module.preprocessing,
    }
    if output:
        write_json({**result, **provenance(resolved)}, output)
    names = module.class_names
    names = names + [str(index) for index in range(len(names), spec.num_classes)]
    if per_class:
        write_csv(_class_rows(counts["per_class"], names), per_class)
    if confusion_matrix:
        save_confusion_matrix(counts["matrix"].cpu(), names, confusion_matrix)
    if rollout:
        save_rollouts(rollout, classifier, module.val_dataloader(), num_images, module.preprocessing, num_examples)
    _print(result)


def build_classifier(
    checkpoint: Path | None, model: str | None, pretrained: bool, model_kwargs: dict[str, Any], weights: Weights
) -> tuple[nn.Module, ClassifierSpec]:
    """What ``--checkpoint`` or ``--model`` name, in evaluation mode on the CPU.

    Raises:
        UsageError: neither of them, or options that contradict each other.
        ValueError: a model or checkpoint that is not there or does not fit.
    """
    if checkpoint is not None:
        if pretrained:
            raise UsageError("--pretrained and --checkpoint name different weights: give one of them")
        return load_classifier(checkpoint, weights, model, model_kwargs)
    if model is None:
        raise UsageError("nothing to evaluate: give --checkpoint FILE, or --model NAME --pretrained")
    classifier = create_classifier(model, pretrained=pretrained, **model_kwargs)
    if not pretrained:
        warnings.warn(f"{model} has random weights; give --pretrained or --checkpoint FILE", stacklevel=2)
    return classifier.eval(), describe_classifier(classifier, model, pretrained=pretrained, **model_kwargs)


@renamed(val_split="split")
def _open(data: EvaluationData, spec: ClassifierSpec) -> ImageClassificationData:
    """The validation split, preprocessed and numbered as the classifier wants it."""
    trained = spec.preprocessing
    channels, height, width = trained["input_size"]
    if height != width and data.img_size is None:
        raise ValueError(f"{spec.model} takes {height}×{width} images, not square ones: choose --data.img_size N")
    # Trained on an embedded data set but evaluated on a folder: the folder it is.
    stored = None if data.root and spec.dataset == "digits" else spec.dataset or None
    module = ImageClassificationData(
        name=data.name or stored,
        root=data.root,
        val_split=data.split,
        num_classes=data.num_classes,
        class_map=data.class_map,
        download=data.download,
        img_size=height if data.img_size is None else data.img_size,
        in_chans=channels,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        mean=list(trained["mean"]),
        std=list(trained["std"]),
        interpolation=data.interpolation or trained["interpolation"],
        crop_pct=trained["crop_pct"] if data.crop_pct is None else data.crop_pct,
        crop_mode=trained["crop_mode"],
        sequence=trained.get("sequence"),
        permutation_seed=trained.get("permutation_seed"),
        on_error=data.on_error,
    )
    module.expect_head(spec.class_names, spec.num_classes)
    module.setup("validate")
    module.check_head(spec.model, spec.num_classes)
    return module


def _metrics(num_classes: int, with_matrix: bool) -> MetricCollection:
    """Counts, which unlike rates in single precision are exact."""
    options: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
    metrics: dict[str, Any] = {
        "top1": MulticlassStatScores(average="micro", **options),
        "top5": MulticlassStatScores(average="micro", top_k=min(5, num_classes), **options),
        "per_class": MulticlassStatScores(average=None, **options),
    }
    if with_matrix:
        metrics["matrix"] = MulticlassConfusionMatrix(**options)
    return MetricCollection(metrics, compute_groups=False)


@torch.inference_mode()
def _evaluate(
    classifier: nn.Module,
    module: ImageClassificationData,
    metrics: MetricCollection,
    device: torch.device,
    precision: Precision,
    spec: ClassifierSpec,
) -> int:
    """Shows every image to the classifier once and counts in ``metrics``; returns how many there were."""
    num_images = 0
    for batch in track(module.val_dataloader(), f"evaluating {spec.model}"):
        if not len(batch.image):
            continue
        with autocast(device, precision):
            logits = classifier(batch.image.to(device, non_blocking=True)).float()
        require_finite(logits, batch.name, spec.model)
        metrics.update(logits, batch.target.to(device, non_blocking=True))
        num_images += len(batch.image)
    if not num_images:
        raise ValueError(f"not one image could be read: {(module.broken('validation') or ['the split is empty'])[0]}")
    return num_images


def _rate(counts: Tensor, num_images: int) -> float:
    """Right ones among all, from torchmetrics' (tp, fp, tn, fn, support)."""
    return int(counts[0]) / num_images


def _class_rows(counts: Tensor, names: list[str]) -> list[dict[str, Any]]:
    rows = []
    for name, (right, taken_for_it, _, _, support) in zip(names, counts.tolist(), strict=True):
        predicted = right + taken_for_it
        rows.append(
            {
                "class": name,
                "num_images": support,
                "top1": right / support if support else None,
                "num_predicted": predicted,
                "precision": right / predicted if predicted else None,
            }
        )
    return rows


def _print(result: dict[str, Any]) -> None:
    row = {
        "model": result["model"],
        "data set": result["dataset"],
        "images": f"{result['num_images']:,}",
        "top-1": f"{result['top1']:.2%}",
        "top-5": f"{result['top5']:.2%}",
        "img/s": f"{result['images_per_second']:,.0f}",
    }
    print_table([row])
    if result["num_unreadable"]:
        print(f"unreadable images left out: {result['num_unreadable']}, the first: {result['unreadable'][0]}")
