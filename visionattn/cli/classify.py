"""``eval.py classify``: accuracy of a classifier, or average precision and F1 if images have several labels."""

from pathlib import Path
from typing import Any

from visionattn.checks import check_range
from visionattn.cli.errors import UsageError
from visionattn.cli.progress import show_progress
from visionattn.cli.report import print_table, print_unreadable
from visionattn.evaluation.as_trained import ImageOptions
from visionattn.evaluation.classification import AS_TRAINED, ClassificationResult, evaluate_classifier
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.drawing import require_rollout, save_rollouts
from visionattn.evaluation.multi_label import MultiLabelResult, evaluate_labels
from visionattn.evaluation.source import LoadedModel, ModelSource
from visionattn.output import check_folder, check_writable, write_csv, write_json
from visionattn.training import Weights
from visionattn.training.branches import Inference
from visionattn.training.predictions import THRESHOLD
from visionattn.viz.confusion import save_confusion_matrix
from visionattn.viz.figure import check_suffix
from visionattn_kernels.provenance import provenance


def classify(
    checkpoint: Path | None = None,
    model: str | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    inference: Inference | None = None,
    data: ImageOptions = AS_TRAINED,
    device: str = "auto",
    precision: Precision = "32-true",
    channels_last: bool = False,
    output: Path | None = None,
    per_class: Path | None = None,
    threshold: float | Path | None = None,
    save_thresholds: Path | None = None,
    confusion_matrix: Path | None = None,
    rollout: Path | None = None,
    num_examples: int = 20,
) -> None:
    """Evaluate the accuracy of a checkpoint or a registered model on a data set.

    The figures are top-1, top-5 and balanced accuracy or, for images with several labels, mAP and F1. A checkpoint of
    train.py knows its model, its preprocessing and, unless it was a folder of images, its data set.

    Args:
        checkpoint: file that train.py or heads wrote; with --model also a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: fetch the weights that are published for the model.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.
        inference: for DCAL models, use both branches (combined) or self-attention only (sa).
        data: which images.
        device: auto, cpu, cuda, cuda:1, …
        precision: as --trainer.precision.
        channels_last: lay tensors out in channels-last memory format.
        output: JSON file for the results.
        per_class: CSV file for the figures of each class.
        threshold: for several labels per image, the probability from which an image gets a label, by default 0.5; or a
            file that --save_thresholds wrote.
        save_thresholds: JSON file for the threshold of each class with the highest F1 on these images; on other images
            it does less well.
        confusion_matrix: image of the confusion matrix, .png, .pdf or .svg.
        rollout: folder for images of the attention of DCAL models, and of the patches that they select.
        num_examples: number of images that are drawn there, evenly spaced.
    """
    check_writable(confusion_matrix, json=output, csv=per_class)
    check_writable(json=save_thresholds)
    check_folder(rollout)
    check_range("num_examples", num_examples, 1, error=UsageError)
    if confusion_matrix:
        check_suffix(confusion_matrix)
    resolved = resolve_device(device)
    loaded = ModelSource(checkpoint, model, pretrained, model_kwargs, weights).load("evaluate")
    if rollout:
        require_rollout(loaded.model, loaded.spec.model)
    _check_labels(loaded, {"threshold": threshold, "save_thresholds": save_thresholds}, confusion_matrix)
    options: dict[str, Any] = {
        "inference": inference,
        "device": resolved,
        "precision": precision,
        "channels_last": channels_last,
        "progress": show_progress,
        "announce": print,
    }
    result: ClassificationResult | MultiLabelResult
    if loaded.spec.multi_label:
        result = evaluate_labels(loaded, data, threshold=THRESHOLD if threshold is None else threshold, **options)
        figures = {"mAP": result.map, "macro F1": result.f1, "micro F1": result.f1_micro}
    else:
        result = evaluate_classifier(loaded, data, confusion_matrix=confusion_matrix is not None, **options)
        figures = {"top-1": result.top1, "top-5": result.top5, "balanced top-1": result.balanced_top1}
        if confusion_matrix:
            save_confusion_matrix(result.confusion_matrix, result.class_names, confusion_matrix)
    if output:
        write_json({**result.to_dict(), **provenance(resolved)}, output)
    if per_class:
        write_csv(result.per_class, per_class)
    if save_thresholds:
        write_json({row["class"]: row["best_threshold"] for row in result.per_class}, save_thresholds)
    if rollout:
        save_rollouts(rollout, loaded.model, result.data, result.num_images, num_examples)
    _print(result, figures)
    if save_thresholds:
        print(f"thresholds for the highest F1 on these images: {save_thresholds}; judge --threshold on other images")


def _check_labels(loaded: LoadedModel, of_several: dict[str, Any], confusion_matrix: Path | None) -> None:
    """Check that options fit the number of labels per image."""
    if loaded.spec.multi_label and confusion_matrix:
        raise UsageError(
            f"--confusion_matrix is for one label per image, and {loaded.name} has several: --per_class FILE.csv has "
            "precision and recall of each class"
        )
    given = next((name for name, value in of_several.items() if value is not None), None)
    if given and not loaded.spec.multi_label:
        raise UsageError(f"--{given} is for several labels per image, and {loaded.name} has one: leave it out")


def _print(result: ClassificationResult | MultiLabelResult, figures: dict[str, float]) -> None:
    row = {
        "model": result.model,
        "data set": result.dataset,
        "images": f"{result.num_images:,}",
        **{name: f"{value:.2%}" for name, value in figures.items()},
        "img/s": f"{result.images_per_second:,.0f}",
    }
    print_table([row])
    print_unreadable(result, "images")
