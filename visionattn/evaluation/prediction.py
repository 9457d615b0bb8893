"""Predictions of a classifier for images: files, folders, or images in memory."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from visionattn.checks import check_range
from visionattn.data import ImageClassificationData
from visionattn.data.loading import OnError
from visionattn.data.unlabelled import Images
from visionattn.errors import UserError
from visionattn.evaluation.as_trained import PreparedImages, open_images
from visionattn.evaluation.classification import require_classes
from visionattn.evaluation.device import Precision, autocast, resolve_device
from visionattn.evaluation.source import LoadedModel
from visionattn.evaluation.thresholds import read_thresholds
from visionattn.io import as_text
from visionattn.layers.prepared import frozen_weights
from visionattn.progress import ShowProgress, no_progress
from visionattn.tasks.classification import require_finite
from visionattn.training.predictions import THRESHOLD, make_predictions
from visionattn.training.predictions import Prediction as Prediction
from visionattn.training.preprocessing import describe_preprocessing


def predict(
    loaded: LoadedModel,
    images: str | Path | Image.Image | Images,
    *,
    topk: int = 5,
    threshold: float | str | Path | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    on_error: OnError = "raise",
    device: str | torch.device = "auto",
    precision: Precision = "32-true",
    progress: ShowProgress = no_progress,
    announce: Callable[[str], object] | None = None,
) -> Iterator[Prediction]:
    """Predict the classes of images, one by one in their order; only a batch is in memory.

    Args:
        loaded: the classifier; it is moved to the device.
        images: files and folders, or images in memory; of a folder all images, in all folders below it.
        topk: number of classes for each image, at most all.
        threshold: for a model of several labels, the smallest probability of a label, or a file of thresholds that
            ``classify --save_thresholds`` wrote; by default 0.5.
        img_size: height and width in pixels; by default, as crop_pct, that of the model's preprocessing.
        crop_pct: part of the resized image's edge that is kept.
        batch_size: images per step.
        num_workers: loader processes, by default none for a single batch, otherwise one for each core.
        on_error: for an image that cannot be read: raise names it and stops, skip gives a prediction with the reason.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        precision: as Lightning's Trainer names it.
        progress: shows the number of images.
        announce: called with lines that say how images are prepared, and how classes are named if that is a guess.

    Raises:
        ValueError: random weights, a model without classes, no images, none that can be read, or logits that are not
            finite.
    """
    loaded.require_weights("predict", head=True)
    require_classes(loaded)
    spec, resolved = loaded.spec, resolve_device(device)
    check_range("topk", topk, 1, error=UserError)
    if threshold is not None and not spec.multi_label:
        raise UserError(f"--threshold is for models of several labels: {loaded.name} chooses one class")
    options = PreparedImages(
        img_size=img_size, crop_pct=crop_pct, batch_size=batch_size, num_workers=num_workers, on_error=on_error
    )
    images = cast(Images, [images] if isinstance(images, str | Path | Image.Image) else images)
    data = open_images(spec, options, "predict", images=images, name="folder")
    if num_workers is None and (data.num_images("predict") or 0) <= batch_size:
        data.num_workers = 0
    names, guess = name_classes(loaded)
    for line in (describe_preprocessing(data.preprocessing, spec.preprocessing, loaded.name), guess):
        if announce is not None and line:
            announce(line)

    thresholds = read_thresholds(THRESHOLD if threshold is None else threshold, names) if spec.multi_label else None

    def answer(logits: Tensor, files: Sequence[str]) -> list[Prediction]:
        require_finite(logits, files, spec.model)
        return make_predictions(logits, files, names, topk, thresholds)

    return _predict(loaded, data, answer, resolved, precision, progress)


def _predict(
    loaded: LoadedModel,
    data: ImageClassificationData,
    answer: Callable[[Tensor, Sequence[str]], list[Prediction]],
    device: torch.device,
    precision: Precision,
    progress: ShowProgress,
) -> Iterator[Prediction]:
    model, loader = loaded.model.to(device), data.predict_dataloader()
    source: Any = loader.dataset
    files = (as_text(source.source.name_of(index)) for index in range(len(source)))
    done = num_read = 0
    with frozen_weights(model), progress(f"predicting with {loaded.name}", "images") as report:
        for batch in loader:
            found: list[Prediction] = []
            if len(batch.image):
                with torch.inference_mode(), autocast(device, precision):
                    logits = model(batch.to(device).image)
                found = answer(logits.float(), batch.name)
            count = len(batch.name) + len(batch.errors)
            yield from _in_order(list(islice(files, count)), found, batch.errors)
            done, num_read = done + count, num_read + len(found)
            report(done, len(source))
    if not num_read:
        raise ValueError(f"not one image could be read: {data.broken('predict')[0]}")


def _in_order(files: Sequence[str], found: Sequence[Prediction], errors: Sequence[str]) -> Iterator[Prediction]:
    """Yield the predictions of a batch with those of unreadable images, ``FILE: REASON``, in their places."""
    good, bad = iter(found), iter(errors)
    following = next(good, None)
    for file in files:
        if following is not None and following.file == file:
            yield following
            following = next(good, None)
        else:
            yield Prediction(file, [], [], error=next(bad).removeprefix(f"{file}: "))


def name_classes(loaded: LoadedModel) -> tuple[list[str], str]:
    """Return a name for each output, and a line that says where the names come from if the model has none."""
    spec, name = loaded.spec, loaded.name
    if spec.class_names:
        return spec.class_names, ""
    subset = None if spec.dataset else infer_imagenet_subset({"num_classes": spec.num_classes})
    if subset:
        return list(ImageNetInfo(subset).label_descriptions()), (
            f"classes: those of {subset}, as {name} has {spec.num_classes:,} outputs"
        )
    return [str(number) for number in range(spec.num_classes)], (
        f"classes: numbers of outputs, for {name} does not say its classes"
    )
