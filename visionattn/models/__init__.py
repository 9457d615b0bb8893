"""Models, one family per file; importing this package registers them with timm."""

from visionattn.models import isotropic as isotropic
from visionattn.models import vittt as vittt
from visionattn.models.backbone import Backbone
from visionattn.models.controls import SmallImageResNet
from visionattn.models.dcal import DcalSwinTransformer, DcalVisionTransformer
from visionattn.models.halonet import HaloNet
from visionattn.models.masked_autoencoder import MaskedDecoder
from visionattn.models.nat import NeighborhoodAttentionTransformer
from visionattn.models.nat_isotropic import IsotropicNeighborhoodTransformer
from visionattn.models.slot_cnn import SlotCnn
from visionattn.models.slot_vit import SlotVisionTransformer
from visionattn.models.slots import SlotAutoencoder
from visionattn.models.terminator import Terminator

__all__ = [
    "Backbone", "DcalSwinTransformer", "DcalVisionTransformer", "HaloNet", "IsotropicNeighborhoodTransformer",
    "MaskedDecoder", "NeighborhoodAttentionTransformer", "SlotAutoencoder", "SlotCnn", "SlotVisionTransformer",
    "SmallImageResNet", "Terminator",
]  # fmt: skip
