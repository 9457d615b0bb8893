"""Binding score of attention heads: how much more a patch attends to its own object than uniform attention does.

    layers = head_layers(loaded.model)
    scenes = open_binding_scenes(loaded, "data/coco-panoptic-100", limit=24)
    measure_binding(loaded.model, layers, scenes)[11, 3]["binding"]

For a query on an object, let s be the attention to other patches of this object, divided by the attention to all other
patches that the query sees, and u the same for uniform attention. `binding` is the mean of s / u over the queries that
see other patches of their object and patches that are not of it. 1: objects do not matter. The largest value is that of
attention that stays on the object, 1 / u, and depends on the objects. A head that prefers near patches has more than 1
without knowing objects, because near patches mostly lie on the same one: compare heads of equal `distance`.

Objects are segments of things. A patch belongs to the segment that has most of its pixels, on the grid of keys of each
layer. Negative weights, which local linear attention has, count as 0. On maps of more than 1,024 queries, 256 are read,
see `visionattn.analysis.scores`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import length_hint
from pathlib import Path

import torch
from torch import Tensor, nn

from visionattn.analysis.heads import HeadLayer, HeadValues
from visionattn.analysis.recorded import Query, RecordedAttention
from visionattn.analysis.scores import at_least_float32, choose_queries, num_images_at_once
from visionattn.data.loading import ImageLoader
from visionattn.data.scenes import SceneBatch, SceneData
from visionattn.errors import UserError
from visionattn.evaluation.as_trained import open_scenes
from visionattn.evaluation.source import LoadedModel
from visionattn.objects.patches import label_patches
from visionattn.probing.scenes import ProbingScenes
from visionattn.progress import ShowProgress, no_progress


def measure_binding(
    network: nn.Module,
    layers: Sequence[HeadLayer],
    scenes: Iterable[SceneBatch],
    *,
    progress: ShowProgress = no_progress,
) -> HeadValues:
    """Return the score `binding` of all heads of layers, see the module; None if no query has objects to bind.

    Args:
        network: The network, in evaluation mode, or a classifier around it.
        layers: Layers of the network, see `visionattn.analysis.heads.head_layers`.
        scenes: Normalised images with segments, on the network's device.
        progress: Called at the start, to show the progress.

    Raises:
        UserError: There are no scenes.
    """
    sums = {layer: _Binding(layer.num_heads) for layer in layers}
    with torch.no_grad(), ExitStack() as stack, progress("binding scores of heads", "batches") as report:
        for layer in layers:
            layer.attention.watch(sums[layer].update, stack)
        number = 0
        for number, batch in enumerate(scenes, 1):
            for each in sums.values():
                each.scenes = batch
            network(batch.image)
            report(number, length_hint(scenes) or None)
    if not number:
        raise UserError("there are no scenes to measure heads on")
    return {
        head: {"binding": total / sums[layer].count if sums[layer].count else None}
        for layer in layers
        for head, total in zip(layer.heads, sums[layer].total.tolist(), strict=True)
    }


class _Binding:
    """Sum of a layer's scores over queries.

    Attributes:
        scenes: The scenes of the forward pass.
        total: Of the scores of each head, `[h]`.
        count: Number of queries.
    """

    scenes: SceneBatch

    def __init__(self, num_heads: int) -> None:
        self.total, self.count = torch.zeros(num_heads, dtype=torch.float64), 0
        self.queries: list[Query] = []

    def update(self, recorded: RecordedAttention) -> None:
        """Add the queries on objects of a batch."""
        if not self.queries:
            self.queries = choose_queries(recorded)
            self.keys = recorded.keys_of(self.queries)
            self.others = recorded.seen(self.queries).flatten(1)  # [Q, K]
            self.others[torch.arange(len(self.keys)), self.keys] = False
        labels = label_patches(self.scenes, recorded.size)
        count = num_images_at_once(len(self.total) * self.others.numel())
        parts = zip(*(x.split(count) for x in (recorded, labels.instances, labels.things)), strict=True)
        for part, instances, things in parts:
            self._add(part.rows(self.queries), instances, things)

    def _add(self, rows: Tensor, instances: Tensor, things: Tensor) -> None:
        """Add the weights `[B, h, Q, H, W]` of queries on patches of known instances and kinds `[B, K]`."""
        weights = at_least_float32(rows).flatten(3).clamp(min=0)
        others = self.others.to(weights.device)
        same = others & (instances[:, self.keys, None] == instances[:, None])  # [B, Q, K]
        num_same, num_others = same.sum(-1), others.sum(-1)
        counted = things[:, self.keys] & (num_same > 0) & (num_same < num_others)  # [B, Q]
        on_object, on_others = ((weights * mask).sum(-1) for mask in (same[:, None], others))  # [B, h, Q]
        share = on_object / on_others.clamp(min=torch.finfo(weights.dtype).tiny)
        scores = share / (num_same.clamp(min=1) / num_others.to(share))[:, None]
        self.total += (scores * counted[:, None]).sum((0, 2)).double().cpu()
        self.count += int(counted.sum())


@dataclass(frozen=True)
class BindingScenes:
    """Scenes of the validation split, which can be gone through any number of times.

    Attributes:
        data: The data module.
        loader: Reads the scenes in order.
        device: Device of the batches.
    """

    data: SceneData
    loader: ImageLoader
    device: torch.device | str

    def __iter__(self) -> Iterator[SceneBatch]:
        """Yield all batches, with normalised images, without scenes that cannot be read."""
        for batch in self.loader:
            if len(batch.image):
                yield batch.to(self.device)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.loader)

    @property
    def unreadable(self) -> list[str]:
        """Scenes that could not be read so far, with the reason."""
        return list(self.loader.broken)


def open_binding_scenes(
    loaded: LoadedModel,
    scenes: str | Path | ProbingScenes,
    limit: int | None = None,
    device: torch.device | str = "cpu",
) -> BindingScenes:
    """Open the validation split of scenes for a model, with its own preprocessing.

    Args:
        loaded: The model.
        scenes: Folder of the scenes, or their options. Without a name of the data set, a folder that holds
            `annotations` is COCO panoptic, and another one has masks of instance numbers.
        limit: Number of scenes, the first ones; by default all.
        device: Device of the batches.

    Raises:
        ValueError: The data are missing, or the model does not take them.
    """
    options = scenes if isinstance(scenes, ProbingScenes) else ProbingScenes(root=str(scenes))
    if options.name is None and options.root and (Path(options.root).expanduser() / "annotations").is_dir():
        options = replace(options, name="coco_panoptic")
    if limit is not None:
        options = replace(options, limit=limit)
    preprocessing = options.prepare(loaded.spec)
    data = open_scenes(loaded.spec, options, "validate", preprocessing=preprocessing, name=options.name, hflip=0.0)
    return BindingScenes(data, data.val_dataloader(), device)
