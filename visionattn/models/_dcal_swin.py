"""A Swin of timm with pair-wise cross-attention."""

from typing import Any

import torch
from timm.models import checkpoint
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from visionattn.layers.dual_cross_attention import PairSource
from visionattn.layers.paired_windows import forward_paired_windows
from visionattn.models._dcal_vit import Branch


class DcalSwinTransformer(SwinTransformer):
    """A Swin of timm with pair-wise attention in training; without a class token there is no GLCA."""

    def __init__(self, *args: Any, pair_source: PairSource = "sa", **kwargs: Any) -> None:
        """Build the network.

        Args:
            *args: As for timm's SwinTransformer.
            pair_source: Source of the other keys and values: the pair's self-attention ("sa"), or the pair's
                own pair-wise stream ("pwca").
            **kwargs: As for timm's SwinTransformer.

        Raises:
            ValueError: `pair_source` has another value.
        """
        if pair_source not in ("sa", "pwca"):
            raise ValueError(f"pair_source must be sa or pwca, got {pair_source!r}")
        super().__init__(*args, **kwargs)
        self.pair_source: PairSource = pair_source
        self.branch_names = ["sa", "pwca"]

    def forward_branches(self, x: Tensor, pair: Tensor | None = None) -> dict[str, Branch]:
        """Compute each branch by itself, for training.

        Args:
            x: Images [B, in_chans, H, W].
            pair: Index of the image that each image is paired with in PWCA [B]; None for no PWCA.

        Returns:
            Outputs of the branches, by the names `branch_names`.
        """
        if pair is None:
            return {"sa": self._branch(self.forward_features(x))}
        x = self.patch_embed(x)
        x = torch.cat([x, x])
        stages: Any = self.layers
        for stage in stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                if stage.grad_checkpointing:
                    x = checkpoint(forward_paired_windows, block, x, pair, self.pair_source)
                else:
                    x = forward_paired_windows(block, x, pair, self.pair_source)
        own, paired = self.norm(x).chunk(2)
        return {"sa": self._branch(own), "pwca": self._branch(paired)}

    def _branch(self, x: Tensor) -> Branch:
        features = self.forward_head(x, pre_logits=True)
        return Branch(features, self.head.fc(features))
