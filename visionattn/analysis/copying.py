"""Copy score of attention heads: how often a patch attends to another patch with the same content.

In each image, the pixels of one patch are also put in a second place, and both are queries. The score of a head is the
share of queries whose strongest other patch is the twin, minus the share of those whose strongest other patch is an
unrelated third place. 1: the head finds copies. 0: it does not, whatever places it prefers.

This is the retrieval score of arXiv 2404.15574, taken to images. There, a head retrieves a token of a sentence if its
strongest key is that token, and the model's output is the same. Twins and the third place are ours.

The three places see each other, in layers with windows too. They are drawn with equal chances from all such triples of
query positions; on maps of more than 32 × 32 queries, from those in the middle. Heads have None if there is no triple,
or if the network does not run their layer.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from operator import length_hint

import torch
from torch import Tensor, nn

from visionattn.analysis.attention import record_attention
from visionattn.analysis.head_images import HeadBatch
from visionattn.analysis.heads import HeadLayer, HeadValues
from visionattn.analysis.recorded import Query, RecordedAttention
from visionattn.errors import UserError
from visionattn.progress import ShowProgress, no_progress

EDGE = 32
"""Largest height and width of the part of a map that places are drawn from."""


def measure_copying(
    network: nn.Module,
    layers: Sequence[HeadLayer],
    batches: Iterable[HeadBatch],
    *,
    seed: int = 0,
    progress: ShowProgress = no_progress,
) -> HeadValues:
    """Return the score `copy` of all heads of layers, see the module.

    Layers with the same map and windows share a forward pass per batch: a ViT needs one, DiNAT one per map and
    dilation.

    Args:
        network: The network, in evaluation mode, or a classifier around it.
        layers: Layers of the network, see `head_layers`.
        batches: The images.
        seed: For the places.
        progress: Called at the start, to show the progress.

    Raises:
        UserError: There are no images.
    """
    counts = {layer: torch.zeros(layer.num_heads, dtype=torch.int64) for layer in layers}
    groups: list[_Group] = []
    num_images = 0
    with torch.no_grad(), progress("copy scores of heads", "batches") as report:
        for number, batch in enumerate(batches, 1):
            if not groups:
                groups = _group(network, layers, batch.image[:1], seed)
            for group in groups:
                triples = group.draw(len(batch.image))
                with ExitStack() as stack:
                    for layer in group.layers:
                        layer.attention.watch(partial(_count, counts[layer], triples), stack)
                    network(group.copy_patches(batch.image, triples))
            num_images += len(batch.image)
            report(number, length_hint(batches) or None)
    if not num_images:
        raise UserError("there are no images to measure heads on")
    measured = {layer for group in groups for layer in group.layers}
    return {
        head: {"copy": count / (2 * num_images) if layer in measured else None}
        for layer in layers
        for head, count in zip(layer.heads, counts[layer].tolist(), strict=True)
    }


@dataclass
class _Group:
    """Layers with the same map and windows.

    Attributes:
        layers: The layers.
        places: Queries of the map.
        sees: Whether two different places see each other, `[P, P]`, bool.
        cells: Rows and columns of keys.
        stride: Distance of neighbouring queries.
        draws: Generator of the triples.
    """

    layers: list[HeadLayer]
    places: list[Query]
    sees: Tensor
    cells: tuple[int, int]
    stride: tuple[int, int]
    draws: torch.Generator

    def __post_init__(self) -> None:
        sees = self.sees.double()
        self.num_thirds = (sees @ sees * sees).flatten()  # places that see both of a pair, `[P * P]`

    def draw(self, count: int) -> list[tuple[Query, Query, Query]]:
        """Draw a patch, the place of its twin and a third place for each image, with equal chances of all triples."""
        pairs = torch.multinomial(self.num_thirds, count, replacement=True, generator=self.draws)
        first, twin = pairs // len(self.places), pairs % len(self.places)
        both = (self.sees[first] & self.sees[twin]).double()
        third = torch.multinomial(both, 1, generator=self.draws)[:, 0]
        triples = torch.stack([first, twin, third], 1).tolist()
        return [(self.places[a], self.places[b], self.places[c]) for a, b, c in triples]

    def copy_patches(self, images: Tensor, triples: Sequence[tuple[Query, Query, Query]]) -> Tensor:
        """Return images `[B, C, H, W]` with the pixels of the first place at the second one too."""
        changed = images.clone()
        for image, source, (first, twin, _) in zip(changed, images, triples, strict=True):
            image[self._pixels(image, twin)] = source[self._pixels(image, first)]
        return changed

    def _pixels(self, image: Tensor, place: Query) -> tuple[slice, slice, slice]:
        starts = []
        for pixels, cells, stride, index in zip(image.shape[1:], self.cells, self.stride, place, strict=True):
            start = index * stride * pixels // cells
            starts.append(slice(start, start + pixels // cells))
        return slice(None), starts[0], starts[1]


def _group(network: nn.Module, layers: Sequence[HeadLayer], image: Tensor, seed: int) -> list[_Group]:
    """Group layers by map and windows, without those that have no triple of places."""
    with record_attention({layer: layer.attention for layer in layers}) as found:
        network(image)
    groups: list[_Group] = []
    for layer in layers:
        if layer not in found:  # the network does not run it
            continue
        recorded: RecordedAttention = found[layer]
        height, width = recorded.num_queries
        top, left = max(0, height - EDGE) // 2, max(0, width - EDGE) // 2
        places = [(top + row, left + column) for row in range(min(height, EDGE)) for column in range(min(width, EDGE))]
        sees = recorded.seen(places).flatten(1).cpu()[:, recorded.keys_of(places)]
        sees = (sees & sees.T).fill_diagonal_(False)
        for group in groups:
            same_map = group.cells == recorded.size and group.stride == recorded.stride
            if same_map and torch.equal(group.sees, sees):
                group.layers.append(layer)
                break
        else:
            draws = torch.Generator().manual_seed(seed)
            groups.append(_Group([layer], places, sees, recorded.size, recorded.stride, draws))
    return [group for group in groups if bool(group.num_thirds.any())]


def _count(counts: Tensor, triples: Sequence[tuple[Query, Query, Query]], recorded: RecordedAttention) -> None:
    """Add to each head's count the queries whose strongest other patch is the twin, less the third place."""
    for (first, twin, third), image in zip(triples, recorded.split(1), strict=True):
        keys = image.keys_of([first, twin, third])
        weights = image.rows([first, twin])[0].flatten(2).cpu()  # [h, 2, K]
        own = keys[:2, None].expand(len(weights), 2, 1)
        strongest = weights.scatter(-1, own, -torch.inf).argmax(-1)
        counts += ((strongest == keys[[1, 0]]).long() - (strongest == keys[2]).long()).sum(-1)
