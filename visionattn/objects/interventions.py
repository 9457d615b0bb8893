"""Interventions on object binding: change tokens between blocks, and read the attention between patches.

A quadratic probe reads tokens h through a subspace of few dimensions: h = f + b, where b is the projection of h onto
the subspace. Changing only b after one block tests whether later blocks use what the probe reads
(https://arxiv.org/abs/2510.24709, sections on ablation). The control is the same change in a random subspace of equal
dimension.

Shapes: B images of E prefix tokens and N patches, width D, subspace of K dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.analysis.attention import token_layers
from visionattn.analysis.recorded import RecordedAttention, TokenAttention
from visionattn.objects.binding import LayerProbes

Change = Callable[[Tensor], Tensor]
"""Maps the coordinates `[B, N, K]` of b to their new values."""


def probe_subspace(probes: LayerProbes) -> Tensor:
    """Return an orthonormal basis `[K, D]` of the subspace through which a layer's quadratic probe reads tokens.

    The subspace must not be the whole space.
    """
    directions = probes.norm.to_tokens(probes.probe("quadratic").get_parameter("weight"))[0]
    _, sizes, basis = torch.linalg.svd(directions.double(), full_matrices=False)
    basis = basis[sizes > 1e-5 * sizes[0]].to(directions.dtype)
    dim = basis.shape[1]
    # Layer norm removes the mean of a token, so the whole space has dim - 1 dimensions.
    if len(basis) >= dim - 1:
        raise ValueError(f"a quadratic probe of rank {len(directions)} reads all of width {dim}: choose a lower rank")
    return basis


def random_subspace(num_dimensions: int, dim: int, generator: torch.Generator) -> Tensor:
    """Draw an orthonormal basis `[num_dimensions, dim]` of a random subspace, with a generator on the CPU."""
    drawn = torch.randn(dim, num_dimensions, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T.float()


def shuffle(share: float, generator: torch.Generator) -> Change:
    """Make a change that permutes b among a random share of each image's patches; none of these keeps its own b.

    Fewer than two patches stay unchanged. The generator is one of the CPU.
    """

    def change(parts: Tensor) -> Tensor:
        count = round(share * parts.shape[1])
        order = torch.rand(parts.shape[:2], generator=generator).argsort(dim=1)[:, :count, None].to(parts.device)
        order = order.expand(-1, -1, parts.shape[-1])
        return parts.scatter(1, order, parts.gather(1, order.roll(1, dims=1)))

    return change


def inject(alpha: float, instances: Tensor) -> Change:
    """Make a change that moves b towards its mean over the patch's object: (1 - alpha) b + alpha mean.

    `instances` are the object of each patch `[B, N]`; patches of object 0 stay unchanged.
    """

    def change(parts: Tensor) -> Tensor:
        members = F.one_hot(instances).to(parts.dtype)  # [B, N, S + 1]
        means = (members.mT @ parts) / members.sum(1)[..., None].clamp(min=1)
        delta = means.gather(1, instances[..., None].expand_as(parts)) - parts
        return parts + alpha * delta * (instances > 0)[..., None]

    return change


@contextmanager
def intervene(block: nn.Module, num_prefix_tokens: int, basis: Tensor, change: Change) -> Iterator[None]:
    """Change the patches' b in the output of a block within a `with` block; all else stays bit-identical.

    The block returns tokens `[B, E + N, D]`; `basis` is an orthonormal basis `[K, D]` of the subspace.
    """

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        prefix, patches = output[:, :num_prefix_tokens], output[:, num_prefix_tokens:]
        parts = patches.to(basis.dtype) @ basis.T
        delta = (change(parts) - parts) @ basis
        return torch.cat([prefix, patches + delta.to(patches.dtype)], dim=1)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def patch_attention(recorded: RecordedAttention) -> Tensor:
    """Return the attention between patches `[B, N, N]`, averaged over heads, for `record_attention` to keep.

    Attention to prefix tokens is left out, without renormalising.
    """
    assert isinstance(recorded, TokenAttention)  # a block of `blocks_of`
    prefix = recorded.num_prefix_tokens
    return recorded.weights.mean(1)[:, prefix:, prefix:].float()


class Correlation:
    """Pearson's r of two variables, from batches."""

    def __init__(self) -> None:
        self._sums = torch.zeros(6, dtype=torch.float64)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch of values; `x` and `y` have the same shape."""
        x, y = x.flatten().double(), y.flatten().double()
        sums = torch.stack([x.new_tensor(len(x)), x.sum(), y.sum(), x @ x, y @ y, x @ y])
        self._sums += sums.cpu()

    def compute(self) -> float | None:
        """Return the coefficient, or None if a variable is constant."""
        count, x, y, xx, yy, xy = self._sums.tolist()
        spread = (count * xx - x * x) * (count * yy - y * y)
        return (count * xy - x * y) / spread**0.5 if count and spread > 0 else None


def blocks_of(model: nn.Module, name: str) -> Sequence[nn.Module]:
    """Return the blocks of a timm ViT; raise a ValueError unless the attention of each can be recorded."""
    if not token_layers(model):
        raise ValueError(f"{name} is no ViT with a sequence of attention blocks: interventions need one")
    vit: Any = model
    return list(vit.blocks)
