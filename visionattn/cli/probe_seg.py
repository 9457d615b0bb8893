"""``eval.py probe-seg``: semantic segmentation by the patches of frozen backbones."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from visionattn.checks import check_range
from visionattn.cli.errors import UsageError
from visionattn.cli.frozen import FrozenModels, FrozenRun
from visionattn.cli.progress import show_progress
from visionattn.cli.report import mean_cell, print_table, print_unreadable
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.drawing import spread
from visionattn.output import check_folder, check_writable, write_csv, write_json
from visionattn.probing.options import LayerOptions
from visionattn.probing.rows import grouped
from visionattn.probing.scenes import ProbingScenes
from visionattn.probing.segmentation.options import SegmentationTraining
from visionattn.probing.segmentation.results import ClassRow, SegmentationResult, SegmentationResults, SegmentationRow
from visionattn.probing.segmentation.session import SegmentationSession
from visionattn.training import Weights
from visionattn.viz.segmentation import save_label_map, save_segmentation_sheet
from visionattn.words import counted
from visionattn_kernels.provenance import provenance

DATA, FEATURES, TRAINING = ProbingScenes(), LayerOptions(), SegmentationTraining()
CLASSES = 12
"""Number of classes that are printed; the files have all."""


def probe_seg(
    model: list[str] | None = None,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    control: Literal["random"] | None = None,
    data: ProbingScenes = DATA,
    features: LayerOptions = FEATURES,
    training: SegmentationTraining = TRAINING,
    seeds: int = 1,
    device: str = "auto",
    precision: Precision = "32-true",
    output: Path | None = None,
    csv: Path | None = None,
    classes: Path | None = None,
    overlays: Path | None = None,
    num_examples: int = 12,
    predictions: Path | None = None,
) -> None:
    """Evaluate mean IoU of a linear head that classifies pixels by the patches of frozen backbones.

    Features are computed once and cached. A run that was killed resumes when it is started again.

    Args:
        model: names of registered models, separated by commas.
        checkpoint: file of train.py (any task) or heads; with --model also a plain state dict or .safetensors file.
        pretrained: download the published weights of the models.
        model_kwargs: further arguments of each model, such as {"img_size": 448}.
        weights: for a checkpoint with a moving average, use the average or the raw weights.
        control: random also evaluates the same architectures with random weights.
        data: scenes with classes.
        features: layers whose features are probed, and where they are cached.
        training: training of the head.
        seeds: number of runs, with seeds from --training.seed; each has its own random backbone.
        device: auto, cpu, cuda, cuda:1, …
        precision: precision of the backbone, as --trainer.precision; the head is trained in single precision.
        output: JSON file for the results.
        csv: CSV file for the results.
        classes: CSV file for the results of each class.
        overlays: folder for sheets of images, their true classes and their predicted ones (first seed).
        num_examples: number of images of val on a sheet, evenly spaced.
        predictions: folder for PLACE-NAME.png of all images of val, whose values are the predicted class numbers.
    """
    models = FrozenModels(
        model, checkpoint, pretrained, model_kwargs, weights, control is not None, seeds, training.seed
    )
    check_writable(json=output, csv=csv)
    check_writable(csv=classes)
    check_folder(overlays, predictions, features.cache)
    check_range("num_examples", num_examples, 1, error=UsageError)
    resolved = resolve_device(device)
    options = {"data": asdict(data), "features": asdict(features), "training": asdict(training)}
    options["features"]["cache"] = str(features.cache)
    settings = {**options, "precision": precision, **provenance(resolved)}
    results = SegmentationResults()

    def open_session(run: FrozenRun) -> SegmentationSession:
        return SegmentationSession(
            models.load(run),
            data,
            features,
            replace(training, seed=run.seed),
            device=resolved,
            precision=precision,
            progress=show_progress,
        )

    def save() -> None:
        if output:
            write_json({**results.to_dict(), **settings}, output)
        if csv:
            write_csv([_csv_row(row) for row in results.rows], csv)
        if classes:
            write_csv([_csv_row(row) for row in results.classes], classes)

    for run in models.others:
        open_session(run)
    for run in models.runs:
        session = open_session(run)
        if run.seed == training.seed and not run.randomized:
            print(session.preparation)
            print(session.storage)
        for result in session.run():
            results.add(result)
            stem = "-".join([run.file_stem(session.backbone.name), *_place(result)])
            if overlays and run.seed == training.seed:
                examples = session.segment(result, spread(session.num_val, num_examples))
                save_segmentation_sheet(list(examples), session.class_names, overlays / f"{stem}.png")
            if predictions:
                folder = predictions / f"{stem}-{run.seed}"
                for number, image in enumerate(session.segment(result)):
                    file = folder / f"{number:05d}-{Path(image.name).stem}.png"
                    save_label_map(image.predicted, len(session.class_names), file)
        results.models.append(session.describe())
        save()
    print_results(results)


def print_results(results: SegmentationResults) -> None:
    """Print the results of each model, and its most frequent classes."""
    label = attrgetter("label")
    classes = dict(grouped(results.classes, label))
    for model, rows in grouped(results.rows, label):
        session = next(each for each in results.models if each.label == model)
        seeds = counted(len({row.seed for row in rows}), "seed")
        print_table(
            [_cells(same) for _, same in grouped(rows, _layers)],
            title=f"{model} on {Path(session.root).name if session.root else session.dataset}, {session.num_train:,} + "
            f"{session.num_val:,} images, {seeds}; rates and epochs chosen on a part of train",
        )
        found = grouped(classes.get(model, ()), attrgetter("number", "name"))
        found.sort(key=lambda pair: -pair[1][0].pixels)
        if cells := [_class_cells(name, same) for (_, name), same in found[:CLASSES]]:
            chosen = f"The {len(cells)} most frequent of" if len(cells) < len(found) else "The"
            print_table(cells, title=f"{chosen} {counted(len(found), 'class', 'classes')} of val")
    for session in results.models:
        print_unreadable(session, "images")


def _layers(row: SegmentationRow | ClassRow) -> str:
    return "+".join(map(str, row.layers))


def _cells(rows: Sequence[SegmentationRow]) -> dict[str, str]:
    return {
        "layers": _layers(rows[0]),
        "mIoU": mean_cell(row.miou for row in rows),
        "pixel accuracy": mean_cell(row.pixel_accuracy for row in rows),
        "mean class accuracy": mean_cell(row.mean_accuracy for row in rows),
        "held-out mIoU": mean_cell(row.held_out_miou for row in rows),
        "lr": ", ".join(f"{row.lr:.3g}" for row in rows),
        "epoch": ", ".join(str(row.epoch) for row in rows),
        "params": f"{rows[0].num_parameters:,}",
    }


def _class_cells(name: str, rows: Sequence[ClassRow]) -> dict[str, str]:
    cells = {"class": name, "pixels": f"{rows[0].pixels:,}"}
    for layers, same in grouped(rows, _layers):
        cells[f"{layers}: IoU"] = mean_cell(row.iou for row in same)
        cells[f"{layers}: accuracy"] = mean_cell(row.accuracy for row in same)
    return cells


def _csv_row(row: SegmentationRow | ClassRow) -> dict[str, Any]:
    return {**row.to_dict(), "layers": _layers(row)}


def _place(result: SegmentationResult) -> Iterable[str]:
    return [] if result.row.layers == ["last"] else ["layer", _layers(result.row)]
