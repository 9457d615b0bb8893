"""Outcomes of a network for single images, and how they change if the network changes.

A classifier's outcomes for an image are its loss (cross entropy, nats) and whether its largest logit is that of the
true class. Without classes, the outcome is the relative distance of the features from those of the unchanged network,
‖f - f0‖ / ‖f0‖.

Shapes: B images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.analysis.head_images import HeadBatch
from visionattn.errors import UserError
from visionattn.io import as_text

CLASSES = ("loss", "top1")
FEATURES = ("features",)


def measure_outcomes(output: Tensor, unchanged: Tensor, batch: HeadBatch) -> Tensor:
    """Return the outcomes of a batch, float64 on the CPU, `[2, B]` for `CLASSES` or `[1, B]` for `FEATURES`.

    Args:
        output: The network's logits `[B, num_classes]`, or its features `[B, ...]`.
        unchanged: The output of the unchanged network.
        batch: The images; without targets, the distance of outputs is measured.

    Raises:
        UserError: An output is not finite; the message names the image.
    """
    output, unchanged = output.double().flatten(1), unchanged.double().flatten(1)
    finite = output.isfinite().all(1).tolist()
    if not all(finite):
        name = as_text(batch.name[finite.index(False)])
        raise UserError(
            f"the network gives no finite numbers for {name}: compute with --precision 32-true, or leave the image out"
        )
    if batch.target is None:
        lengths = unchanged.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        return ((output - unchanged).norm(dim=1) / lengths)[None].cpu()
    loss = F.cross_entropy(output, batch.target, reduction="none")
    return torch.stack([loss, (output.argmax(1) == batch.target).double()]).cpu()


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Outcomes of several versions of a network for the same images; version 0 is the unchanged network.

    Attributes:
        values: Float64, `[2, versions, images]` for `CLASSES`, or `[1, versions, images]` for `FEATURES`.
    """

    values: Tensor

    @property
    def names(self) -> Sequence[str]:
        """Names of the outcomes."""
        return CLASSES if len(self.values) == len(CLASSES) else FEATURES

    @property
    def changes(self) -> Tensor:
        """Differences from the unchanged network, like `values`."""
        return self.values - self.values[:, :1]

    def means(self, version: int) -> dict[str, float]:
        """Return ``loss`` and ``top1``, means over the images; nothing without classes."""
        return dict(zip(CLASSES, self.values[:, version].mean(1).tolist(), strict=True)) if len(self.values) > 1 else {}

    def effects(self, version: int) -> dict[str, float | None]:
        """Return the mean change of each outcome and its standard error, such as ``d_loss`` and ``d_loss_se``.

        Images are paired: the error is that of the differences, std(ddof=1) / √images; None for one image.
        """
        found: dict[str, float | None] = {}
        for name, changes in zip(self.names, self.changes[:, version], strict=True):
            found[f"d_{name}"] = changes.mean().item()
            found[f"d_{name}_se"] = (changes.std() / len(changes) ** 0.5).item() if len(changes) > 1 else None
        return found
