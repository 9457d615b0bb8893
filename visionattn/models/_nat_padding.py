"""Zeros around small maps, with which published NAT and DiNAT weights were trained; weights record them.

By default a model follows the weights that it loads, and then records that in its state dict under a key of
its own. Files of the authors, the output of `visionattn export convert`, exported folders
and fine-tuned checkpoints therefore all give the trained network, and models from scratch use no zeros.
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
    if getattr(model, PADDING) is None and has_attention:  # a new head alone decides nothing
        for attention in _attentions(model):
            attention.legacy_pad = told is not None and bool(told)


def _tell(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, _: Any) -> None:
    # An explicit option is given again whenever the model is built.
    if getattr(model, PADDING) is None and any(attention.legacy_pad for attention in _attentions(model)):
        state_dict[f"{prefix}{PADDING}"] = torch.tensor(True)
