"""Settings of a fine-tuning that follow from the number of images and from the model, unless they are given."""

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from visionattn.data import DataError, ImageClassificationData
from visionattn.data.file_sources import UNNAMED
from visionattn.errors import UsageError
from visionattn.training import create_model
from visionattn.training.models import check_model_name, has_weights

VAL_SHARE = 0.2
"""Share of each class to validate on, if the images have no validation split."""
UPDATES = 2000
"""Length of a run, if that takes a number of epochs within ``EPOCHS``."""
EPOCHS = (5, 50)
"""Fewest and most epochs."""
BATCHES = (8, 64)
"""Smallest and largest batch; within them, an epoch has at least ``UPDATES_PER_EPOCH`` updates."""
UPDATES_PER_EPOCH = 8
WARMUP = 0.1
"""Share of the epochs in which the learning rate rises."""
EMA_DECAY, EMA_UPDATES = 0.999, 10_000
"""Decay of the moving average of the weights, and the updates of the shortest run that has one."""
LAYER_DECAY, LAYERS = 0.75, 12
"""Decay in models of up to this number of layers. In deeper ones the first layer has the same share of the rate."""


def check_start(model: Any) -> None:
    """Check that a training starts from weights; ``model`` are its options.

    Raises:
        UsageError: the weights would be random.
        ValueError: an unknown model.
    """
    check_model_name(model.name)
    published = has_weights(model.name, model.model_kwargs)
    if model.checkpoint_path is None and not (published and model.pretrained):
        why = f"{model.name} has no published weights" if model.pretrained else "--model.pretrained is false"
        raise UsageError(f"nothing to fine-tune, for {why}: give --checkpoint FILE, or train from scratch with fit")


def open_data(options: dict[str, Any]) -> ImageClassificationData:
    """Open the images to train on; those without a validation split are divided by ``VAL_SHARE``.

    Raises:
        DataError: data that are missing, that lie in no class folders or that cannot be divided.
    """
    data = ImageClassificationData(**options)
    if all(options.get(name) is None for name in ("val_share", "holdout_per_class", "val_split", "val_labels")):
        divided = ImageClassificationData(**options | {"val_share": VAL_SHARE})
        data = divided if divided.divides_itself else data
    data.setup("fit")
    if data.class_names == [UNNAMED]:
        raise DataError(
            f"the images in {data.root} lie in no class folders: make a folder for each class, {data.root}/CLASS, or "
            "name a table of files and labels"
        )
    return data


def choose_settings(options: Any, data: ImageClassificationData, is_given: Callable[[str], bool]) -> dict[str, Any]:
    """Return the settings of a fine-tuning by option, without those that are given.

    Args:
        options: all options, with their defaults.
        data: the images, from `open_data`.
        is_given: whether the user gives an option.
    """
    model, trainer, count = options.model, options.trainer, data.num_images("train")
    batch, epochs, ema = options.data.batch_size, trainer.max_epochs, None
    if count is not None:
        batch = batch if is_given("data.batch_size") else plan_batch(count)
        per_epoch = count_updates(count, batch, trainer.accumulate_grad_batches)
        epochs = epochs if is_given("trainer.max_epochs") else plan_epochs(per_epoch)
        ema = plan_average(epochs * per_epoch)
    has_rate = is_given("model.lr") or is_given("model.lr_base")
    found = {
        "model.lr": model.lr if has_rate else plan_rate(model.lr, batch * trainer.accumulate_grad_batches),
        "model.pretrained": model.checkpoint_path is None,
        "model.layer_decay": plan_layer_decay(_skeleton(model)),
        "model.warmup_epochs": WARMUP * epochs,
        "data.val_share": data.val_share,
        "data.batch_size": batch,
        "trainer.max_epochs": epochs,
        "ema": ema,
    }
    return {option: value for option, value in found.items() if not is_given(option)}


def _skeleton(model: Any) -> nn.Module:
    """Build the model of the options without weights."""
    kwargs = {key: value for key, value in (model.model_kwargs or {}).items() if key != "checkpoint_path"}
    with torch.device("meta"):
        return create_model(model.name, **kwargs | {"pretrained": False})


def count_updates(num_images: int, batch_size: int, accumulated: int) -> int:
    """Return the updates of an epoch on one device, whose last batch is left out if it is not full."""
    return max(1, math.ceil(num_images // batch_size / accumulated))


def plan_batch(num_images: int) -> int:
    """Return the batch size for a number of training images: a power of two within ``BATCHES``."""
    smallest, largest = BATCHES
    return max(smallest, min(largest, 2 ** int(math.log2(max(1, num_images / UPDATES_PER_EPOCH)))))


def plan_epochs(updates_per_epoch: int) -> int:
    """Return the number of epochs with about ``UPDATES`` updates, within ``EPOCHS``."""
    fewest, most = EPOCHS
    return max(fewest, min(most, round(UPDATES / updates_per_epoch)))


def plan_rate(rate: float, num_images: int) -> float:
    """Return the learning rate for a number of images per update.

    Above ``BATCHES`` it follows the square root of the number, as AdamW's does (Malladi et al., 2022,
    https://arxiv.org/abs/2205.10287). Below, it stays: few images make few updates, in which a new head has to learn.
    """
    return float(f"{rate * math.sqrt(max(1, num_images / BATCHES[1])):.3g}")


def plan_average(updates: int) -> float | None:
    """Return the decay of a moving average of the weights; None if it would only lag behind them in so short a run."""
    return EMA_DECAY if updates >= EMA_UPDATES else None


def plan_layer_decay(model: nn.Module) -> float:
    """Return the factor between the learning rates of successive layers, as timm counts the layers of a model."""
    halved = param_groups_layer_decay(model, layer_decay=0.5)
    depth = -math.log2(min(group["lr_scale"] for group in halved))
    return round(LAYER_DECAY ** min(1, LAYERS / max(depth, 1)), 3)
