"""Features for heads: from a cache, from the backbone at each step, or from memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from visionattn.probing.features.extraction import FeatureCache, ImageBatch, Images, PooledKind, pool_tokens
from visionattn.probing.frozen import FrozenBackbone, Layer, TokenLayout


class FeatureSource(ABC):
    """Tokens and pooled vectors of n images, and their classes.

    Attributes:
        dim: Width of tokens and vectors.
        num_prefix_tokens: Tokens before the patches, the class token first, then registers.
        num_reg_tokens: Number of registers among these.
        targets: Class indices `[n]`, int64, on the CPU.
    """

    dim: int
    num_prefix_tokens: int
    num_reg_tokens: int
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def usual_pooling(self) -> PooledKind:
        """The class token if there is one, else the mean patch."""
        return "cls" if self.num_prefix_tokens > self.num_reg_tokens else "gap"

    @abstractmethod
    def batches(self, indices: Tensor, batch_size: int, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tokens of images, in their order.

        Args:
            indices: Images `[m]`.
            batch_size: Images per batch; the last may have fewer.
            epoch: Chooses the augmented view, if there are some; epoch 0 has the images as in evaluation.

        Yields:
            Tokens `[b, N, dim]`, float32, on the CPU or the backbone's device; and their places in `indices`, `[b]`.
        """

    @abstractmethod
    def pooled(self, kind: PooledKind) -> Tensor:
        """Return class tokens ("cls") or mean patches ("gap") of all images, not augmented: `[n, dim]`, float32.

        Raises:
            ValueError: There is no class token.
        """


class TensorFeatures(FeatureSource):
    """Features from tokens in memory.

    Args:
        tokens: `[n, num_prefix_tokens + N, dim]`.
        targets: Class indices `[n]`.
        num_prefix_tokens: Tokens before the patches.
        num_reg_tokens: Number of registers among these.
    """

    def __init__(self, tokens: Tensor, targets: Tensor, num_prefix_tokens: int = 0, num_reg_tokens: int = 0) -> None:
        if tokens.dim() != 3 or targets.shape != tokens.shape[:1]:
            raise ValueError(
                f"tokens must be [n, N, dim] and targets [n]; got {list(tokens.shape)} and {list(targets.shape)}"
            )
        self.tokens, self.targets, self.dim = tokens.float(), targets.long().cpu(), tokens.shape[2]
        self.num_prefix_tokens, self.num_reg_tokens = num_prefix_tokens, num_reg_tokens

    def batches(self, indices: Tensor, batch_size: int, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `FeatureSource`."""
        for places in _places(indices, batch_size):
            yield self.tokens[indices[places]], places

    def pooled(self, kind: PooledKind) -> Tensor:
        """See `FeatureSource`."""
        return pool_tokens(self.tokens, kind, self.num_prefix_tokens, self.num_reg_tokens)


class LayerFeatures(FeatureSource):
    """Pooled vectors from a cache, of one of its layers, or of several side by side on the axis of features.

    Attributes:
        layers: The layers, in the order of their features.
        grid: Rows and columns of patches in the first layer.
    """

    def __init__(self, cache: FeatureCache, layers: Sequence[Layer] = ("last",)) -> None:
        unknown = [layer for layer in layers if layer not in cache.layouts]
        if unknown or not layers:
            raise ValueError(f"layers {list(layers)} must be one or more of those extracted: {list(cache.layouts)}")
        self.cache, self.layers = cache, tuple(layers)
        self._layouts = {layer: cache.layouts[layer] for layer in layers}
        first = self._layouts[layers[0]]
        self.dim = sum(layout.dim for layout in self._layouts.values())
        self.grid = first.grid
        self.num_prefix_tokens = first.num_prefix_tokens
        self.num_reg_tokens = first.num_reg_tokens
        self.targets = cache.targets

    def pooled(self, kind: PooledKind) -> Tensor:
        """See `FeatureSource`."""
        return torch.cat([self.cache.pooled(layer, kind) for layer in self.layers], dim=1)


class CachedFeatures(LayerFeatures):
    """Features from a cache with tokens, of layers with the same layout; epochs take its views in turn."""

    def __init__(self, cache: FeatureCache, layers: Sequence[Layer] = ("last",)) -> None:
        super().__init__(cache, layers)
        if not cache.views:
            raise ValueError(
                f"the feature cache in {cache.arrays.folder} has no tokens; raise token_budget_gb, "
                "or run the backbone at each step (OnlineFeatures)"
            )

    def batches(self, indices: Tensor, batch_size: int, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `FeatureSource`."""
        check_layouts(self._layouts)
        rows = indices.cpu().numpy()
        for places in _places(indices, batch_size):
            chosen = rows[places.numpy()]
            tokens = [self.cache.tokens(layer, chosen, epoch % self.cache.views) for layer in self.layers]
            yield tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=2), places


class OnlineFeatures(LayerFeatures):
    """Features that the backbone computes at each step; only pooled vectors come from a cache of the same images.

    Layers must have the same layout. With `augment`, images get new augmentations in each epoch from 1 on.
    """

    def __init__(
        self,
        cache: FeatureCache,
        backbone: FrozenBackbone,
        images: Images,
        layers: Sequence[Layer] = ("last",),
        augment: bool = False,
    ) -> None:
        super().__init__(cache, layers)
        self.backbone, self.images, self.augment = backbone, images, augment

    def batches(self, indices: Tensor, batch_size: int, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `FeatureSource`.

        Raises:
            ValueError: An image cannot be read any more.
        """
        check_layouts(self._layouts)
        every = list(_places(indices, batch_size))
        numbers = [self.cache.indices[indices[places].cpu()].tolist() for places in every]
        batches = self.images.open(numbers, epoch if self.augment else 0)
        for places, wanted, batch in zip(every, numbers, batches, strict=True):
            self._check_images(batch, wanted)
            tokens = self.backbone(batch.to(self.backbone.device).image)
            yield torch.cat([tokens[layer] for layer in self.layers], dim=2), places

    def _check_images(self, batch: ImageBatch, wanted: list[int]) -> None:
        if batch.index.tolist() != wanted:
            error = batch.errors[0] if batch.errors else f"{len(wanted)} were asked for, {len(batch.index)} others came"
            raise ValueError(f"images are not those of the cache in {self.cache.arrays.folder} any more: {error}")


def check_layouts(layouts: Mapping[Layer, TokenLayout]) -> None:
    """Check that tokens of layers can be put side by side.

    Raises:
        ValueError: They have different grids, or different numbers of prefix tokens.
    """
    forms = {(*layout.grid, layout.num_prefix_tokens) for layout in layouts.values()}
    if len(forms) > 1:
        described = "; ".join(f"{rows} × {columns} patches after {prefix}" for rows, columns, prefix in sorted(forms))
        raise ValueError(
            f"tokens of layers {list(layouts)} cannot be put side by side, they lie differently ({described}); "
            "take layers of one stage, or each alone (--features.each_layer true)"
        )


def _places(indices: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield the places 0 to m - 1 of indices, batch by batch."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    for start in range(0, len(indices), batch_size):
        yield torch.arange(start, min(start + batch_size, len(indices)))
