"""Images of what models do: ranked lists, the attention of DCAL models, slots."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from visionattn.evaluation.device import autocast
from visionattn.evaluation.discovery import DiscoveryResult
from visionattn.evaluation.retrieval import RetrievalResult
from visionattn.metrics.gallery import divide, rank

TOP = 10
"""Images of the gallery in a ranked list."""


def spread(count: int, number: int) -> list[int]:
    """Return the indices of ``number`` evenly spaced items out of ``count``; of all if there are fewer."""
    return [index * count // number for index in range(number)] if number < count else list(range(count))


def save_ranked_lists(folder: Path, result: RetrievalResult, number: int) -> None:
    """Draw the first ranks of the gallery for ``number`` queries, evenly spaced, as ``PLACE-NAME.png`` in a folder."""
    from visionattn.viz.ranked_lists import RankedList
    from visionattn.viz.ranked_lists import save_ranked_lists as save

    source = result.data.val_dataloader().dataset.source
    query, gallery = divide(result.features, result.data.num_query)
    chosen = spread(len(query.place), number)
    ranks = rank(query, gallery, chosen, TOP, reranked=result.reranked)
    lists = []
    for index, (order, matches) in zip(chosen, ranks, strict=True):
        place = int(query.place[index])
        name = f"{place:05d}-{Path(source.name_of(place)).stem}"
        images = [source.read(int(gallery.place[other]))[0] for other in order]
        lists.append(RankedList(name, source.read(place)[0], images, matches.tolist()))
    save(folder, lists)


def require_rollout(model: Any, name: str) -> None:
    """Raise a ValueError unless the model selects patches."""
    if not hasattr(model, "rollout_maps"):
        raise ValueError(f"{name} selects no patches: --rollout draws DCAL's models")


@torch.inference_mode()
def save_rollouts(folder: Path, model: Any, data: Any, count: int, number: int) -> None:
    """Draw the attention of a DCAL model, and the patches that it selects, as ``PLACE-NAME.png`` in a folder.

    ``number`` images are drawn, evenly spaced among the first ``count`` of the validation split, which has random
    access. The model has ``rollout_maps``. A missing folder is made.
    """
    from visionattn.viz.image import denormalize, save_image
    from visionattn.viz.rollout import draw_rollout

    device = next(model.parameters()).device
    preprocessing: Mapping[str, Any] = data.preprocessing
    for place, batch in data.val_dataloader().one_by_one(spread(count, number)):
        scores, selected = model.rollout_maps(batch.image.to(device))
        pixels = denormalize(batch.image[0], preprocessing["mean"], preprocessing["std"])
        drawn = draw_rollout(pixels, scores[0].cpu(), selected[0].cpu(), model.grid)
        save_image(drawn, folder / f"{place:05d}-{Path(batch.name[0]).stem}.png")


def save_slot_sheet(path: Path, result: DiscoveryResult, number: int) -> None:
    """Draw ``number`` scenes, evenly spaced, above their true segments, their slots and what the slots draw."""
    from visionattn.viz.slots import save_slots

    loader = result.data.val_dataloader()
    scenes = [scene for _, scene in loader.one_by_one(spread(len(loader.dataset), number))]
    image, segments = (torch.cat([getattr(scene, name) for scene in scenes]) for name in ("image", "segments"))
    slots = result.network.slots
    device = next(slots.parameters()).device
    with torch.inference_mode(), autocast(device, result.precision):
        found = result.network(image.to(device))
    rebuilt = found.reconstruction.cpu() if slots.method == "slot_attention" else None
    mean, std = (result.preprocessing[key] for key in ("mean", "std"))
    save_slots(image, segments, found.segments(image.shape[-2:]).cpu(), rebuilt, path, mean, std)
