"""Images of what probes for object binding say: which patches lie on the same object as one that was clicked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionattn.cli.binding_run import BindingSubject
from visionattn.data.sampling import Draw
from visionattn.data.scenes.loading import SceneCollate
from visionattn.evaluation.drawing import spread
from visionattn.objects.patches import PatchLabels, label_patches

MOST_MAPS = 5
"""Layers on a sheet."""


def save_overlays(path: Path, subject: BindingSubject, probe: str, best: int, number: int) -> None:
    """Draws same-object maps of clicks in ``number`` scenes of val, at some layers, the best one among them.

    Args:
        path: the image that is written.
        subject: backbone, probes and scenes.
        probe: the probe, whose scores are logits.
        best: the best layer.
        number: how many scenes are drawn, evenly spaced.
    """
    from visionattn.viz.binding import Click, save_similarity_sheet
    from visionattn.viz.image import denormalize

    backbone = subject.backbone
    layers = shown_layers(subject.probes.layers, best)
    probes = {layer: subject.probes.at(layer) for layer in layers}
    dataset: Any = subject.module.val_dataloader().dataset
    collate = SceneCollate(backbone.preprocessing["input_size"])
    clicks = []
    for place in spread(len(dataset), number):
        batch = collate([dataset[Draw(place)]])
        if not len(batch.image):
            continue
        grid = backbone.layouts[best].grid
        segment, patch = choose_patch(label_patches(batch, grid), grid)
        features = backbone(batch.image)
        maps = []
        for layer in layers:
            scores = probes[layer].score(probe, features[layer])[0]
            other = backbone.layouts[layer].grid
            row, column = (index * count // of for index, count, of in zip(patch, other, grid, strict=True))
            maps.append(scores[row * other[1] + column].sigmoid().view(other).cpu().numpy())
        pixels = denormalize(batch.image[0], backbone.preprocessing["mean"], backbone.preprocessing["std"])
        clicks.append(Click(pixels, patch, (batch.segments[0] == segment).numpy(), maps))
    captions = [f"layer {layer}{', best' if layer == best else ''}" for layer in layers]
    save_similarity_sheet(clicks, captions, path)


def shown_layers(layers: Sequence[Any], best: int) -> list[Any]:
    """A few layers from the first to the last, the best one among them."""
    count = min(len(layers), MOST_MAPS)
    places = [round(index * (len(layers) - 1) / max(count - 1, 1)) for index in range(count)]
    chosen = [layers[place] for place in places]
    if best not in chosen:
        nearest = min(range(count), key=lambda index: abs(places[index] - list(layers).index(best)))
        chosen[nearest] = best
    return chosen


def choose_patch(labels: PatchLabels, grid: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """A click on the first image of a batch: the largest object, or else the largest segment, near its middle.

    Returns:
        Id of the segment, and row and column of the patch.
    """
    instances, purity = labels.instances[0], labels.purity[0]
    among = labels.things[0] if bool(labels.things[0].any()) else instances > 0
    segment = int(instances[among].mode().values) if bool(among.any()) else 0
    mine = (instances == segment).view(grid)
    places = mine.nonzero().float()
    away = (places - places.mean(0)).norm(dim=1) + sum(grid) * (1 - purity.view(grid)[mine])
    row, column = places[away.argmin()].int().tolist()
    return segment, (row, column)
