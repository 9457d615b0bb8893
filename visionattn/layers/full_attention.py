"""Attention of all queries to all keys, fused or not.

In half precision on CPUs, torch's fused attention takes longer than plain operators: 1.4 to 1.8 times forward, 1.7 to
5.5 times with the backward pass, for 64 to 785 tokens (`kernels/bench/full_attention.py`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0, fused: bool = True
) -> Tensor:
    """Compute softmax attention `softmax(q.k / sqrt(d) + bias) v`.

    Args:
        q: Queries `[..., N, d]`.
        k: Keys `[..., M, d]`.
        v: Values `[..., M, d_v]`.
        bias: Added to the logits; broadcasts to `[..., N, M]`.
        dropout: Probability with which weights are dropped.
        fused: Whether torch's fused operator computes it. Plain operators keep all weights for the backward pass.

    Returns:
        `[..., N, d_v]`.
    """
    if fused:
        return F.scaled_dot_product_attention(q, k, v, bias, dropout)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return F.dropout(weights, dropout).to(v.dtype) @ v


def fused_is_fast(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch's fused attention is faster than plain operators."""
    return device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16)


def unfuse(model: nn.Module, device: torch.device) -> None:
    """Let attention layers compute with plain operators, in a model that will run in half precision on `device`.

    Layers are those with timm's flag `fused_attn`. It is changed for CPUs only.
    """
    if fused_is_fast(device, torch.bfloat16):
        return
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
