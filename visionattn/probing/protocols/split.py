"""Subsets of images: held out for a choice, or drawn for few-shot learning."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from visionattn.probing.features.extraction import PooledKind
from visionattn.probing.features.sources import FeatureSource

HELD_OUT = 0.1
"""Share of train that is held out."""


def random_order(count: int, *seed: int) -> Tensor:
    """Return a permutation of 0 to `count` - 1 that is a function of the seeds."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(count))


def hold_out(targets: Tensor, share: float = HELD_OUT, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split images of classes `[n]` at random, class by class, into indices of remaining and held-out ones, in order.

    A share of each class is held out: at least one image, unless the class has only one.

    Raises:
        ValueError: The share is not a fraction, or no class has two images.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share of train that is held out must lie between 0 and 1; got {share}")
    if not can_hold_out(targets):
        raise ValueError(
            f"none of the {len(targets)} images can be held out, no class has two; take at least 2 per class, or "
            "leave nothing to choose: selected_on 'fixed'"
        )
    held = torch.zeros(len(targets), dtype=torch.bool)
    for label, members in _by_class(targets):
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held[members[random_order(len(members), seed, label)[:count]]] = True
    return torch.where(~held)[0], torch.where(held)[0]


def can_hold_out(targets: Tensor) -> bool:
    """Return whether a class has two images, so that one can be held out."""
    return bool((targets.bincount() > 1).any())


def draw(targets: Tensor, shots: int, seed: int = 0) -> Tensor:
    """Draw `shots` images of each class at random, and return their indices in order; no class may have fewer."""
    if shots < 1:
        raise ValueError(f"images per class must be at least 1; got {shots}")
    drawn = []
    for label, members in _by_class(targets):
        if len(members) < shots:
            raise ValueError(f"{shots} images per class: class {label} has {len(members)}, choose that many or fewer")
        drawn.append(members[random_order(len(members), seed, label)[:shots]])
    return torch.cat(drawn).sort().values


def _by_class(targets: Tensor) -> Iterator[tuple[int, Tensor]]:
    for label in targets.unique().tolist():
        yield label, torch.where(targets == label)[0]


class FeatureSubset(FeatureSource):
    """A `FeatureSource` with some of the images of another, `indices` `[m]`."""

    def __init__(self, source: FeatureSource, indices: Tensor) -> None:
        self.source, self.indices = source, indices
        self.dim, self.targets = source.dim, source.targets[indices]
        self.num_prefix_tokens, self.num_reg_tokens = source.num_prefix_tokens, source.num_reg_tokens

    def batches(self, indices: Tensor, batch_size: int, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `FeatureSource`."""
        return self.source.batches(self.indices[indices], batch_size, epoch)

    def pooled(self, kind: PooledKind) -> Tensor:
        """See `FeatureSource`."""
        return self.source.pooled(kind)[self.indices]
