"""Layers as `nn.Module`s: neighborhood and halo attention, dual cross-attention, slot attention, Terminator's block."""

import timm  # noqa: F401  imports the models, before a layer here that imports timm would be half imported

from visionattn.layers.bnneck import BNNeck
from visionattn.layers.dual_cross_attention import DualCrossAttention, DualCrossBlock, GlobalLocalCrossAttention
from visionattn.layers.halo_attention import HaloAttention2d
from visionattn.layers.hyper_interaction import HyperChannelInteraction, HyperInteraction, RecursiveGatedUnit
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d
from visionattn.layers.pointwise import MapLinear, MapMlp
from visionattn.layers.prepared import Prepared, frozen_weights
from visionattn.layers.sfne import SlowFastBlock
from visionattn.layers.slot_attention import SlotAttention
from visionattn.layers.slow_network import ContextSlowNetwork, SlowNetwork
from visionattn.layers.standardization import BatchStandardization, GroupStandardization

__all__ = [
    "BNNeck", "BatchStandardization", "ContextSlowNetwork", "DualCrossAttention", "DualCrossBlock",
    "GlobalLocalCrossAttention", "GroupStandardization", "HaloAttention2d", "HyperChannelInteraction",
    "HyperInteraction", "MapLinear", "MapMlp", "NeighborhoodAttention2d", "Prepared", "RecursiveGatedUnit",
    "SlotAttention", "SlowFastBlock", "SlowNetwork", "frozen_weights",
]  # fmt: skip
