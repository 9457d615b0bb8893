"""Same-object maps of clicks: the patches that a probe takes for the object of one patch."""

from collections.abc import Sequence
from typing import Any

from visionattn.evaluation.drawing import spread
from visionattn.objects.patches import PatchLabels, label_patches
from visionattn.objects.session import BindingSession
from visionattn.viz.binding import Click
from visionattn.viz.image import denormalize

LOGIT_PROBES = ("quadratic", "quadratic_full", "diagonal", "linear")
"""Probes whose scores are logits, which maps need."""

MAX_LAYERS = 5  # that are mapped


def click_objects(session: BindingSession, probe: str, best: int, number: int) -> tuple[list[Click], list[str]]:
    """Click on one object in each of some validation scenes, and map the probability of the same object.

    Args:
        session: Session with trained probes.
        probe: One of `LOGIT_PROBES`.
        best: Layer on whose grid the click is placed; it is marked in the captions.
        number: Number of scenes, evenly spaced; scenes that cannot be read are left out.

    Returns:
        The clicks with one map per layer, and the captions of the maps, for `visionattn.viz.save_similarity_sheet`.
    """
    backbone = session.backbone
    layers = choose_layers(session.probes.layers, best)
    probes = {layer: session.probes.at(layer) for layer in layers}
    loader: Any = session.module.val_dataloader()
    clicks = []
    for _, batch in loader.one_by_one(spread(len(loader.dataset), number)):
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
    return clicks, [f"layer {layer}{', best' if layer == best else ''}" for layer in layers]


def choose_layers(layers: Sequence[int], best: int) -> list[int]:
    """Choose a few layers from the first to the last, including the best."""
    count = min(len(layers), MAX_LAYERS)
    places = [round(index * (len(layers) - 1) / max(count - 1, 1)) for index in range(count)]
    chosen = [layers[place] for place in places]
    if best not in chosen:
        nearest = min(range(count), key=lambda index: abs(places[index] - layers.index(best)))
        chosen[nearest] = best
    return chosen


def choose_patch(labels: PatchLabels, grid: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Choose a patch near the middle of the largest object, or of the largest segment if there is no object.

    Returns:
        Id of the segment in the first image, and row and column of the patch.
    """
    instances, purity = labels.instances[0], labels.purity[0]
    among = labels.things[0] if bool(labels.things[0].any()) else instances > 0
    segment = int(instances[among].mode().values) if bool(among.any()) else 0
    mine = (instances == segment).view(grid)
    places = mine.nonzero().float()
    away = (places - places.mean(0)).norm(dim=1) + sum(grid) * (1 - purity.view(grid)[mine])
    row, column = places[away.argmin()].int().tolist()
    return segment, (row, column)
