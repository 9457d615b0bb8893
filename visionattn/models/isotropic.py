"""Small isotropic models for 32 pixels, one per token mixer, to compare mixers in one frame.

`iso_nano` has patches of 2 pixels, hence 16x16 tokens at 32 pixels, six blocks of 64 channels, and a depthwise
convolution for positions at the start of each block. They are of our own making and have no published weights.
"""

from typing import Any

from timm.models import generate_default_cfgs

from visionattn.models._configs import image_config, register_variants
from visionattn.models.nat_isotropic import build_isotropic

_NANO: dict[str, Any] = {
    "embed_dim": 64,
    "depth": 6,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "kernel_size": 5,
    "patch_size": 2,
    "cpe": True,
    "img_size": 32,
}

_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "iso_nano": ("Isotropic model for 32 pixels with 5x5 neighborhood attention.", _NANO),
    **{
        f"iso_nano_{mixer}": (f"iso_nano with the mixer {mixer}.", {**_NANO, "mixer": mixer})
        for mixer in ("full", "core", "power", "parallax", "local_linear", "blocks")
    },
    **{
        f"iso_nano_{mixer}": (
            f"iso_nano with the mixer {mixer} and neighborhood attention in turn.",
            {**_NANO, "mixer": (mixer, "neighborhood")},
        )
        for mixer in ("taylor", "elu", "routing", "ttt")
    },
}

_CFG = image_config(
    num_classes=10, input_size=(3, 32, 32), pool_size=(16, 16), crop_pct=1.0, first_conv="patch_embed.proj"
)

default_cfgs = generate_default_cfgs({f"{name}.untrained": _CFG for name in _VARIANTS})

register_variants(__name__, build_isotropic, _VARIANTS)
