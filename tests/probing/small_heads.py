"""Small heads in double precision, and tokens for them."""

import torch
from torch import Tensor, nn

from visionattn.probing.heads import create_head, list_heads

OPTIONS = {"clip": {"num_tokens": 9}, "coca": {"num_queries": 3}, "capi": {"head_dim": 8}, "delf": {"hidden_dim": 12}}
HEADS = ["ep_1", "ep_8", *list_heads()]


def small(name: str, dim: int = 64, **options: object) -> nn.Module:
    """Create a head for 9 tokens and 5 classes, with biases, scales and positions unlike the initial ones."""
    head = create_head(name, dim, 5, **(OPTIONS.get(name, {}) | options)).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return head


def make_tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)
