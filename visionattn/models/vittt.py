"""ViT³, "Unlocking Test-Time Training in Vision" (Han et al., arXiv 2512.01643): a ViT with the mixer `ttt`.

Each block begins with a depthwise 3x3 convolution. There is no class token, no table of positions, no norm of patches;
the classifier reads the mean of the normalised map. Checkpoints of the authors load, see `_nat_checkpoints`. Their
README links to them; those links name no file, so timm cannot download from them, and the files have to be fetched
by hand. The links are untried.
"""

from typing import Any

from timm.models import generate_default_cfgs

from visionattn.models._configs import image_config, register_variants
from visionattn.models.nat_isotropic import build_isotropic

_VITTT: dict[str, Any] = {"mixer": "ttt", "cpe": True, "patch_norm": False, "norm_eps": 1e-6}

_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vittt_tiny": ("ViT³-Tiny.", {**_VITTT, "embed_dim": 192, "num_heads": 6}),
    "vittt_small": ("ViT³-Small.", {**_VITTT, "embed_dim": 384, "num_heads": 6}),
    "vittt_base": ("ViT³-Base.", {**_VITTT, "embed_dim": 768, "num_heads": 12}),
}

_CFG = image_config(
    pool_size=(14, 14),
    first_conv="patch_embed.proj",
    license="mit",
    paper_ids="arXiv:2512.01643",
    paper_name="ViT³: Unlocking Test-Time Training in Vision",
    origin_url="https://github.com/LeapLabTHU/ViTTT",
)

default_cfgs = generate_default_cfgs({f"{name}.untrained": _CFG for name in _VARIANTS})

register_variants(__name__, build_isotropic, _VARIANTS)
