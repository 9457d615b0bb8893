"""Zeros around small maps, with which published NAT and DiNAT weights were trained: a fact that travels with weights.

A model that is not told what to do follows the weights that it loads, and then says so in its state dict by a key of
its own. Thus files of the authors, what `visionattn export convert` makes of them, exported folders
and fine-tuned checkpoints all give the network that was trained, and models from scratch see no zeros.
"""

from typing import Any

import torch
from torch import Tensor, nn

from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d

PADDING = "legacy_pad"
"""The key in state dicts, and the option of the models."""


def follow_padding(model: nn.Module, legacy_pad: bool | None) -> None:
    """Let loaded weights decide whether a model pads small maps if `legacy_pad` is None."""
    setattr(model, PADDING, legacy_pad)
    model.register_load_state_dict_pre_hook(_take)
    model.register_state_dict_post_hook(_tell)


def _attentions(model: nn.Module) -> list[NeighborhoodAttention2d]:
    return [module for module in model.modules() if isinstance(module, NeighborhoodAttention2d)]


def _take(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    told = state_dict.pop(f"{prefix}{PADDING}", None)
    has_attention = any(name.startswith(prefix) and name.endswith("qkv.weight") for name in state_dict)
    if getattr(model, PADDING) is None and has_attention:  # a new head alone says nothing
        for attention in _attentions(model):
            attention.legacy_pad = told is not None and bool(told)


def _tell(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, _: Any) -> None:
    # A model that was told gets told again by whoever builds it.
    if getattr(model, PADDING) is None and any(attention.legacy_pad for attention in _attentions(model)):
        state_dict[f"{prefix}{PADDING}"] = torch.tensor(True)
