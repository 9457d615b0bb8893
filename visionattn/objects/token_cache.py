"""Tokens of scenes that a frozen backbone has seen before, kept in memory."""

import torch
from torch import Tensor

from visionattn.data.scenes import SceneBatch
from visionattn.probing.frozen import FrozenBackbone, Layer


class TokenCache:
    """A frozen backbone that runs once for each scene, as long as the tokens fit into memory.

    Scenes are known by their names, so the images of a name must be the same each time. Once a batch does not fit, no
    more are kept.

    Args:
        backbone: The backbone.
        size: Largest number of bytes of the tokens, which lie in main memory.
    """

    def __init__(self, backbone: FrozenBackbone, size: int) -> None:
        self.backbone, self.free = backbone, size
        self._kept: dict[str, dict[Layer, Tensor]] = {}

    def __call__(self, batch: SceneBatch) -> dict[Layer, Tensor]:
        """Return the tokens of each layer `[B, T, D]`, on the backbone's device."""
        new = [place for place, name in enumerate(batch.name) if name not in self._kept]
        found = self.backbone(batch.image[new]) if new else {}
        all_new = len(new) == len(batch.name)
        if all_new and not self.free:
            return found
        on_host = {layer: x.cpu() for layer, x in found.items()}
        rows = {batch.name[place]: {layer: x[row] for layer, x in on_host.items()} for row, place in enumerate(new)}
        tokens = found if all_new else self._stack([self._kept.get(name) or rows[name] for name in batch.name])
        self._keep(rows, sum(x.nbytes for x in found.values()))
        return tokens

    def _keep(self, rows: dict[str, dict[Layer, Tensor]], size: int) -> None:
        if size > self.free:
            self.free = 0
            return
        self.free -= size
        self._kept |= rows

    def _stack(self, rows: list[dict[Layer, Tensor]]) -> dict[Layer, Tensor]:
        return {layer: torch.stack([row[layer] for row in rows]).to(self.backbone.device) for layer in rows[0]}
