"""An object-centric classifier: a ViT of timm whose pooling is slot attention.

Patches are bound to a few slots, and what the image is of is read from the set of slots: their mean, or a mean with
learned weights. Weights of timm's ViTs load into the backbone. Beyond that it is the ViT that it is based on: its
unpooled features are tokens `[B, N, D]`, so that its configuration has no `pool_size`.

Source of slot attention: Locatello et al., "Object-Centric Learning with Slot Attention", NeurIPS 2020,
https://arxiv.org/abs/2006.15055; its section 4.2 predicts sets of properties from slots. The classifier is of our own
making.
"""

from functools import partial
from typing import Any, Literal, get_args

from timm.models import generate_default_cfgs
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter_fn
from torch import Tensor, nn

from visionattn.layers.slot_attention import SlotAttention, SlotInit
from visionattn.models._configs import configs_like, register_variants
from visionattn.models._weights import build_vit
from visionattn.models.controls import VIT_PICO

__all__ = ["SlotVisionTransformer"]

SetPool = Literal["mean", "attention"]
"""Pooling of a set of slots to one vector."""

POOL = "attn_pool."
"""Prefix of the parameters of the pooling."""


class SlotPool(nn.Module):
    """From tokens to slots, and from slots to one vector; the order of either does not matter."""

    def __init__(self, slots: SlotAttention, pool: SetPool, **dd: Any) -> None:
        """Build the pooling of `slots`: "mean" or "attention"."""
        super().__init__()
        dim = slots.dim
        self.slots = slots
        self.norm = nn.LayerNorm(dim, **dd)
        self.score = nn.Linear(dim, 1, bias=False, **dd) if pool == "attention" else None

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, N, D] to [B, D]."""
        slots = self.norm(self.slots(x)[0])
        if self.score is not None:
            return (self.score(slots).softmax(1) * slots).sum(1)
        return slots.mean(1)


class SlotVisionTransformer(VisionTransformer):
    """A ViT of timm with slots as its attention pooling, timm's `global_pool="map"`."""

    def __init__(
        self,
        *args: Any,
        num_slots: int = 7,
        slot_iterations: int = 3,
        slot_init: SlotInit = "learned",
        slot_implicit: bool = False,
        set_pool: SetPool = "attention",
        **kwargs: Any,
    ) -> None:
        """Build the network.

        Args:
            *args: As for timm's VisionTransformer.
            num_slots: Number of slots, which have the width of the tokens.
            slot_iterations: Iterations of slot attention.
            slot_init: Initial slots, see `SlotInit`.
            slot_implicit: Whether gradients are those of the last iteration alone, see `SlotAttention`.
            set_pool: Pooling of the slots: "mean", or "attention" with learned weights.
            **kwargs: As for timm's VisionTransformer; `global_pool` is "map" or "".

        Raises:
            ValueError: An option is out of its bounds.
        """
        pool = kwargs.get("global_pool", "map")
        if pool not in ("map", ""):
            raise ValueError(f"slots are the pooling: global_pool must be 'map' or '', got {pool!r}")
        if set_pool not in get_args(SetPool):
            raise ValueError(f"set_pool must be one of {', '.join(get_args(SetPool))}, got {set_pool!r}")
        super().__init__(*args, **{**kwargs, "global_pool": ""})
        self.global_pool = pool
        self.attn_pool: Any = None
        if pool == "map":
            dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
            slots = SlotAttention(
                self.embed_dim, None, num_slots, slot_iterations, init=slot_init, implicit=slot_implicit, **dd
            )
            self.attn_pool = SlotPool(slots, set_pool, **dd)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay: timm's, and the initial slots."""
        names = ("slots.mu", "slots.log_sigma")
        return super().no_weight_decay() | {POOL + name for name in names}

    def slot_maps(self, x: Tensor) -> Tensor:
        """Return the share of each patch that each slot takes: [B, K, h, w], with a sum of 1 over slots.

        Raises:
            ValueError: There are no slots, because the pooling was removed.
        """
        if self.attn_pool is None:
            raise ValueError("there are no slots: the pooling was taken away")
        patches = self.forward_features(x)[:, self.num_prefix_tokens :]
        return self.attn_pool.slots(patches)[1].unflatten(-1, self.patch_embed.dynamic_feat_size(x.shape[-2:]))


def checkpoint_filter_fn(state_dict: dict[str, Any], model: SlotVisionTransformer) -> dict[str, Tensor]:
    """Convert weights as timm does; to weights of a ViT, the slots of the model are added unchanged."""
    found: dict[str, Tensor] = vit_filter_fn(state_dict, model, adapt_layer_scale=True)
    if not any(name.startswith(POOL) for name in found):
        found |= {name: value for name, value in model.state_dict().items() if name.startswith(POOL)}
    return found


default_cfgs = generate_default_cfgs(configs_like("slot_", {}, "vit_pico_patch4_32", "vit_small_patch16_224"))

register_variants(
    __name__,
    partial(build_vit, SlotVisionTransformer, filter_fn=checkpoint_filter_fn),
    {
        "slot_vit_pico_patch4_32": ("Slots on `vit_pico_patch4_32`, for images of 32 pixels.", VIT_PICO),
        "slot_vit_small_patch16_224": ("Slots on ViT-Small.", {"embed_dim": 384, "num_heads": 6}),
    },
)
