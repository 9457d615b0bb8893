"""NATTEN's switches and questions about the device.

Models call them before they run. Switches are remembered and change nothing: the operators here need no preparation.
"""

from __future__ import annotations

import torch

from visionattn_kernels.compat.natten.utils import get_device_cc

__all__ = [
    "are_deterministic_algorithms_enabled", "disable_autotuner", "disable_gemm_na", "disable_tf32",
    "disable_tiled_na", "enable_gemm_na", "enable_tf32", "enable_tiled_na", "force_flex_attention",
    "get_memory_usage_preference", "has_bfloat", "has_cuda", "has_fna", "has_fp32_gemm", "has_fp64_gemm",
    "has_fused_na", "has_gemm", "has_half", "has_tf32_gemm", "is_autotuner_enabled",
    "is_autotuner_enabled_for_backward", "is_autotuner_enabled_for_forward", "is_autotuner_thorough_for_backward",
    "is_autotuner_thorough_for_forward", "is_fna_enabled", "is_fused_na_enabled", "is_gemm_na_enabled",
    "is_kv_parallelism_in_fused_na_enabled", "is_memory_usage_default", "is_memory_usage_strict",
    "is_memory_usage_unrestricted", "is_tf32_in_gemm_na_enabled", "is_tiled_na_enabled",
    "set_memory_usage_preference", "use_autotuner", "use_deterministic_algorithms", "use_flex_attention", "use_fna",
    "use_fused_na", "use_gemm_na", "use_kv_parallelism_in_fused_na", "use_tf32_in_gemm_na", "use_tiled_na",
]  # fmt: skip

MEMORY_PREFERENCES = ("default", "strict", "unrestricted")


class Switch:
    """A setting that is remembered and changes nothing."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    def use(self, mode: bool = True) -> None:
        """Set the switch."""
        self._enabled = mode

    def enable(self) -> bool:
        """Set the switch to True, and return that."""
        self._enabled = True
        return True

    def disable(self) -> bool:
        """Set the switch to False, and return that."""
        self._enabled = False
        return False

    def is_enabled(self) -> bool:
        """Return what was set last."""
        return self._enabled


_deterministic, _fused, _kv_parallel = Switch(False), Switch(False), Switch(False)
_gemm, _tf32, _tiled = Switch(True), Switch(True), Switch(True)
_tune_forward, _tune_backward, _thorough_forward, _thorough_backward = (Switch(False) for _ in range(4))

use_deterministic_algorithms, are_deterministic_algorithms_enabled = _deterministic.use, _deterministic.is_enabled
use_kv_parallelism_in_fused_na, is_kv_parallelism_in_fused_na_enabled = _kv_parallel.use, _kv_parallel.is_enabled
is_fused_na_enabled = is_fna_enabled = _fused.is_enabled
use_gemm_na, is_gemm_na_enabled = _gemm.use, _gemm.is_enabled
enable_gemm_na, disable_gemm_na = _gemm.enable, _gemm.disable
use_tf32_in_gemm_na, is_tf32_in_gemm_na_enabled = _tf32.use, _tf32.is_enabled
enable_tf32, disable_tf32 = _tf32.enable, _tf32.disable
use_tiled_na, is_tiled_na_enabled = _tiled.use, _tiled.is_enabled
enable_tiled_na, disable_tiled_na = _tiled.enable, _tiled.disable
is_autotuner_enabled_for_forward = _tune_forward.is_enabled
is_autotuner_enabled_for_backward = _tune_backward.is_enabled
is_autotuner_thorough_for_forward = _thorough_forward.is_enabled
is_autotuner_thorough_for_backward = _thorough_backward.is_enabled


def use_fused_na(
    mode: bool = True, kv_parallel: bool = True, use_flex_attention: bool = False, force_flex_attention: bool = False
) -> None:
    """Remember whether fused attention is asked for; modules here take it whenever no attention dropout is active."""
    _fused.use(mode)
    _kv_parallel.use(mode and kv_parallel)


use_fna = use_fused_na


def use_flex_attention() -> None:
    """Remember that fused attention is asked for."""
    use_fused_na()


force_flex_attention = use_flex_attention


def use_autotuner(
    forward_pass: bool | None = None,
    backward_pass: bool | None = None,
    thorough_mode_forward: bool | None = None,
    thorough_mode_backward: bool | None = None,
    warmup_steps_forward: int | None = None,
    warmup_steps_backward: int | None = None,
    steps_forward: int | None = None,
    steps_backward: int | None = None,
) -> None:
    """Remember what is to be tuned; None leaves a setting as it is."""
    asked = {
        _tune_forward: forward_pass,
        _tune_backward: backward_pass,
        _thorough_forward: thorough_mode_forward,
        _thorough_backward: thorough_mode_backward,
    }
    for switch, mode in asked.items():
        if mode is not None:
            switch.use(mode)


def disable_autotuner() -> None:
    """Remember that nothing is to be tuned."""
    use_autotuner(False, False, False, False)


def is_autotuner_enabled() -> bool:
    """Return whether tuning of either pass was asked for."""
    return is_autotuner_enabled_for_forward() or is_autotuner_enabled_for_backward()


_memory = MEMORY_PREFERENCES[0]


def set_memory_usage_preference(pref: str = "default") -> None:
    """Remember a preference. Raises ValueError for an unknown one."""
    global _memory
    if pref not in MEMORY_PREFERENCES:
        raise ValueError(f"pref must be one of {', '.join(MEMORY_PREFERENCES)}; got {pref!r}")
    _memory = pref


def get_memory_usage_preference() -> str:
    """Return the preference by name."""
    return _memory


def is_memory_usage_default() -> bool:
    """Return whether the preference is "default"."""
    return _memory == "default"


def is_memory_usage_strict() -> bool:
    """Return whether the preference is "strict"."""
    return _memory == "strict"


def is_memory_usage_unrestricted() -> bool:
    """Return whether the preference is "unrestricted"."""
    return _memory == "unrestricted"


def has_cuda() -> bool:
    """Return whether there is a CUDA device."""
    return torch.cuda.is_available()


def has_fused_na(device_index: int | None = None) -> bool:
    """Return True: `na1d` and `na2d` run on every device."""
    return True


has_fna = has_fused_na


def has_half(device_index: int | None = None) -> bool:
    """Return whether a CUDA device computes in float16."""
    return has_cuda() and get_device_cc(device_index) >= 50


def has_bfloat(device_index: int | None = None) -> bool:
    """Return whether a CUDA device computes in bfloat16."""
    return has_cuda() and get_device_cc(device_index) >= 80


def has_gemm(device_index: int | None = None) -> bool:
    """Return whether a CUDA device has tensor cores."""
    return has_cuda() and get_device_cc(device_index) >= 70


has_fp64_gemm = has_fp32_gemm = has_tf32_gemm = has_bfloat
