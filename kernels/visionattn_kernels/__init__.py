"""Attention operators over windows of 2-D maps and sequences; needs torch alone."""

from visionattn_kernels.attention.api import (
    explain,
    halo_attention_2d,
    neighborhood_attention_1d,
    neighborhood_attention_2d,
    window_attention_2d,
    windowed_attention,
)
from visionattn_kernels.forking import run_serially_in_forked_children
from visionattn_kernels.hyper.api import hyper_zzw_global, hyper_zzw_local
from visionattn_kernels.multiscale.api import multiscale_attention_2d
from visionattn_kernels.parallax.api import parallax_attention_2d
from visionattn_kernels.unfused.api import (
    neighborhood_av_1d,
    neighborhood_av_2d,
    neighborhood_qk_1d,
    neighborhood_qk_2d,
    windowed_av,
    windowed_qk,
)
from visionattn_kernels.window import Window

run_serially_in_forked_children()

__all__ = [
    "Window", "explain", "halo_attention_2d", "hyper_zzw_global", "hyper_zzw_local", "multiscale_attention_2d",
    "neighborhood_attention_1d", "neighborhood_attention_2d", "neighborhood_av_1d", "neighborhood_av_2d",
    "neighborhood_qk_1d", "neighborhood_qk_2d", "parallax_attention_2d", "window_attention_2d", "windowed_attention",
    "windowed_av", "windowed_qk",
]  # fmt: skip
