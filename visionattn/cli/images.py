"""Images of what a model does with images: ranked lists, and what DCAL's attention is on."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.cli.errors import UsageError
from visionattn.data import ImageLoader
from visionattn.data.sampling import Draw
from visionattn.tasks.retrieval import Gallery, divide, rank

TOP = 10
"""Images of the gallery in a ranked list."""


def spread(count: int, number: int) -> list[int]:
    """``number`` places among ``count``, evenly spaced; all of them where there are fewer."""
    return [index * count // number for index in range(number)] if number < count else list(range(count))


def check_number(num_examples: int) -> None:
    """Check how many images are to be drawn.

    Raises:
        UsageError: there would be none.
    """
    if num_examples < 1:
        raise UsageError(f"--num_examples must be at least 1, got {num_examples}")


def save_ranked_lists(
    folder: Path, found: Gallery, loader: ImageLoader, num_query: int, number: int, *, reranked: bool = False
) -> None:
    """Draws what comes first in the gallery for ``number`` queries.

    Args:
        folder: where ``PLACE-NAME.png`` go.
        found: queries and gallery with their features.
        loader: of the same images.
        num_query: so many places are queries, from the first one on.
        number: how many are drawn, evenly spaced.
        reranked: rank with k-reciprocal neighbours.
    """
    from visionattn.viz.ranked_lists import RankedList
    from visionattn.viz.ranked_lists import save_ranked_lists as save

    dataset: Any = loader.dataset
    source = dataset.source
    query, gallery = divide(found, num_query)
    chosen = spread(len(query.place), number)
    lists = []
    for index, (order, matches) in zip(chosen, rank(query, gallery, chosen, TOP, reranked=reranked), strict=True):
        place = int(query.place[index])
        name = f"{place:05d}-{Path(source.name_of(place)).stem}"
        images = [source.read(int(gallery.place[other]))[0] for other in order]
        lists.append(RankedList(name, source.read(place)[0], images, matches.tolist()))
    save(folder, lists)


def check_rollout(model: nn.Module, name: str) -> None:
    """Checks that ``model`` selects patches.

    Raises:
        ValueError: it does not.
    """
    if not hasattr(model, "rollout_maps"):
        raise ValueError(f"{name} selects no patches: --rollout draws DCAL's models")


@torch.inference_mode()
def save_rollouts(
    folder: Path, model: Any, loader: ImageLoader, count: int, preprocessing: Mapping[str, Any], number: int
) -> None:
    """Draws what the attention of a DCAL model is on, in ``number`` of the first ``count`` images of a loader.

    Args:
        folder: where ``NUMBER-NAME.png`` go.
        model: with ``rollout_maps``.
        loader: of a data set with random access.
        count: so many images are drawn from.
        preprocessing: of these images: ``mean`` and ``std``.
        number: how many are drawn, evenly spaced.
    """
    from visionattn.viz.image import denormalize, save_image
    from visionattn.viz.rollout import draw_rollout

    device = next(model.parameters()).device
    for place, name, image in _read(loader, spread(count, number)):
        scores, selected = model.rollout_maps(image[None].to(device))
        pixels = denormalize(image, preprocessing["mean"], preprocessing["std"])
        drawn = draw_rollout(pixels, scores[0].cpu(), selected[0].cpu(), model.grid)
        save_image(drawn, folder / f"{place:05d}-{Path(name).stem}.png")


def _read(loader: ImageLoader, places: list[int]) -> Iterator[tuple[int, str, Tensor]]:
    dataset: Any = loader.dataset
    for place in places:
        item = dataset[Draw(place)]
        if item.image is not None:
            yield place, item.name, item.image
