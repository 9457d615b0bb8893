"""The command ``visionattn linear``: a head on a frozen model, for a folder of images."""

from pathlib import Path
from typing import Any

from visionattn.cli.errors import UsageError
from visionattn.cli.next_steps import shell_command
from visionattn.cli.parsing import run_with_words
from visionattn.cli.predict import short_options
from visionattn.cli.progress import show_progress
from visionattn.cli.report import print_table
from visionattn.data.loading import OnError
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.source import find_model
from visionattn.output import check_folder
from visionattn.probing.linear import fit_head
from visionattn.probing.options import FeatureOptions, HeadTraining
from visionattn.probing.results import table, title
from visionattn.training import Weights

CACHE = FeatureOptions().cache


def linear(
    folder: str,
    model: str | None = None,
    checkpoint: Path | None = None,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    head: str = "linear",
    val_share: float | None = None,
    img_size: int | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    on_error: OnError = "raise",
    epochs: int | None = None,
    lrs: list[float] | None = None,
    seed: int = 0,
    cache: Path = CACHE,
    output: Path | None = None,
    device: str = "auto",
    precision: Precision = "32-true",
) -> None:
    """Train a head on the features of a frozen model, for images in a folder of class folders.

    Features are computed once and cached. The file of the head is a checkpoint for predict and classify.

    Args:
        folder: images, in a folder for each class, or in such folders in train/ and val/.
        model: a registered model, whose published weights are used, or a checkpoint.
        checkpoint: file of weights for the model, instead of the published ones.
        model_kwargs: further arguments for the model, such as {"img_size": 224}.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.
        head: linear, ep_8 and any other ep_M, or another head of probe.
        val_share: share of each class to validate on; by default 0.2 if the folder has no validation images.
        img_size: height and width in pixels; by default that of the model's preprocessing.
        batch_size: images per step of the model.
        num_workers: loader processes.
        on_error: for an image that cannot be read: raise names it and stops, skip leaves it out and counts it.
        epochs: passes over the features, by default 30.
        lrs: learning rates to choose from.
        seed: seed of initial weights, of the order of images, and of the part on which rates are chosen.
        cache: folder for features; a second run reads them from it.
        output: folder for the head; by default a new one, runs/FOLDER-MODEL-HEAD/NUMBER.
        device: auto, cpu, cuda, cuda:1, …
        precision: precision of the model: 32-true, bf16-mixed or 16-mixed.
    """
    if model is None and checkpoint is None:
        raise UsageError("missing: --model NAME, such as nat_pico.cifar10 or vit_small_patch14_reg4_dinov2, or a file")
    check_folder(output, cache)
    resolved = resolve_device(device)
    named = None if checkpoint is None else model
    source = find_model(checkpoint or str(model), named, weights=weights, model_kwargs=model_kwargs)
    loaded = source.load("train a head on")
    with short_options():
        fitted = fit_head(
            loaded,
            folder,
            head,
            val_share=val_share,
            img_size=img_size,
            batch_size=batch_size,
            num_workers=num_workers,
            on_error=on_error,
            training=HeadTraining(epochs=epochs, lrs=lrs, seed=seed),
            features=FeatureOptions(cache=cache),
            output=output,
            device=resolved,
            precision=precision,
            progress=show_progress,
            announce=print,
        )
    row, about = fitted.result.to_dict(), fitted.about
    print_table(table([row]), title=title([row], [about]))
    if about["num_unreadable"]:
        print(f"unreadable images left out: {about['num_unreadable']}, the first: {about['unreadable'][0]}")
    print(f"top-1 {fitted.result.top1:.2%} of {about['num_val']:,} validation images\ncheckpoint: {fitted.file}")
    print(f"predict:    {shell_command('visionattn', ['predict', str(fitted.file), 'IMAGES'])}")


def main(argv: list[str], prog: str = "visionattn") -> None:
    """Run the command, as ``visionattn.cli.errors.run`` expects."""
    run_with_words(linear, argv, prog)
