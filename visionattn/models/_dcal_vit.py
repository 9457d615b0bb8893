"""A ViT of timm with dual cross-attention."""

import copy
import math
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import get_device_dtype
from timm.models import checkpoint, named_apply
from timm.models.vision_transformer import VisionTransformer, get_init_weights_vit
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter_fn
from torch import Tensor, nn

from visionattn.layers.dual_cross_attention import (
    DualCrossBlock,
    GlcaPool,
    GlobalLocalCrossAttention,
    PairSource,
    select_patches,
)
from visionattn.models.backbone import take_indices


class Branch(NamedTuple):
    """Output of a branch.

    Attributes:
        features: pooled [B, num_features].
        logits: [B, num_classes]; the features where there is no classifier.
    """

    features: Tensor
    logits: Tensor


class DcalVisionTransformer(VisionTransformer):
    """A ViT of timm with a GLCA block beside its last one, and pair-wise attention in training."""

    def __init__(
        self,
        *args: Any,
        glca: bool = True,
        glca_ratio: float = 0.1,
        glca_pool: GlcaPool = "token",
        pwca: bool = True,
        pair_source: PairSource = "sa",
        **kwargs: Any,
    ) -> None:
        """Build the network.

        Args:
            *args: As for timm's VisionTransformer.
            glca: Whether there is a GLCA block.
            glca_ratio: Share of the patches that GLCA selects; in the paper 0.1 for fine-grained classes and 0.3 for
                re-identification.
            glca_pool: Features of GLCA: its class token (as in the paper), or the mean over the class token
                and the selected patches (`avg`). With the class token alone the selection has no effect.
            pwca: Whether training has pair-wise attention.
            pair_source: Source of the other keys and values: the pair's self-attention ("sa"), or the pair's
                own pair-wise stream ("pwca"). The paper does not say which.
            **kwargs: As for timm's VisionTransformer; `global_pool` is "token" or "".

        Raises:
            ValueError: An option is out of its bounds, or two do not fit each other.
        """
        check_pool(kwargs.get("global_pool", "token"))
        if pair_source not in ("sa", "pwca"):
            raise ValueError(f"pair_source must be sa or pwca, got {pair_source!r}")
        super().__init__(*args, **{**kwargs, "block_fn": DualCrossBlock})
        self.pair_source = pair_source
        self.branch_names = ["sa", *(["glca"] if glca else []), *(["pwca"] if pwca else [])]
        self.inference = "sa"
        self.glca: Any = None
        self.glca_head: Any = None
        if glca:
            if len(self.blocks) < 2:
                raise ValueError(
                    f"GLCA stands beside the last block and needs one before it: depth is {len(self.blocks)}"
                )
            block, norm = copy.deepcopy(self.blocks[-1]), copy.deepcopy(self.norm)
            assert isinstance(block, DualCrossBlock)
            self.glca = GlobalLocalCrossAttention(block, norm, glca_ratio, glca_pool)
            self.glca_head = copy.deepcopy(self.head)
            if kwargs.get("weight_init") != "skip":
                for module in (self.glca, self.glca_head):
                    named_apply(get_init_weights_vit(self.weight_init_mode, needs_reset=False), module)
            self.set_inference("combined")

    def set_inference(self, inference: Literal["combined", "sa"]) -> None:
        """Let `forward` use SA and GLCA together ("combined"), or SA alone ("sa").

        Raises:
            ValueError: Another value, or there is no GLCA to combine with.
        """
        if inference not in ("combined", "sa"):
            raise ValueError(f"inference must be combined or sa, got {inference!r}")
        if inference == "combined" and self.glca is None:
            raise ValueError("there is no GLCA to combine with: inference can only be sa")
        self.inference = inference
        self.head_hidden_size = self.embed_dim * (2 if inference == "combined" else 1)

    # timm's contract

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return groups of parameters for layer decay; GLCA is in the group of the last block."""
        return {**super().group_matcher(coarse), "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|^glca\.", (99999,))]}

    def get_classifier(self) -> Any:
        """Return the classifier of SA, or both classifiers, as in timm's DeiT."""
        return self.head if self.glca_head is None else (self.head, self.glca_head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put new classifiers in place of the old ones; pooling stays unless one is given."""
        check_pool(self.global_pool if global_pool is None else global_pool)
        super().reset_classifier(num_classes, global_pool)
        if self.glca_head is not None:
            dd = get_device_dtype(self)
            self.glca_head = nn.Linear(self.embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
            self.glca_head.train(self.training)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks that those at `indices` do not need, and GLCA, whose place is at the end."""
        depth = len(self.blocks)
        kept: list[int] = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head or len(self.blocks) < depth:
            self.glca, self.glca_head = None, None
            self.branch_names = [name for name in self.branch_names if name != "glca"]
            self.set_inference("sa")
        return kept

    def forward_intermediates(  # type: ignore[override]  # takes no masks
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Compute the final features, and the outputs of blocks, as in timm.

        Args:
            x: Images [B, in_chans, H, W].
            indices: Blocks whose outputs are returned: the last n for an int, all for None.
            return_prefix_tokens: Return pairs of patches and prefix tokens.
            norm: Apply the final norm to all outputs.
            stop_early: Stop after the last block that is asked for.
            output_fmt: "NCHW", or "NLC".
            intermediates_only: Return the list alone.

        Returns:
            The final features, which are those of `forward_features` unless stopped early, and the list of outputs.

        Raises:
            ValueError: `output_fmt` has another value.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC; got {output_fmt!r}")
        take, last = take_indices(len(self.blocks), indices)
        complete = not intermediates_only and (not stop_early or last == len(self.blocks) - 1)
        size = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        depth = last + 1 if stop_early or intermediates_only else len(self.blocks)
        scored = complete and self._needs_scores()
        before, x, scores, kept = self._run(self._embed(x), None, scored, take, depth)
        intermediates: list[Any] = []
        for tokens in kept:
            tokens = self.norm(tokens) if norm else tokens
            patches, prefix = tokens[:, self.num_prefix_tokens :], tokens[:, : self.num_prefix_tokens]
            if output_fmt == "NCHW":
                patches = patches.transpose(1, 2).unflatten(2, size)
            intermediates.append((patches, prefix) if return_prefix_tokens else patches)
        if intermediates_only:
            return intermediates
        return self._with_glca(before, self.norm(x), scores) if complete else self.norm(x), intermediates

    # Forward

    def forward_features(self, x: Tensor) -> Tensor:  # type: ignore[override]  # takes no masks
        """Map images [B, in_chans, H, W] to normalized tokens [B, 1 + P, D], the class token first.

        Where SA and GLCA are combined, GLCA's features come last: [B, 1 + P + 1, D].
        """
        before, x, scores, _ = self._run(self._embed(x), None, self._needs_scores(), [], len(self.blocks))
        return self._with_glca(before, self.norm(x), scores)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the tokens of `forward_features` to logits [B, num_classes].

        Combined logits are logarithms of the mean of both classifiers' probabilities. With `pre_logits`, and without a
        classifier, the class tokens' features [B, D], and GLCA's after them [B, 2D] where both are combined.
        """
        if self.global_pool == "":
            return x if pre_logits else self.head(x)
        own = self.head_drop(self.fc_norm(x[:, 0]))
        if self.inference == "combined" and self.glca_head is not None:
            local = self.head_drop(self.fc_norm(x[:, -1]))
            if pre_logits or self.num_classes == 0:
                return torch.cat([own, local], dim=1)
            return mean_probability(self.head(own), self.glca_head(local))
        return own if pre_logits else self.head(own)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # takes no masks
        """Map images [B, in_chans, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_branches(self, x: Tensor, pair: Tensor | None = None) -> dict[str, Branch]:
        """Compute each branch by itself, for training.

        Args:
            x: Images [B, in_chans, H, W].
            pair: Index of the image that each image is paired with in PWCA [B]; None for no PWCA.

        Returns:
            Outputs of the branches, by the names `branch_names`.
        """
        x = self._embed(x)
        count = len(x)
        pair = pair if "pwca" in self.branch_names else None
        scored = self.glca is not None and self.glca.needs_scores
        x = x if pair is None else torch.cat([x, x])
        before, x, scores, _ = self._run(x, pair, scored, [], len(self.blocks))
        x = self.norm(x)
        branches = {"sa": self._branch(x[:count, 0], self.head)}
        if self.glca is not None:
            local = self.glca(before[:count], scores, self.num_prefix_tokens)
            branches["glca"] = self._branch(local, self.glca_head)
        if pair is not None:
            branches["pwca"] = self._branch(x[count:, 0], self.head)
        return branches

    def rollout_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the attention rollout of images [B, in_chans, H, W], and the patches that GLCA selects.

        Returns:
            Rollout [B, P] of all blocks but the last, and places among the patches [B, R].

        Raises:
            ValueError: There is no GLCA.
        """
        if self.glca is None:
            raise ValueError("there is no GLCA that would select patches")
        _, _, scores, _ = self._run(self._embed(x), None, True, [], len(self.blocks))
        return select_patches(scores, self.glca.ratio, self.num_prefix_tokens)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the model's input size."""
        rows, columns = self.patch_embed.grid_size
        return rows, columns

    def _needs_scores(self) -> bool:
        return self.glca is not None and self.inference == "combined" and self.glca.needs_scores

    def _embed(self, x: Tensor) -> Tensor:
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))

    def _branch(self, features: Tensor, head: Any) -> Branch:
        features = self.head_drop(self.fc_norm(features))
        return Branch(features, head(features))

    def _with_glca(self, before: Tensor, x: Tensor, scores: list[Tensor]) -> Tensor:
        if self.inference == "combined" and self.glca is not None:
            return torch.cat([x, self.glca(before, scores, self.num_prefix_tokens)[:, None]], dim=1)
        return x

    def _run(
        self, x: Tensor, pair: Tensor | None, with_scores: bool, take: list[int], depth: int
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Run the blocks; return tokens before and after the last one, scores of those before, and kept tokens."""
        scores: list[Tensor] = []
        kept: list[Tensor] = []
        before = x
        blocks: list[Any] = list(self.blocks)
        for index, block in enumerate(blocks[:depth]):
            before = x
            scored = with_scores and index < len(blocks) - 1
            if self.grad_checkpointing:
                x, own = checkpoint(block.forward_parts, x, pair, self.pair_source, scored)
            else:
                x, own = block.forward_parts(x, pair, self.pair_source, scored)
            if scored:
                scores.append(own)
            if index in take:
                kept.append(x)
        return before, x, scores, kept


def check_pool(global_pool: str) -> None:
    """Check that features are class tokens.

    Raises:
        ValueError: They are not class tokens.
    """
    if global_pool not in ("token", ""):
        raise ValueError(f"DCAL's features are class tokens: global_pool must be 'token' or '', got {global_pool!r}")


def mean_probability(first: Tensor, second: Tensor) -> Tensor:
    """Return the logarithm of the mean of two class distributions, given their logits [B, num_classes]."""
    return torch.logaddexp(first.log_softmax(-1), second.log_softmax(-1)) - math.log(2)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: DcalVisionTransformer) -> dict[str, Tensor]:
    """Convert weights as timm does; without GLCA, the last block, norm and classifier are copied to it."""
    found: dict[str, Tensor] = vit_filter_fn(state_dict, model, adapt_layer_scale=True)
    if model.glca is not None and not any(name.startswith("glca") for name in found):
        last = f"blocks.{len(model.blocks) - 1}."
        for old, new in ((last, "glca.block."), ("norm.", "glca.norm."), ("head.", "glca_head.")):
            copies = {
                new + name.removeprefix(old): value.clone() for name, value in found.items() if name.startswith(old)
            }
            found |= copies
    return found
