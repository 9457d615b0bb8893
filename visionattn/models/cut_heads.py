"""Vision transformers without some of their attention heads: their projections become smaller.

    cut_heads(model, {"blocks.3": [1, 2], "blocks.5": [0]})

`visionattn.training.create_model(name, cut_heads=...)` builds such a network, and checkpoints of such networks say so.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, RelPosBias, RelPosMlp
from timm.layers.halo_attn import HaloAttn
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from visionattn.errors import UserError
from visionattn.layers.dual_cross_attention import DualCrossAttention
from visionattn.layers.halo_attention import HaloAttention2d
from visionattn.layers.mixers.blocks import BlockAttention2d
from visionattn.layers.mixers.core import CoreContextAttention2d
from visionattn.layers.mixers.full import FullAttention2d
from visionattn.layers.mixers.linear import EluAttention2d, LinearAttention2d, TaylorAttention2d
from visionattn.layers.mixers.local_linear import LocalLinearAttention2d
from visionattn.layers.mixers.parallax import ParallaxAttention2d
from visionattn.layers.mixers.power import PowerAttention2d
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d
from visionattn.models._cut_attention import ANY_HEADS, HeadlessAttention, allow_any_heads

__all__ = ["HeadlessAttention", "check_cut", "cut_heads"]

KINDS = {
    Attention, AttentionRope, WindowAttention, *ANY_HEADS, *ANY_HEADS.values(), DualCrossAttention,
    NeighborhoodAttention2d, ParallaxAttention2d, LocalLinearAttention2d, FullAttention2d, CoreContextAttention2d,
    PowerAttention2d, BlockAttention2d, TaylorAttention2d, EluAttention2d,
}  # fmt: skip
"""Classes whose heads can be cut; a class derived from one of them may have further tensors per head."""

SUPPORTED = (
    "timm's ViT, DeiT, BEiT, EVA and Swin, and this library's NAT, DiNAT, DCAL and mixers neighborhood, full, core, "
    "power, parallax, local_linear, blocks, taylor and elu"
)
"""Networks whose heads can be cut, for messages."""

_LINEARS = {"qkv": 3} | dict.fromkeys(
    ("q_proj", "k_proj", "v_proj", "gate", "r", "landmark", "cpb_mlp.2", "rel_pos.mlp.fc2"), 1
)
TENSORS: Mapping[str, tuple[int, int]] = {
    **{f"{name}.{kind}": (0, parts) for name, parts in _LINEARS.items() for kind in ("weight", "bias")},
    "proj.weight": (1, 1),
    "rpb": (0, 1),
    "ridge": (0, 1),
    "logit_scale": (0, 1),
    "relative_position_bias_table": (1, 1),
    "rel_pos.relative_position_bias_table": (1, 1),
}
"""Tensors with a share of each head: the dimension that has them, and its number of parts of all heads each."""

SHARED = {
    "rope_mixed": "the model has rotary positions of its own for each head",
    "rel_pos_bias": "all layers share the relative positions of each head",
    "shared_rel_pos": "all layers share the relative positions of each head",
}
"""Obstacles outside the attention, by the attributes of models that say so."""


def cut_heads(
    model: nn.Module, heads: Mapping[str, Sequence[int]], constants: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Cut attention heads off a model in place, and return it.

    Rows of the projections to queries, keys and values, tables of positions, and columns of the output projection go.
    The model computes what it would if the outputs of these heads were 0 or, with `constants`, those. An attention that
    loses all heads becomes a `HeadlessAttention`. Of DCAL, the attention rollout is then the mean over the heads that
    are left; with `glca_pool` "avg" it chooses the patches.

    Args:
        model: The model.
        heads: Numbers of heads by the path of the block of their attention, such as ``blocks.3``,
            ``levels.2.blocks.1`` or ``layers.2.blocks.2``.
        constants: Outputs of all heads of a layer, `[h, d]`, by the same paths, such as their means over images and
            positions. Those of the heads that are cut go into the bias of the output projection. 0 by default.

    Raises:
        UserError: There is no such layer or head, or its heads cannot be cut. The model is then as it was.
    """
    cuts = _check(heads)
    for name, attention in check_cut(model, cuts).items():
        allow_any_heads(attention)
        _fold(attention, cuts[name], (constants or {}).get(name))
        if len(cuts[name]) < attention.num_heads:
            _shrink(attention, [head for head in range(attention.num_heads) if head not in cuts[name]])
        else:
            model.set_submodule(f"{name}.attn", HeadlessAttention(attention).train(attention.training))
    return model


def check_cut(model: nn.Module, heads: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Check that `cut_heads` can cut heads off a model, and return their attention by the path of its block.

    Raises:
        UserError: There is no such layer or head, or its heads cannot be cut.
    """
    return {name: _find(model, name, numbers) for name, numbers in _check(heads).items()}


def _check(heads: Any) -> dict[str, list[int]]:
    """Return the heads to cut by layer, in order; they may come from a file."""
    if not isinstance(heads, Mapping) or not all(
        isinstance(name, str) and isinstance(numbers, list | tuple) and all(type(number) is int for number in numbers)
        for name, numbers in heads.items()
    ):
        raise UserError(f'cut_heads are lists of heads by block, such as {{"blocks.3": [1, 2]}}; got {heads!r}')
    return {name: sorted(set(numbers)) for name, numbers in heads.items() if numbers}


def _find(model: nn.Module, name: str, numbers: Sequence[int]) -> Any:
    """Return the attention of a block, whose heads of these numbers can be cut."""
    modules: dict[str, Any] = dict(model.named_modules())
    attention: Any = getattr(modules.get(name), "attn", None)
    if isinstance(attention, HeadlessAttention):
        raise UserError(f"cut_heads: {name} has no heads left")
    if not hasattr(attention, "num_heads"):
        known = [path.removesuffix(".attn") for path, module in modules.items() if type(module) in KINDS]
        has = f"the model has them in {', '.join(known)}" if known else f"{SUPPORTED} have such heads"
        raise UserError(f"cut_heads: there are no heads to cut in {name!r}; {has}")
    if obstacle := _obstacle(model, attention):
        raise UserError(f"cut_heads: the heads of {name} cannot be cut, because {obstacle}; {SUPPORTED} allow it")
    count = attention.num_heads
    if wrong := [number for number in numbers if number not in range(count)]:
        raise UserError(f"cut_heads: there is no head {wrong[0]} in {name}, which has heads 0 to {count - 1}")
    if isinstance(attention, DualCrossAttention) and len(numbers) == count:
        raise UserError(f"cut_heads: DCAL's rollout wants a head in every layer: leave one of the {count} in {name}")
    return attention


def _obstacle(model: nn.Module, attention: Any) -> str:
    """Return why the heads of an attention cannot be cut; "" if they can."""
    if isinstance(attention, HaloAttention2d | HaloAttn):
        return "HaloNet has no output projection after them"
    if type(attention) not in KINDS:
        return f"{type(attention).__name__} is none of the known kinds"
    if not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity):
        return "all are normalised together before the output projection"
    if getattr(attention, "num_kv_groups", 1) > 1:
        return "they share keys and values"
    if getattr(attention, "num_groups", 1) > 1:
        return "with power_heads they share out the scales"
    if type(getattr(attention, "rel_pos", None)) not in (type(None), RelPosBias, RelPosMlp):
        return f"their positions are a {type(attention.rel_pos).__name__}"
    held = (name for module in model.modules() for name in SHARED if getattr(module, name, None) not in (None, False))
    return next((SHARED[name] for name in held), "")


@torch.no_grad()
def _fold(attention: Any, heads: Sequence[int], constants: Tensor | None) -> None:
    """Add what constant outputs of some heads, of `[h, d]`, contribute to the bias of the output projection."""
    proj = attention.proj
    bias = proj.weight.new_zeros(len(proj.weight)) if proj.bias is None else proj.bias
    if constants is not None:
        weight = proj.weight.unflatten(1, (attention.num_heads, -1))[:, heads]
        exact = torch.promote_types(weight.dtype, torch.float32)
        added = torch.einsum("chd,hd->c", weight.to(exact), constants[heads].to(weight.device, exact))
        bias = (bias + added).to(bias.dtype)
    proj.bias = nn.Parameter(bias.detach(), proj.weight.requires_grad)


@torch.no_grad()
def _shrink(attention: Any, heads: Sequence[int]) -> None:
    """Leave an attention only the parameters of some heads."""
    before, count, head_dim = attention.num_heads, len(heads), attention.proj.in_features // attention.num_heads
    for name, parameter in list(attention.named_parameters()):
        if name not in TENSORS:
            continue
        dim, parts = TENSORS[name]
        if isinstance(attention, LinearAttention2d) and name.startswith("qkv."):
            widths = [attention.feature_dim, attention.feature_dim, head_dim]
        else:
            widths = [parameter.shape[dim] // (parts * before)] * parts
        places = torch.tensor(_places(heads, before, widths), device=parameter.device)
        owner, _, own = name.rpartition(".")
        module: Any = attention.get_submodule(owner)
        setattr(module, own, nn.Parameter(parameter.index_select(dim, places), parameter.requires_grad))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    owners: list[Any] = [attention, getattr(attention, "rel_pos", None)]
    for owner in owners:
        for name in ("num_heads", "num_kv_heads"):
            if hasattr(owner, name):
                setattr(owner, name, count)
        if hasattr(owner, "bias_shape"):
            owner.bias_shape = (*owner.bias_shape[:-1], count)
    for name in ("attn_dim", "kv_dim"):
        if hasattr(attention, name):
            setattr(attention, name, count * head_dim)


def _places(heads: Sequence[int], num_heads: int, widths: Sequence[int]) -> list[int]:
    """Return the places of some heads in a dimension of parts, each of which has `width` places for every head."""
    starts = accumulate((num_heads * width for width in widths), initial=0)
    return [
        start + head * width + place
        for start, width in zip(starts, widths, strict=False)
        for head in heads
        for place in range(width)
    ]
