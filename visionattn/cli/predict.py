"""The command ``visionattn predict``: classes of images."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from visionattn.checks import check_range
from visionattn.cli.configs import given_options
from visionattn.cli.errors import UsageError
from visionattn.cli.next_steps import shell_command
from visionattn.cli.parsing import run_with_words
from visionattn.cli.progress import show_progress
from visionattn.cli.report import print_table
from visionattn.data import DataError, UnreadableImageError
from visionattn.data.loading import OnError
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.prediction import predict as predict_images
from visionattn.evaluation.source import find_model
from visionattn.row_files import RowFile, check_row_file
from visionattn.training import Weights
from visionattn.training.predictions import Prediction, columns
from visionattn.words import counted

SHOWN = 20
"""Images whose predictions are printed; of more, the number of each class is."""
SHOWN_CLASSES = 15
BATCH = 1024
"""Rows that are written together."""


def predict(
    model: str,
    images: list[str],
    topk: int = 5,
    output: Path | None = None,
    threshold: float | Path | None = None,
    architecture: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    img_size: int | None = None,
    crop_pct: float | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    on_error: OnError = "skip",
    device: str = "auto",
    precision: Precision = "32-true",
) -> None:
    """Predict the classes of images.

    Prints a table, or for more than 20 images the number of each class.

    Args:
        model: a checkpoint, a head of linear or probe (.json), or a registered model, whose published weights are used.
        images: image files, and folders of images; - reads their names from standard input, one in a line.
        topk: number of classes for each image.
        output: file with a row for each image: .csv, .json or .parquet.
        threshold: for models of several labels, the smallest probability of a label, by default 0.5; or a file of
            classify --save_thresholds.
        architecture: registered model, for a file of weights that does not name it.
        model_kwargs: further arguments for the model, such as {"img_size": 96}.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.
        img_size: height and width in pixels; by default, as crop_pct, that of the model's preprocessing.
        crop_pct: part of the resized image's edge that is kept.
        batch_size: images per step.
        num_workers: loader processes.
        on_error: for an image that cannot be read: skip gives it a row with the reason, raise names it and stops.
        device: auto, cpu, cuda, cuda:1, …
        precision: 32-true, bf16-mixed or 16-mixed.
    """
    check_range("topk", topk, 1, error=UsageError)
    if output:
        check_row_file(output)
    resolved = resolve_device(device)
    places = list(read_places(images))
    loaded = find_model(model, architecture, weights=weights, model_kwargs=model_kwargs).load("predict")
    topk = min(topk, loaded.spec.num_classes or topk)
    with short_options():
        found = predict_images(
            loaded,
            places,
            topk=topk,
            threshold=threshold,
            img_size=img_size,
            crop_pct=crop_pct,
            batch_size=batch_size,
            num_workers=num_workers,
            on_error=on_error,
            device=resolved,
            precision=precision,
            progress=show_progress,
            announce=print,
        )
        report = Report()
        if output is None:
            report.count(found)
        else:
            with RowFile(output, {**columns(topk, loaded.spec.multi_label), "error": str}) as file:
                for batch in iter(lambda: list(islice(found, BATCH)), []):
                    report.count(batch)
                    file.write({**prediction.to_row(), "error": prediction.error} for prediction in batch)
    report.print()
    if output:
        print(f"{counted(report.num_images + report.num_unreadable, 'row')} in {output}")


class Report:
    """The predictions to print: the first ones, the number of images of each class, and of unreadable ones."""

    def __init__(self) -> None:
        self.first: list[Prediction] = []
        self.classes: Counter[str] = Counter()
        self.num_images = self.num_unreadable = 0
        self.unreadable = ""

    def count(self, predictions: Iterable[Prediction]) -> None:
        """Add predictions."""
        for prediction in predictions:
            if prediction.error is not None:
                self.unreadable = self.unreadable or f"{prediction.file}: {prediction.error}"
                self.num_unreadable += 1
                continue
            self.num_images += 1
            self.classes.update(prediction.classes[:1] if prediction.labels is None else prediction.labels)
            if len(self.first) < SHOWN:
                self.first.append(prediction)

    def print(self) -> None:
        """Print a table, and the first unreadable image."""
        if self.num_images == 1:
            print_table(_ranks(self.first[0]), title=self.first[0].file)
        elif self.num_images <= SHOWN:
            print_table([_cells(prediction) for prediction in self.first])
        else:
            most = self.classes.most_common(SHOWN_CLASSES)
            shares = [{"class": name, "images": f"{n:,}", "share": f"{n / self.num_images:.1%}"} for name, n in most]
            print_table(shares, title=f"{self.num_images:,} images")
            if rest := len(self.classes) - len(most):
                print(f"and {counted(rest, 'other class', 'other classes')}")
        if self.num_unreadable:
            print(f"unreadable images left out: {self.num_unreadable}, the first: {self.unreadable}")


def _ranks(prediction: Prediction) -> list[dict[str, str]]:
    """Return the classes of one image as rows of a table."""
    ranked = zip(prediction.classes, prediction.probabilities, strict=True)
    rows = [{"class": name, "probability": f"{share:.1%}"} for name, share in ranked]
    if prediction.labels is not None:
        rows = [row | {"label": "yes" if row["class"] in prediction.labels else "no"} for row in rows]
    return rows


def _cells(prediction: Prediction) -> dict[str, str]:
    """Return the classes of one of several images as a row of a table."""
    labels = {} if prediction.labels is None else {"labels": ", ".join(prediction.labels)}
    ranked = enumerate(zip(prediction.classes, prediction.probabilities, strict=True), 1)
    cells = {str(rank): f"{shorten(name, 24, placeholder='…')} {share:.1%}" for rank, (name, share) in ranked}
    return {"file": prediction.file, **labels, **cells}


def read_places(images: Iterable[str]) -> Iterator[str]:
    """Yield files and folders; ``-`` stands for the lines of standard input."""
    for image in images:
        if image == "-":
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        else:
            yield image


@contextmanager
def short_options() -> Iterator[None]:
    """Name options in errors as commands with short options have them: ``--batch_size``, not ``--data.batch_size``."""
    try:
        yield
    except (DataError, UnreadableImageError) as error:
        raise type(error)(str(error).replace("--data.root", "FOLDER").replace("--data.", "--")) from error


def check_moved(argv: Sequence[str], prog: str) -> None:
    """Refuse the options of ``train.py predict`` with the words to type instead.

    Raises:
        UsageError: the command line has one.
    """
    given = dict(given_options(argv))
    old = [name for name in given if name == "--config" or name.startswith(("--data.", "--model.", "--trainer."))]
    old = ["--ckpt_path"] if "--ckpt_path" in given else old
    if not old:
        return
    checkpoint = given.get("--ckpt_path") or given.get("--model.checkpoint_path")
    model = checkpoint or given.get("--model.name", "MODEL")
    named = checkpoint and "--ckpt_path" not in given and "--model.name" in given
    words = [model, given.get("--data.root", "IMAGES"), *(["--architecture", given["--model.name"]] if named else [])]
    words += ["--output", given["--output"]] if "--output" in given else []
    raise UsageError(
        f"{old[0]} is an option of visionattn train predict, for several devices; here write "
        f"{shell_command(prog, ['predict', *words])}"
    )


def main(argv: list[str], prog: str = "visionattn") -> None:
    """Run the command, as ``visionattn.cli.errors.run`` expects."""
    check_moved(argv, prog)
    run_with_words(predict, argv, prog)
