"""How well the slots of a model agree with the objects of scenes."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from visionattn.cli.classify import NAMED_UNREADABLE
from visionattn.cli.device import Precision, autocast, resolve_device
from visionattn.cli.images import check_number, spread
from visionattn.cli.options import renamed
from visionattn.cli.progress import track
from visionattn.cli.report import check_folder, check_writable, print_table, write_csv, write_json
from visionattn.data.loading import OnError
from visionattn.data.sampling import Draw
from visionattn.data.scenes import SceneData
from visionattn.data.scenes.opening import SceneName
from visionattn.models.slots import SlotAutoencoder, encode
from visionattn.objects.baselines import block_grid, random_segments
from visionattn.tasks.checkpoint import ClassifierSpec, Weights
from visionattn.tasks.object_discovery import create_scores, load_slots
from visionattn.viz.slots import save_slots
from visionattn_kernels.provenance import provenance

MEASURES = {"fg_ari": "FG-ARI", "ari": "ARI", "mbo_i": "mBO_i", "mbo_c": "mBO_c", "corloc": "CorLoc"}
SHEET = "slots.png"


@dataclass(frozen=True)
class SceneEvaluationData:
    """Which scenes, and how they are read; what is not given is as the model was trained.

    Args:
        name: synthetic, coco_panoptic, ade20k or folder.
        root: folder of the data set.
        split: of which split, by default the one for validation.
        limit: the first so many scenes; by default all.
        max_objects: synthetic scenes have 2 to so many.
        textured: some synthetic objects and backgrounds have patterns.
        batch_size: scenes per step.
        num_workers: loader processes.
        on_error: a scene that cannot be read: raise names it and stops, skip leaves it out and counts it.
    """

    name: SceneName | None = None
    root: str | None = None
    split: str | None = None
    limit: int | None = None
    max_objects: int = 6
    textured: bool = True
    batch_size: int = 64
    num_workers: int | None = None
    on_error: OnError = "raise"


AS_TRAINED = SceneEvaluationData()


def discover(
    checkpoint: Path,
    weights: Weights = "average",
    data: SceneEvaluationData = AS_TRAINED,
    device: str = "auto",
    precision: Precision = "32-true",
    output: Path | None = None,
    csv: Path | None = None,
    examples: Path | None = None,
    num_examples: int = 16,
) -> None:
    """Evaluate how well slots find the objects of scenes, beside a grid of as many blocks and random segments.

    Args:
        checkpoint: file that train.py --task object_discovery wrote.
        weights: of a checkpoint that holds a moving average, that average or the raw weights.
        data: which scenes.
        device: auto, cpu, cuda, cuda:1, …
        precision: as --trainer.precision.
        output: JSON file for the results.
        csv: CSV file for the table.
        examples: folder for slots.png, a sheet of scenes, their true segments and their slots.
        num_examples: number of scenes on it, evenly spaced.

    Raises:
        UsageError: no scene is to be drawn.
        ValueError: a checkpoint or data set that is not there or does not fit the other.
    """
    check_writable(json=output, csv=csv)
    check_folder(examples)
    check_number(num_examples)
    resolved = resolve_device(device)
    encoder, slots, spec = load_slots(checkpoint, weights)
    module = _open(data, spec)
    finder = Finder(encoder.to(resolved), slots.to(resolved), precision)

    start = time.perf_counter()
    scores, num_images = _measure(finder, module, spec)
    seconds = time.perf_counter() - start

    rows = [{"segments": name, **_values(each)} for name, each in scores.items()]
    unreadable = module.broken("validation")
    result = {
        "model": spec.model,
        "method": slots.method,
        "checkpoint": str(checkpoint),
        "weights": weights,
        "dataset": module.name,
        "root": data.root,
        "split": data.split,
        "num_images": num_images,
        "num_slots": slots.slot_attention.num_slots,
        **{key: value for key, value in rows[0].items() if key != "segments"},
        "baselines": rows[1:],
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
    if csv:
        write_csv(rows, csv)
    if examples:
        _draw(finder, module, num_examples, examples / SHEET)
    _print(rows, result)


class Finder:
    """An encoder and slots, as one function from images to segments."""

    def __init__(self, encoder: nn.Module, slots: SlotAutoencoder, precision: Precision) -> None:
        self.encoder, self.slots, self.precision = encoder, slots, precision
        self.device = next(slots.parameters()).device

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Which slot has each place of images [B, H, W], and what the slots draw, where these are images."""
        with autocast(self.device, self.precision):
            found = self.slots(encode(self.encoder, image.to(self.device, non_blocking=True)))
        rebuilt = found.reconstruction.cpu() if self.slots.method == "slot_attention" else None
        return found.segments(image.shape[-2:]).cpu(), rebuilt


@renamed(val_split="split", eval_batch_size="batch_size")
def _open(data: SceneEvaluationData, spec: ClassifierSpec) -> SceneData:
    """The scenes, preprocessed as the model wants it."""
    trained = spec.preprocessing
    module = SceneData(
        name=data.name or (None if data.root else spec.dataset),  # type: ignore[arg-type]
        root=data.root,
        val_split=data.split,
        limit=data.limit,
        image_size=trained["input_size"][-1],
        max_objects=data.max_objects,
        textured=data.textured,
        eval_batch_size=data.batch_size,
        num_workers=data.num_workers,
        mean=list(trained["mean"]),
        std=list(trained["std"]),
        interpolation=trained["interpolation"],
        crop_mode=trained["crop_mode"],
        on_error=data.on_error,
    )
    module.setup("validate")
    return module


def _measure(finder: Finder, module: SceneData, spec: ClassifierSpec) -> tuple[dict[str, MetricCollection], int]:
    """Scores of the slots and of the baselines, and the number of scenes."""
    scores = {name: create_scores() for name in ("slots", "blocks", "random")}
    count, num_slots = 0, finder.slots.slot_attention.num_slots
    generator = torch.Generator().manual_seed(0)
    batch: Any  # of SceneBatch
    for batch in track(module.val_dataloader(), f"evaluating {spec.model}"):
        if not len(batch.image):
            continue
        truth = batch.segments, batch.classes, batch.things
        height, width = batch.segments.shape[-2:]
        blocks = block_grid(num_slots, height, width).expand_as(batch.segments)
        drawn = [random_segments(num_slots, height, width, generator) for _ in batch.segments]
        for each, predicted in zip(scores.values(), (finder(batch.image)[0], blocks, torch.stack(drawn)), strict=True):
            each.update(predicted, *truth)
        count += len(batch.image)
    if not count:
        raise ValueError(f"not one scene could be read: {(module.broken('validation') or ['there are none'])[0]}")
    return scores, count


def _values(scores: MetricCollection) -> dict[str, float | None]:
    """Fractions by name; None for a measure that no scene has."""
    values = scores.compute()
    return {name: None if values[name].isnan() else float(values[name]) for name in MEASURES}


def _draw(finder: Finder, module: SceneData, number: int, path: Path) -> None:
    """Draws some scenes of the loader, and what slots make of them."""
    dataset: Any = module.val_dataloader().dataset
    items = [dataset[Draw(place)] for place in spread(len(dataset), number)]
    scenes = [item.image for item in items if item.image is not None]
    image, segments = (torch.stack([getattr(scene, name) for scene in scenes]) for name in ("image", "segments"))
    save_slots(image, segments, *finder(image), path, module.preprocessing["mean"], module.preprocessing["std"])


def _print(rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    title = f"{result['method']} on {result['model']}, {result['num_images']:,} scenes of {result['dataset']}"
    names = {"slots": f"{result['num_slots']} slots", "blocks": "a grid of as many blocks", "random": "at random"}
    print_table(
        [
            {
                "segments": names[row["segments"]],
                **{label: "–" if row[key] is None else f"{row[key]:.2%}" for key, label in MEASURES.items()},
            }
            for row in rows
        ],
        title,
    )
    if result["num_unreadable"]:
        print(f"unreadable scenes left out: {result['num_unreadable']}, the first: {result['unreadable'][0]}")
