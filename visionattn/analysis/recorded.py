"""Recorded attention weights of one layer, by query: of all tokens, of Swin's windows, of this library's operators.

Shapes: B images, h heads, E prefix tokens, N tokens; a map of H × W keys.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from visionattn.layers.halo_attention import HaloAttention2d
from visionattn.layers.mixers.packed import PackedAttention2d
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d
from visionattn_kernels import Window

Query = tuple[int, int]
"""Row and column of a query on the map of queries."""


class RecordedAttention(ABC):
    """Attention weights of one layer in one forward pass.

    Attributes:
        size: Height and width of the map of keys.
        stride: Distance of neighbouring queries on the map of keys, per axis.
    """

    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)

    @abstractmethod
    def row(self, query: Query) -> Tensor:
        """Return the weights of one query for each key, `[B, h, H, W]`, 0 beyond its window.

        They sum to 1 with the weights of prefix tokens, and of positions beyond the map, where a network has them.
        """

    @abstractmethod
    def visible(self, query: Query) -> Tensor:
        """Return whether each key lies in the query's window, `[H, W]`, bool."""

    def query_at(self, x: float, y: float) -> Query:
        """Return the query nearest to a point, given in shares of width and height from the upper left corner."""
        counts = [-(-length // step) for length, step in zip(self.size, self.stride, strict=True)]
        rows, columns = (min(int(share * count), count - 1) for share, count in zip((y, x), counts, strict=True))
        return rows, columns


@dataclass
class TokenAttention(RecordedAttention):
    """Attention of all tokens to all, prefix tokens first.

    Attributes:
        weights: `[B, h, N, N]`, rows are queries.
        num_prefix_tokens: E.
        size: Rows and columns of patches.
    """

    weights: Tensor
    num_prefix_tokens: int
    size: tuple[int, int]

    def row(self, query: Query) -> Tensor:
        """Return the weights of a patch for each patch."""
        return self.token_row(self.num_prefix_tokens + query[0] * self.size[1] + query[1])

    def visible(self, query: Query) -> Tensor:
        """Return that each patch is seen."""
        return torch.ones(self.size, dtype=torch.bool, device=self.weights.device)

    def token_row(self, token: int) -> Tensor:
        """Return the weights of a token for each patch, `[B, h, H, W]`; token 0 is the class token, if there is one."""
        return self.weights[:, :, token, self.num_prefix_tokens :].unflatten(-1, self.size)


@dataclass
class ShiftedWindowAttention(RecordedAttention):
    """Attention in Swin's windows, which do not overlap.

    Attributes:
        weights: `[B * windows, h, n, n]` for windows of n keys.
        places: The key at each place of each window, `[windows, n]`; H * W for padding.
        mask: Whether a place sees another, `[windows, n, n]`, or None for all.
        size: Height and width of the map.
    """

    weights: Tensor
    places: Tensor
    mask: Tensor | None
    size: tuple[int, int]

    def row(self, query: Query) -> Tensor:
        """Return the weights of one query for each key."""
        window, place = self._find(query)
        weights = self.weights.unflatten(0, (-1, len(self.places)))[:, window, :, place]
        return self._lay_out(weights, window)

    def visible(self, query: Query) -> Tensor:
        """Return whether each key lies in the query's window, and in the same part of a window that wraps around."""
        window, place = self._find(query)
        seen = torch.ones_like(self.places[window], dtype=torch.bool)
        return self._lay_out(seen if self.mask is None else self.mask[window, place], window)

    def _find(self, query: Query) -> tuple[int, int]:
        window, place = (self.places == query[0] * self.size[1] + query[1]).nonzero()[0].tolist()
        return window, place

    def _lay_out(self, values: Tensor, window: int) -> Tensor:
        """Place the values of a window's places [..., n] on the map [..., H, W]."""
        flat = values.new_zeros(*values.shape[:-1], self.size[0] * self.size[1] + 1)
        flat[..., self.places[window]] = values
        return flat[..., :-1].unflatten(-1, self.size)


@dataclass
class WindowAttention(RecordedAttention):
    """Attention of this library's operators on maps, whose weights no network keeps.

    The output of attention, `out = sum over keys of w v`, is linear in the values v. So the weights of a query are the
    gradient of one channel of its output with respect to this channel of the values, of the operator itself. The weight
    of a pooled key is divided among the positions that it is pooled from.

    Attributes:
        module: The layer.
        inputs: What it got.
        size: Height and width of the map of keys.
        stride: Distance of neighbouring queries.
    """

    module: NeighborhoodAttention2d | PackedAttention2d | HaloAttention2d
    inputs: Tensor
    size: tuple[int, int]
    stride: tuple[int, int]

    def row(self, query: Query) -> Tensor:
        """Return the weights of one query for each key."""
        with torch.inference_mode(False):
            with torch.no_grad():
                values, attend = self.open()
            values.requires_grad_()
            with torch.enable_grad():
                out = attend(values)[:, query[0], query[1], :, 0].sum()
                (weights,) = torch.autograd.grad(out, values)
        return weights[:, : self.size[0], : self.size[1], :, 0].movedim(-1, 1)

    def open(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the values `[B, H, W, h, c]`, and attention `[B, Q_h, Q_w, h, c]` as a function of them alone."""
        module, inputs = self.module, self.inputs.detach().clone()  # outside of inference mode, for a gradient
        heads = module.num_heads
        if not isinstance(module, HaloAttention2d):
            packed = module.project(inputs)
            rest, values = packed.tensor_split([packed.shape[-1] - inputs.shape[-1]], -1)
            values = values.unflatten(-1, (heads, -1))

            def attend(values: Tensor) -> Tensor:
                return module.attend(torch.cat([rest, values.flatten(3)], -1))
        else:
            queries, packed = module.project(inputs)
            keys, values = packed.unflatten(-1, (heads, -1)).tensor_split([queries.shape[-1] // heads], -1)

            def attend(values: Tensor) -> Tensor:
                return module.attend(queries, torch.cat([keys, values], -1).flatten(3))

        return values.clone(), lambda values: attend(values).unflatten(-1, (heads, -1))

    def visible(self, query: Query) -> Tensor:
        """Return whether each key lies in the query's window."""
        windows, size = self._windows()
        seen = torch.zeros(size, dtype=torch.bool)
        for window in windows:
            rows, columns = (
                axis.visible(length, torch.tensor([place]))[0][0, axis.margin(length) :][:length]
                for axis, length, place in zip(window.fit(size).axes, size, query, strict=True)
            )
            seen |= rows[:, None] & columns
        return seen[: self.size[0], : self.size[1]]

    def _windows(self) -> tuple[list[Window], tuple[int, int]]:
        """Return the rules of the windows, whose union a query sees, and the size of the map that they apply to."""
        if isinstance(self.module, HaloAttention2d):
            return [self.module.window()], self.size
        if isinstance(self.module, PackedAttention2d):
            return self.module.windows(self.size), self.size
        with torch.no_grad():
            _, height, width, _ = self.module.project(self.inputs[:1]).shape
        return [self.module.window((height, width))], (height, width)
