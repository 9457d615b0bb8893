"""References of the recall suite that need no training: fits to the pairs of a map, and the capacity of a sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from visionattn.data import RecallData

BANDWIDTHS = (0.35, 0.5, 0.7, 1.0, 1.4)
"""Standard deviations of the weights of local fits, of which the best counts; x has the standard deviation 1."""
CAPACITIES = ((16, 8), (16, 16), (64, 32), (64, 64), (64, 128), (256, 256))
"""Width, and number of pairs."""
TRIALS = 200


def fit_regression(options: Mapping[str, Any]) -> dict[str, float]:
    """Return the errors of fits to the pairs of each map of validation, relative to that of the best constant.

    Args:
        options: options of `RecallData` with the name regression.
    """
    data = RecallData(name="regression", val_length=500, **options)
    batches = [batch[:3] for batch in data.val_dataloader()]
    image, queries, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
    cells = image.flatten(2).mT.double()  # [B, N, x_dim + y_dim + 1]
    num_y = target.shape[-1]
    x, y = cells[..., : -num_y - 1], cells[..., -num_y - 1 : -1]
    known = cells[..., -1] == 0
    asked = x.gather(1, queries[..., None].expand(-1, -1, x.shape[-1]))
    x, y = (part[known].unflatten(0, (len(cells), -1)) for part in (x, y))
    error = (target - target.flatten(0, 1).mean(0)).square().mean().item()

    def relative(linear: bool, *bandwidths: float) -> float:
        fits = (fit_locally(x, y, asked, bandwidth, linear) for bandwidth in bandwidths)
        return min((found - target).square().mean().item() for found in fits) / error

    return {
        "constant": relative(False, math.inf),
        "local constant": relative(False, *BANDWIDTHS),
        "linear": relative(True, math.inf),
        "local linear": relative(True, *BANDWIDTHS),
    }


def fit_locally(x: Tensor, y: Tensor, queries: Tensor, bandwidth: float, linear: bool) -> Tensor:
    """Return a constant or a linear function `[B, Q, K]` fitted with Gaussian weights around each query.

    Args:
        x: `[B, N, D]`.
        y: `[B, N, K]`.
        queries: `[B, Q, D]`.
        bandwidth: Standard deviation of the weights; infinite for equal ones.
        linear: Whether the function is linear; it is constant otherwise.
    """
    offsets = x[:, None] - queries[:, :, None]  # [B, Q, N, D]
    weights = torch.softmax(-offsets.square().sum(-1) / (2 * bandwidth**2), -1)
    if not linear:
        return weights @ y
    design = torch.cat([torch.ones_like(offsets[..., :1]), offsets], -1)
    weighted = design * weights[..., None]
    gram = weighted.mT @ design + 1e-6 * torch.eye(design.shape[-1], dtype=x.dtype)
    return torch.linalg.solve(gram, weighted.mT @ y[:, None])[..., 0, :]


def measure_capacity(dim: int, pairs: int, generator: torch.Generator) -> tuple[float, float, float]:
    """Write pairs of random unit vectors to a sum of products `Σ v kᵀ`, and read each value by its key.

    Returns:
        The mean squared error of a value, the share of values that are the nearest to what is read, and the share of
        sums with no error.
    """
    keys, values = (
        torch.nn.functional.normalize(torch.randn(TRIALS, pairs, dim, generator=generator), dim=-1) for _ in range(2)
    )
    read = keys @ (keys.mT @ values)
    right = (read @ values.mT).argmax(-1) == torch.arange(pairs)
    return (
        (read - values).square().sum(-1).mean().item(),
        right.float().mean().item(),
        right.all(1).float().mean().item(),
    )


def capacity_table() -> str:
    """Return a table of what sums of products hold."""
    generator = torch.Generator().manual_seed(0)
    lines = [
        "| width d | pairs n | squared error | (n − 1)/d | values recalled | sums without an error |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for dim, pairs in CAPACITIES:
        error, right, whole = measure_capacity(dim, pairs, generator)
        lines.append(f"| {dim} | {pairs} | {error:.2f} | {(pairs - 1) / dim:.2f} | {right:.1%} | {whole:.1%} |")
    return "\n".join(lines)
