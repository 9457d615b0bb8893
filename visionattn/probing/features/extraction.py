"""Extraction of features to a cache: pooled vectors always, tokens if they fit."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from visionattn.data.normalisation import Normalisation, move_batch, stack_images
from visionattn.layers.prepared import frozen_weights
from visionattn.probing.features.cache import Field, ShardedArrays
from visionattn.probing.frozen import FrozenBackbone, Layer, TokenLayout
from visionattn.probing.heads import select_tokens

PooledKind = Literal["cls", "gap"]
"""Pooled vectors: the class token, or the mean of the patches."""


INDEX = {"index": Field("int64")}
"""Readable images. Their classes are not cached: they come from the data set in every run."""

LABELS = "labels"
"""Name of the array of label maps, which are cached, as reading them takes about as long as reading images."""


class ImageBatch(NamedTuple):
    """A batch of images.

    Attributes:
        image: Images `[B, C, H, W]`, bytes or normalised floats, without those that cannot be read.
        index: Numbers of the images `[B]`.
        errors: A line for each image that cannot be read.
        normalisation: Normalisation of images that are bytes.
        labels: Class of each pixel `[B, H, W]`, int16, -1 for none; None for images without such maps.
    """

    image: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which is not needed
    errors: list[str]
    normalisation: Normalisation | None = None
    labels: Tensor | None = None

    def to(self, device: torch.device | str) -> "ImageBatch":
        """Return the batch on a device, with normalised images."""
        return move_batch(self, device)


class Images(Protocol):
    """Images to extract features from, numbered from 0.

    Attributes:
        identity: All that pixels depend on, in plain values: data set, split, `fingerprint`, transform.
        augmentation: Augmentation of views with its seed, in plain values.
        targets: Class indices of all images.
    """

    identity: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    targets: Sequence[int]

    def __len__(self) -> int: ...

    def open(self, batches: Sequence[Sequence[int]], view: int = 0) -> Iterable[ImageBatch]:
        """Read images by their numbers, batch by batch, without those that cannot be read.

        View 0 has images as in evaluation. Others are augmented, as a function of seed, view and image alone
        (`view_seed`).
        """


def collate_images(items: Sequence[Any], normalisation: Normalisation | None = None) -> ImageBatch:
    """Make a batch of items with `image` (None if it cannot be read), `index` and `errors`."""
    good = [item for item in items if item.image is not None]
    return ImageBatch(
        stack_images([item.image for item in good], normalisation) if good else torch.empty(0),
        torch.tensor([item.index for item in good], dtype=torch.long),
        [error for item in items for error in item.errors],
        normalisation,
    )


def view_seed(seed: int, view: int, image: int) -> int:
    """Return the seed of the augmentation of an image in a view, 32 bits."""
    return int(np.random.SeedSequence([seed, view, image]).generate_state(1)[0])


def pool_tokens(tokens: Tensor, kind: PooledKind, num_prefix_tokens: int, num_reg_tokens: int = 0) -> Tensor:
    """Return the class token or the mean patch `[B, dim]` of tokens `[B, num_prefix_tokens + N, dim]`."""
    return select_tokens(tokens, "cls" if kind == "cls" else "patches", num_prefix_tokens, num_reg_tokens).mean(1)


class FeatureCache:
    """Features of images by layer; row i belongs to the i-th readable image.

    Attributes:
        layouts: Layout of each layer's tokens.
        views: Number of views with tokens; 0 if there are none.
        indices: Numbers of the images, `[n]`.
        targets: Classes of the images, `[n]`.
    """

    def __init__(
        self, arrays: ShardedArrays, layouts: Mapping[Layer, TokenLayout], views: int, targets: Sequence[int]
    ) -> None:
        """Open complete arrays; `targets` are the classes of all images, readable or not.

        Raises:
            ValueError: Views are of different images.
        """
        self.arrays, self.layouts, self.views = arrays, dict(layouts), views
        self.indices = torch.from_numpy(arrays.column(0, "index"))
        for view in range(1, views):
            if not np.array_equal(arrays.column(view, "index"), self.indices.numpy()):
                raise ValueError(
                    f"view {view} in {arrays.folder} is of other images than the first, as some were readable once "
                    "only; remove the folder"
                )
        self.targets = torch.tensor(targets, dtype=torch.long)[self.indices]
        lengths = [len(arrays.read(0, shard, "index")) for shard in range(arrays.num_shards)]
        self._starts = np.cumsum([0, *lengths[:-1]])
        self._mapped: dict[tuple[int, int, str], np.ndarray] = {}

    def pooled(self, layer: Layer, kind: PooledKind) -> Tensor:
        """Return pooled vectors of a layer, `[n, dim]` float32.

        Raises:
            ValueError: The layer has no class token.
        """
        if kind == "cls" and not self.layouts[layer].has_cls:
            raise ValueError(f"layer {layer!r} has no class token to take vectors of kind 'cls' from; take 'gap'")
        return torch.from_numpy(self.arrays.column(0, f"{layer}.{kind}")).float()

    def shards(self, layer: Layer, kind: PooledKind | Literal["tokens"]) -> Iterator[np.ndarray]:
        """Yield pooled vectors or tokens of a layer, of all images in order, some thousands at once; not augmented."""
        for shard in range(self.arrays.num_shards):
            yield self.arrays.read(0, shard, f"{layer}.{kind}")

    def tokens(self, layer: Layer, rows: np.ndarray, view: int = 0) -> Tensor:
        """Return tokens of a layer, `[len(rows), num_tokens, dim]` float32, in the order of the rows."""
        return self._gather(f"{layer}.tokens", rows, view, torch.float32)

    def labels(self, rows: np.ndarray) -> Tensor:
        """Return label maps `[len(rows), H, W]` int64, in the order of the rows."""
        return self._gather(LABELS, rows, 0, torch.int64)

    def _gather(self, name: str, rows: np.ndarray, view: int, dtype: torch.dtype) -> Tensor:
        values = torch.empty(len(rows), *self.arrays.fields[name].shape, dtype=dtype)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            places = places[np.argsort(rows[places], kind="stable")]  # a file is read from its beginning to its end
            found = self._map(view, shard, name)[rows[places] - self._starts[shard]]
            values[torch.from_numpy(places)] = torch.from_numpy(found).to(dtype)
        return values

    def _map(self, view: int, shard: int, name: str) -> np.ndarray:
        key = (view, shard, name)
        if key not in self._mapped:
            self._mapped[key] = self.arrays.read(view, shard, name)
        return self._mapped[key]


def extract_features(
    backbone: FrozenBackbone,
    images: Images,
    folder: str | Path,
    *,
    token_budget_gb: float = 0.0,
    views: int = 1,
    label_size: tuple[int, int] | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 64,
    rows_per_shard: int | None = None,
    verify: bool = True,
    rebuild: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureCache:
    """Extract features that are not cached yet, and return the cache; resume after a kill.

    Args:
        backbone: The backbone.
        images: The images.
        folder: Folder of the cache, for these images and this backbone alone.
        token_budget_gb: Tokens are cached if those of all layers and views take no more, in 10⁹ bytes.
        views: Views whose tokens are cached: the images as in evaluation, and `views` - 1 augmented ones.
        label_size: Height and width of label maps, if batches have them; they are cached also.
        dtype: Type of cached features.
        batch_size: Images per step.
        rows_per_shard: Images per file, by default as many as take about 128 MiB.
        verify: Whether to compare the checksums of cached features.
        rebuild: Whether to replace a stale cache; a warning says so.
        progress: Called with the number of images that are done, counted per view, and the number of all.

    Raises:
        ValueError: No images, features that `dtype` cannot hold, or a folder with other files in it.
        OSError: The disk is full.
    """
    if not len(images):
        raise ValueError("there are no images to extract features from")
    if views < 1 or batch_size < 1:
        raise ValueError(f"views and batch_size must be at least 1; got {views} and {batch_size}")
    always, pooled, tokens = _fields(backbone.layouts, dtype, label_size)
    with_tokens = views * len(images) * sum(field.nbytes for field in tokens.values()) <= token_budget_gb * 1e9
    views = views if with_tokens else 1
    identity = {
        **backbone.identity,
        "images": dict(images.identity),
        "augmentation": dict(images.augmentation) if views > 1 else None,
        "views": views,
        "dtype": dtype,
    }
    arrays = ShardedArrays(Path(folder), identity, always | pooled | tokens, len(images), rows_per_shard)
    with arrays.only_writer(), frozen_weights(backbone):
        arrays.claim(rebuild)
        wanted = [[*always, *(pooled if view == 0 else ()), *(tokens if with_tokens else ())] for view in range(views)]
        plans = [_Plan(view, names, arrays.missing(view, names, verify)) for view, names in enumerate(wanted)]
        arrays.require_space(sum(plan.nbytes(arrays) for plan in plans))
        total = views * len(images)
        done = total - sum(plan.num_images(arrays) for plan in plans)
        for plan in plans:
            for count in _carry_out(plan, arrays, backbone, images, batch_size):
                done += count
                if progress is not None:
                    progress(done, total)
    return FeatureCache(arrays, backbone.layouts, views if with_tokens else 0, images.targets)


class _Plan(NamedTuple):
    """Shards and arrays of a view that are missing."""

    view: int
    names: list[str]
    shards: list[int]

    def num_images(self, arrays: ShardedArrays) -> int:
        return sum(len(arrays.images(shard)) for shard in self.shards)

    def nbytes(self, arrays: ShardedArrays) -> int:
        return self.num_images(arrays) * sum(arrays.fields[name].nbytes for name in self.names)


def _carry_out(
    plan: _Plan, arrays: ShardedArrays, backbone: FrozenBackbone, images: Images, batch_size: int
) -> Iterator[int]:
    """Fill the shards of a plan, and yield the number of images of each batch."""
    # A batch never reaches into the next shard: what a model computes depends, in the last bits, on the batch.
    batches = {
        shard: [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
        for shard in plan.shards
        for numbers in [arrays.images(shard)]
    }
    loader = iter(images.open([batch for shard in plan.shards for batch in batches[shard]], plan.view))
    for shard in plan.shards:
        rows = []
        for numbers, batch in zip(batches[shard], loader, strict=False):
            if not set(batch.index.tolist()) <= set(numbers):
                raise ValueError(f"images {numbers[0]} to {numbers[-1]} were asked for, others came")
            rows.append(_rows(batch, plan.names, arrays.fields, backbone))
            yield len(numbers)
        if len(rows) < len(batches[shard]):
            raise ValueError(f"{len(batches[shard])} batches of images were asked for, {len(rows)} came")
        arrays.write(plan.view, shard, {name: np.concatenate([row[name] for row in rows]) for name in plan.names})


def _rows(
    batch: ImageBatch, names: Sequence[str], fields: Mapping[str, Field], backbone: FrozenBackbone
) -> dict[str, np.ndarray]:
    """Return the arrays of a batch for the cache."""
    if not len(batch.index):
        return {name: np.empty((0, *fields[name].shape), fields[name].dtype) for name in names}
    values = {"index": batch.index} if batch.labels is None else {"index": batch.index, LABELS: batch.labels}
    for layer, tokens in backbone(batch.to(backbone.device).image).items():
        layout = backbone.layouts[layer]
        values[f"{layer}.tokens"] = tokens
        for kind in _kinds(layout):
            values[f"{layer}.{kind}"] = pool_tokens(tokens, kind, layout.num_prefix_tokens, layout.num_reg_tokens)
    return {name: _cast(values[name], name, fields[name].dtype) for name in names}


def _cast(values: Tensor, name: str, dtype: str) -> np.ndarray:
    cast = values.to(getattr(torch, dtype))
    if not torch.isfinite(cast).all():
        raise ValueError(
            f"features {name} go up to {values.abs().max():.3g}, which {dtype} does not hold; "
            "take float32, or other weights if they are not finite there either"
        )
    return cast.cpu().numpy()


def _kinds(layout: TokenLayout) -> tuple[PooledKind, ...]:
    return ("cls", "gap") if layout.has_cls else ("gap",)


def image_bytes(layouts: Mapping[Layer, TokenLayout], dtype: str, label_size: tuple[int, int]) -> tuple[int, int]:
    """Return the number of cached bytes of an image with a label map: without tokens, and of its tokens."""
    *kept, tokens = (sum(field.nbytes for field in fields.values()) for fields in _fields(layouts, dtype, label_size))
    return sum(kept), tokens


def _fields(
    layouts: Mapping[Layer, TokenLayout], dtype: str, label_size: tuple[int, int] | None
) -> tuple[dict[str, Field], dict[str, Field], dict[str, Field]]:
    """Return the fields of numbers and label maps, of pooled vectors, and of tokens."""
    always = dict(INDEX) if label_size is None else INDEX | {LABELS: Field("int16", label_size)}
    pooled = {f"{layer}.{kind}": Field(dtype, (of.dim,)) for layer, of in layouts.items() for kind in _kinds(of)}
    tokens = {f"{layer}.tokens": Field(dtype, (of.num_tokens, of.dim)) for layer, of in layouts.items()}
    return always, pooled, tokens
