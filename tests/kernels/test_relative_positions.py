"""Relative positions of other papers are the relative logits of a window."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels import neighborhood_attention_1d


def skew(logits: Tensor) -> Tensor:
    """Shift row i of `[..., L, L]` so that the last entry, distance 0, stands on the diagonal (arXiv 1809.04281)."""
    length = logits.shape[-1]
    return F.pad(logits, (1, 0)).flatten(-2)[..., length:].unflatten(-1, (length, length))


@pytest.mark.parametrize("length", [1, 2, 17])
def test_causal_window_is_skewed_attention_of_music_transformer(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, length, 3, 8, generator=generator, dtype=torch.float64).requires_grad_()
    table = torch.randn(length, 8, generator=generator, dtype=torch.float64).requires_grad_()  # distances L - 1 ... 0
    scale = 8**-0.5

    rows, keys, values = (x.transpose(1, 2) for x in (q, k, v))  # [B, heads, L, d]
    scores = (rows @ keys.mT + skew(rows @ table.T)) * scale
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    expected = (scores.masked_fill(later, float("-inf")).softmax(-1) @ values).transpose(1, 2)

    rel = F.pad(q @ table.T * scale, (0, length - 1))  # no key is later
    out = neighborhood_attention_1d(q, k, v, kernel_size=length, is_causal=True, rel=rel)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    found, wanted = (torch.autograd.grad(y, [q, k, v, table], weights) for y in (out, expected))
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
