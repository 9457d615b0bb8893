"""Experiments on what a model does with object binding: changes of its tokens on the way, and what attention follows.

A quadratic probe reads tokens h through a subspace of a few dimensions: h = f + b, with b the projection of h on it.
Changing b alone, at one block, tells whether later blocks use what the probe found (https://arxiv.org/abs/2510.24709,
sections on ablation); the same change in a random subspace of as many dimensions tells what any damage does.

Shapes: B images of E prefix tokens and N patches, width D, subspace of K dimensions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.objects.binding import LayerProbes

Change = Callable[[Tensor], Tensor]
"""What becomes of the coordinates `[B, N, K]` of b."""


def probe_subspace(probes: LayerProbes) -> Tensor:
    """Orthonormal basis `[K, D]` of the subspace through which a layer's quadratic probe reads tokens.

    Args:
        probes: Of one layer.

    Raises:
        ValueError: The subspace leaves nothing out.
    """
    directions = probes.norm.to_tokens(probes.probe("quadratic").get_parameter("weight"))[0]
    _, sizes, basis = torch.linalg.svd(directions.double(), full_matrices=False)
    basis = basis[sizes > 1e-5 * sizes[0]].to(directions.dtype)
    dim = basis.shape[1]
    # Tokens are read without their mean, so that dim - 1 dimensions are all.
    if len(basis) >= dim - 1:
        raise ValueError(f"a quadratic probe of rank {len(directions)} reads all of width {dim}: take a lower rank")
    return basis


def random_subspace(num_dimensions: int, dim: int, generator: torch.Generator) -> Tensor:
    """Orthonormal basis `[num_dimensions, dim]` of a random subspace; the generator is on the CPU."""
    drawn = torch.randn(dim, num_dimensions, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T.float()


def shuffle(share: float, generator: torch.Generator) -> Change:
    """Exchanges b among a share of each image's patches, at random, so that none of these keeps its own.

    Args:
        share: From 0 to 1; of fewer than two patches there is nothing to exchange.
        generator: On the CPU.
    """

    def change(parts: Tensor) -> Tensor:
        count = round(share * parts.shape[1])
        order = torch.rand(parts.shape[:2], generator=generator).argsort(dim=1)[:, :count, None].to(parts.device)
        order = order.expand(-1, -1, parts.shape[-1])
        return parts.scatter(1, order, parts.gather(1, order.roll(1, dims=1)))

    return change


def inject(alpha: float, instances: Tensor) -> Change:
    """Brings b nearer to its mean over the patch's object: (1 - alpha) b + alpha mean.

    Args:
        alpha: 0 for no change.
        instances: Objects of patches `[B, N]`, 0 for those that are left alone.
    """

    def change(parts: Tensor) -> Tensor:
        members = F.one_hot(instances).to(parts.dtype)  # [B, N, S + 1]
        means = (members.mT @ parts) / members.sum(1)[..., None].clamp(min=1)
        delta = means.gather(1, instances[..., None].expand_as(parts)) - parts
        return parts + alpha * delta * (instances > 0)[..., None]

    return change


@contextmanager
def intervene(block: nn.Module, num_prefix_tokens: int, basis: Tensor, change: Change) -> Iterator[None]:
    """Within, what a block gives has its patches' b changed; all else of it stays, bit by bit.

    Args:
        block: Of any ViT of timm's: it gives tokens `[B, E + N, D]`.
        num_prefix_tokens: E, of which the tokens stay.
        basis: Orthonormal `[K, D]`.
        change: What becomes of b.
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


@contextmanager
def record_attention(attentions: Mapping[int, nn.Module], num_prefix_tokens: int) -> Iterator[dict[int, Tensor]]:
    """Within, a forward pass leaves the attention of patches to patches, `[B, N, N]`, the mean of the heads.

    timm's fused attention, which has no weights to show, is off meanwhile.

    Args:
        attentions: Modules of timm's, by the key that their weights get.
        num_prefix_tokens: Tokens before the patches; what goes to them is left out, not shared among the others.
    """
    weights: dict[int, Tensor] = {}

    def hook_for(key: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            weights[key] = inputs[0].mean(1)[:, num_prefix_tokens:, num_prefix_tokens:].float()

        return hook

    fused = {key: getattr(attention, "fused_attn", False) for key, attention in attentions.items()}
    with ExitStack() as stack:
        for key, attention in attentions.items():
            dropout = attention.get_submodule("attn_drop")
            stack.callback(dropout.register_forward_hook(hook_for(key)).remove)
            stack.callback(setattr, attention, "fused_attn", fused[key])
            attention.fused_attn = False  # type: ignore[assignment]
        yield weights


class Correlation:
    """Pearson's r of pairs of numbers that come in batches."""

    def __init__(self) -> None:
        self._sums = torch.zeros(6, dtype=torch.float64)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Takes account of numbers, of any but equal shapes."""
        x, y = x.flatten().double(), y.flatten().double()
        sums = torch.stack([x.new_tensor(len(x)), x.sum(), y.sum(), x @ x, y @ y, x @ y])
        self._sums += sums.cpu()

    def compute(self) -> float | None:
        """The coefficient; None where one of the two does not vary."""
        count, x, y, xx, yy, xy = self._sums.tolist()
        spread = (count * xx - x * x) * (count * yy - y * y)
        return (count * xy - x * y) / spread**0.5 if count and spread > 0 else None


def blocks_of(model: nn.Module, name: str) -> Sequence[nn.Module]:
    """The blocks of a ViT.

    Raises:
        ValueError: The model is none of timm's ViTs, with blocks in a row whose attention can be read.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not all(
        isinstance(getattr(getattr(block, "attn", None), "attn_drop", None), nn.Module) for block in blocks
    ):
        raise ValueError(f"{name} is no ViT with blocks of attention in a row: interventions are for these")
    return list(blocks)
