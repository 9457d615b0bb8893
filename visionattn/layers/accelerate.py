"""timm's models on this library's operators."""

import torch
from timm.layers.halo_attn import HaloAttn
from torch import nn

from visionattn.layers.halo_attention import HaloAttention2d


def accelerate(model: nn.Module) -> nn.Module:
    """Replace the attention layers of a timm model in place by this library's, with the same parameters.

    The model's convolutions become channels-last, as the attention is, so that no map changes its format on the way.

    Known are timm's `HaloAttn` layers (`halonet26t`, `halonet50ts`, `sehalonet33ts`, `haloregnetz_b`,
    `eca_halonext26ts`, `halonet_h1`, ...). The state dict keeps its names, so that timm's checkpoints load before and
    after. At sizes that timm accepts, outputs are timm's up to rounding. At others, where timm fails, the last block of
    an axis is ragged: its window reaches farther beyond the map, into zero vectors that take part in its softmax as
    those at every border do; strided maps round up, and a 2x2 average at an odd edge is that of the positions there.

    Args:
        model: Any module; layers are looked for at every depth.

    Returns:
        The model.

    Raises:
        ValueError: The model has no layer that is known.
    """
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, HaloAttn)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no HaloAttn layer to accelerate; timm.list_models('*halo*') have some"
        )
    if isinstance(model, HaloAttn):
        return from_timm(model)
    for name, layer in found:
        model.set_submodule(name, from_timm(layer))
    return model.to(memory_format=torch.channels_last)


def from_timm(layer: HaloAttn) -> HaloAttention2d:
    """Return this library's equivalent of a timm layer, with the same parameters."""
    ours = HaloAttention2d(
        layer.q.in_channels,
        layer.dim_out_v,
        layer.num_heads,
        layer.dim_head_qk,
        layer.block_size,
        layer.halo_size,
        stride=2 if layer.block_stride == 2 or isinstance(layer.pool, nn.AvgPool2d) else 1,
        qkv_bias=layer.q.bias is not None,
        avg_down=isinstance(layer.pool, nn.AvgPool2d),
        scale_rel_pos=layer.scale_pos_embed,
        timm_compat=True,
        device="meta",  # type: ignore[arg-type]
    )
    ours.q, ours.kv, ours.pos_embed = layer.q, layer.kv, layer.pos_embed
    return ours.train(layer.training)
