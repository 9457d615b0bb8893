"""From images to a cache of features: pooled vectors always, tokens where they fit."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from visionattn.layers.prepared import frozen_weights
from visionattn.probing.backbone import FrozenBackbone, Layer, TokenLayout
from visionattn.probing.features.cache import Field, ShardedArrays
from visionattn.probing.features.contents import fingerprint as fingerprint
from visionattn.probing.heads import select_tokens

PooledKind = Literal["cls", "gap"]
"""Pooled vectors: the class token, or the mean of the patches."""


INDEX = {"index": Field("int64")}
"""Which images could be read. Their classes are not kept: these come from the data set in every run."""


class ImageBatch(NamedTuple):
    """Some of the images that were asked for.

    Attributes:
        image: Normalised images `[B, C, H, W]`; B is smaller than asked for where images cannot be read.
        index: Which images these are `[B]`.
        errors: A line for each image that cannot be read.
    """

    image: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody wants
    errors: list[str]


class Images(Protocol):
    """Images to extract features from, numbered from 0.

    Attributes:
        identity: All that their pixels depend on, in plain values: data set, split, `fingerprint`, transform.
        augmentation: How views are augmented, in plain values, its seed among them.
        targets: Class indices of all images.
    """

    identity: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    targets: Sequence[int]

    def __len__(self) -> int: ...

    def open(self, batches: Sequence[Sequence[int]], view: int = 0) -> Iterable[ImageBatch]:
        """Reads images.

        Args:
            batches: Their numbers, batch by batch.
            view: 0 for images as they are evaluated; from 1 on augmented, as a function of seed, view and image
                alone (`view_seed`).

        Returns:
            One batch for each, without images that cannot be read.
        """


def collate_images(items: Sequence[Any]) -> ImageBatch:
    """Makes a batch of items that have `image` (None where it cannot be read), `index` and `errors`."""
    good = [item for item in items if item.image is not None]
    return ImageBatch(
        torch.stack([item.image for item in good]) if good else torch.empty(0),
        torch.tensor([item.index for item in good], dtype=torch.long),
        [error for item in items for error in item.errors],
    )


def view_seed(seed: int, view: int, image: int) -> int:
    """Seed of the augmentation of an image in a view, 32 bits."""
    return int(np.random.SeedSequence([seed, view, image]).generate_state(1)[0])


def pool_tokens(tokens: Tensor, kind: PooledKind, num_prefix_tokens: int, num_reg_tokens: int = 0) -> Tensor:
    """Vectors `[B, dim]` of tokens `[B, num_prefix_tokens + N, dim]`: the class token, or the mean of the patches.

    Raises:
        ValueError: There is no class token.
    """
    return select_tokens(tokens, "cls" if kind == "cls" else "patches", num_prefix_tokens, num_reg_tokens).mean(1)


class FeatureCache:
    """Features of images, by layer; row i is of the i-th image that can be read.

    Attributes:
        layouts: How the tokens of each layer lie.
        views: Views of which there are tokens; 0 where there are none.
        indices: The images, `[n]`.
        targets: Their classes, `[n]`.
    """

    def __init__(
        self, arrays: ShardedArrays, layouts: Mapping[Layer, TokenLayout], views: int, targets: Sequence[int]
    ) -> None:
        """Takes up arrays that are complete.

        Args:
            arrays: The arrays.
            layouts: How the tokens of each layer lie.
            views: Views of which there are tokens; 0 where there are none.
            targets: Classes of all images, readable or not.

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
        self._mapped: dict[tuple[int, int, Layer], np.ndarray] = {}

    def pooled(self, layer: Layer, kind: PooledKind) -> Tensor:
        """Pooled vectors of a layer, `[n, dim]` float32.

        Raises:
            ValueError: The layer has no class token.
        """
        if kind == "cls" and not self.layouts[layer].has_cls:
            raise ValueError(f"layer {layer!r} has no class token to take vectors of kind 'cls' from; take 'gap'")
        return torch.from_numpy(self.arrays.column(0, f"{layer}.{kind}")).float()

    def tokens(self, layer: Layer, rows: np.ndarray, view: int = 0) -> Tensor:
        """Tokens of a layer, `[len(rows), num_tokens, dim]` float32, in the order of the rows."""
        layout = self.layouts[layer]
        tokens = torch.empty(len(rows), layout.num_tokens, layout.dim)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            places = places[np.argsort(rows[places], kind="stable")]  # a file is read from its beginning to its end
            found = self._map(view, shard, layer)[rows[places] - self._starts[shard]]
            tokens[torch.from_numpy(places)] = torch.from_numpy(found).float()
        return tokens

    def _map(self, view: int, shard: int, layer: Layer) -> np.ndarray:
        key = (view, shard, layer)
        if key not in self._mapped:
            self._mapped[key] = self.arrays.read(view, shard, f"{layer}.tokens")
        return self._mapped[key]


def extract_features(
    backbone: FrozenBackbone,
    images: Images,
    folder: str | Path,
    *,
    token_budget_gb: float = 0.0,
    views: int = 1,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 64,
    rows_per_shard: int | None = None,
    verify: bool = True,
    rebuild: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureCache:
    """Extracts what is not in the cache yet; goes on where a process that was killed left off.

    Args:
        backbone: Gives the tokens.
        images: The images.
        folder: The cache's place, for these images and this backbone alone.
        token_budget_gb: Tokens are cached if those of all layers and views take no more, in 10⁹ bytes.
        views: Views whose tokens are cached: the images as they are evaluated, and `views` - 1 augmented ones.
        dtype: How features are kept.
        batch_size: Images per step.
        rows_per_shard: Images per file, by default so many that files have at most about 128 MiB.
        verify: Whether to compare the checksums of what is there.
        rebuild: Whether to replace a stale cache; a warning says so.
        progress: Called with the number of passes of images through the backbone that are done, and of all.

    Returns:
        The cache, with tokens or without.

    Raises:
        ValueError: No images, features that `dtype` does not hold, or a folder with other things in it.
        OSError: The disk is full.
    """
    if not len(images):
        raise ValueError("there are no images to extract features from")
    if views < 1 or batch_size < 1:
        raise ValueError(f"views and batch_size must be at least 1; got {views} and {batch_size}")
    pooled, tokens = _fields(backbone.layouts, dtype)
    with_tokens = views * len(images) * sum(field.nbytes for field in tokens.values()) <= token_budget_gb * 1e9
    views = views if with_tokens else 1
    identity = {
        **backbone.identity,
        "pictures": dict(images.identity),
        "augmentation": dict(images.augmentation) if views > 1 else None,
        "views": views,
        "dtype": dtype,
    }
    arrays = ShardedArrays(Path(folder), identity, INDEX | pooled | tokens, len(images), rows_per_shard)
    with arrays.only_writer(), frozen_weights(backbone):
        arrays.claim(rebuild)
        wanted = [[*INDEX, *(pooled if view == 0 else ()), *(tokens if with_tokens else ())] for view in range(views)]
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
    """What is to be computed of a view."""

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
    """Fills the shards of a plan, and yields the number of images of each batch."""
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
    """What the cache keeps of the images of a batch."""
    if not len(batch.index):
        return {name: np.empty((0, *fields[name].shape), fields[name].dtype) for name in names}
    values = {"index": batch.index}
    for layer, tokens in backbone(batch.image).items():
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


def _fields(layouts: Mapping[Layer, TokenLayout], dtype: str) -> tuple[dict[str, Field], dict[str, Field]]:
    """Pooled vectors and tokens."""
    pooled = {f"{layer}.{kind}": Field(dtype, (of.dim,)) for layer, of in layouts.items() for kind in _kinds(of)}
    tokens = {f"{layer}.tokens": Field(dtype, (of.num_tokens, of.dim)) for layer, of in layouts.items()}
    return pooled, tokens
