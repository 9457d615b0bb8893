"""Slot attention: slots compete for the tokens of an image, so that each represents a part of it.

Source: Locatello et al., "Object-Centric Learning with Slot Attention", NeurIPS 2020,
https://arxiv.org/abs/2006.15055, algorithm 1. Learned slots and their gradient: Chang et al., "Object Representations
as Fixed Points", NeurIPS 2022, https://arxiv.org/abs/2207.00787, and Jia et al., "Improving Object-centric Learning
with Query Optimization", ICLR 2023, https://arxiv.org/abs/2210.08990.

    B images, N tokens of width C, K slots of width D
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

SlotInit = Literal["gaussian", "learned"]
"""Initial slots: draws from one learned normal distribution, or a learned vector per slot."""

EPSILON = 1e-8
"""Added to the attention, so that no slot divides by zero."""


class SlotAttention(nn.Module):
    """Iterative attention in which slots compete: the softmax is over slots, not over tokens.

    Drawn slots have no order and any number. In training they are drawn for each image; in
    evaluation all images get the same draw, made once from a fixed seed, so that results neither change from run to
    run nor depend on the rest of a batch.
    """

    noise: Tensor

    def __init__(
        self,
        dim: int,
        in_dim: int | None = None,
        num_slots: int = 7,
        iterations: int = 3,
        hidden_dim: int | None = None,
        init: SlotInit = "gaussian",
        implicit: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module.

        Args:
            dim: Width of a slot.
            in_dim: Width of a token, by default that of a slot.
            num_slots: Number of slots.
            iterations: Iterations of attention.
            hidden_dim: Hidden width of the MLP, by default twice that of a slot.
            init: Initial slots, see `SlotInit`.
            implicit: Whether the gradient is that of the last iteration alone, as at a fixed point, and goes straight
                through to the initial slots; it costs less and is more stable.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: A number is below 1, or `init` is unknown.
        """
        super().__init__()
        for what, number in (("num_slots", num_slots), ("iterations", iterations)):
            if number < 1:
                raise ValueError(f"{what} must be at least 1, got {number}")
        if init not in get_args(SlotInit):
            raise ValueError(f"init must be one of {', '.join(get_args(SlotInit))}, got {init!r}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        in_dim, hidden_dim = in_dim or dim, hidden_dim or 2 * dim
        self.dim, self.num_slots, self.iterations, self.implicit = dim, num_slots, iterations, implicit
        self.scale, self.eps = dim**-0.5, EPSILON
        self.mu = nn.Parameter(torch.empty(1 if init == "gaussian" else num_slots, dim, **dd))
        self.log_sigma = nn.Parameter(torch.empty(1, dim, **dd)) if init == "gaussian" else None
        self.register_buffer("noise", torch.empty(num_slots, dim, **dd), persistent=False)
        self.norm_tokens = nn.LayerNorm(in_dim, **dd)
        self.norm_slots = nn.LayerNorm(dim, **dd)
        self.norm_mlp = nn.LayerNorm(dim, **dd)
        self.q = nn.Linear(dim, dim, bias=False, **dd)
        self.kv = nn.Linear(in_dim, 2 * dim, bias=False, **dd)
        self.gru = nn.GRUCell(dim, dim, **dd)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden_dim, **dd), nn.ReLU(), nn.Linear(hidden_dim, dim, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters of the initial slots, as the paper's code does."""
        bound = (6 / (1 + self.dim)) ** 0.5
        nn.init.uniform_(self.mu, -bound, bound)
        if self.log_sigma is not None:
            nn.init.uniform_(self.log_sigma, -bound, bound)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Make the draw of evaluation; timm and transformers call this on models that they built without memory."""
        if not self.noise.is_meta:
            self.noise.copy_(torch.randn(self.noise.shape, generator=torch.Generator().manual_seed(0)))

    def initial_slots(self, batch: int, noise: Tensor | None = None) -> Tensor:
        """Return the initial slots [B, K, D], see `forward`."""
        if self.log_sigma is None:
            return self.mu.expand(batch, -1, -1)
        if noise is None:
            noise = self.noise
            if self.training:
                noise = torch.randn(batch, self.num_slots, noise.shape[1], device=noise.device, dtype=noise.dtype)
        return (self.mu + self.log_sigma.exp() * noise).expand(batch, -1, -1)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Bind slots to tokens.

        Args:
            x: Tokens [B, N, C].
            noise: Draws from the standard normal distribution, [B, K, D] or [K, D], that drawn slots are made of;
                by default new ones in training, and always the same in evaluation.

        Returns:
            Slots [B, K, D], and how much of each token the last iteration gave to each slot: [B, K, N], with a sum of
            1 over slots.
        """
        k, v = self.kv(self.norm_tokens(x)).chunk(2, dim=-1)  # [B, N, D]
        slots = initial = self.initial_slots(x.shape[0], noise)
        for iteration in range(self.iterations):
            if self.implicit and iteration == self.iterations - 1:
                slots = slots.detach() + initial - initial.detach()
            q = self.q(self.norm_slots(slots))
            attention = (k @ (self.scale * q).mT).softmax(-1) + self.eps  # [B, N, K]
            updates = (attention / attention.sum(1, keepdim=True)).mT @ v  # [B, K, D]
            slots = self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).unflatten(0, (-1, slots.shape[1]))
            slots = slots + self.mlp(self.norm_mlp(slots))
        return slots, attention.mT
