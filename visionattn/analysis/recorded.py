"""Recorded attention weights of one layer, by query: of all tokens, of Swin's windows, of this library's operators.

Shapes: B images, h heads, E prefix tokens, N tokens; Q queries; a map of H × W keys.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, Self

import torch
from torch import Tensor

from visionattn.layers.halo_attention import HaloAttention2d
from visionattn.layers.mixers.packed import PackedAttention2d
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d
from visionattn_kernels import Window

Query = tuple[int, int]
"""Row and column of a query on the map of queries."""

ALL = slice(None)


class RecordedAttention(ABC):
    """Attention weights of one layer in one forward pass.

    Attributes:
        size: Height and width of the map of keys.
        stride: Distance of neighbouring queries on the map of keys, per axis.
    """

    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)

    @abstractmethod
    def rows(self, queries: Sequence[Query]) -> Tensor:
        """Return the weights of queries for each key, `[B, h, Q, H, W]`, 0 beyond their windows.

        They sum to 1 with the weights of prefix tokens, and of positions beyond the map, where a network has them.
        """

    @abstractmethod
    def received(self) -> Tensor:
        """Return the sum of the weights that each key has from all queries of the map, `[B, h, H, W]`.

        Prefix tokens are no queries of the map.
        """

    @abstractmethod
    def seen(self, queries: Sequence[Query]) -> Tensor:
        """Return whether keys lie in the windows of queries, `[Q, H, W]`, bool."""

    @abstractmethod
    def prefix(self, queries: Sequence[Query]) -> Tensor:
        """Return the weights of queries for each prefix token, `[B, h, Q, E]`; E is 0 for maps."""

    @abstractmethod
    def split(self, count: int) -> Iterator[Self]:
        """Yield the same for `count` images after the other."""

    def row(self, query: Query) -> Tensor:
        """Return the weights of one query for each key, `[B, h, H, W]`; see `rows`."""
        return self.rows([query])[:, :, 0]

    def visible(self, query: Query) -> Tensor:
        """Return whether each key lies in the query's window, `[H, W]`, bool."""
        return self.seen([query])[0]

    @property
    def num_queries(self) -> tuple[int, int]:
        """Height and width of the map of queries."""
        height, width = (-(-length // step) for length, step in zip(self.size, self.stride, strict=True))
        return height, width

    @property
    def queries(self) -> list[Query]:
        """All queries of the map, row by row."""
        height, width = self.num_queries
        return list(product(range(height), range(width)))

    def keys_of(self, queries: Sequence[Query]) -> Tensor:
        """Return the numbers of the keys at the positions of queries, counted row by row, `[Q]` on the CPU."""
        return torch.tensor([row * self.stride[0] * self.size[1] + column * self.stride[1] for row, column in queries])

    def query_at(self, x: float, y: float) -> Query:
        """Return the query nearest to a point, given in shares of width and height from the upper left corner."""
        shares = zip((y, x), self.num_queries, strict=True)
        row, column = (min(int(share * count), count - 1) for share, count in shares)
        return row, column


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

    def rows(self, queries: Sequence[Query]) -> Tensor:
        """Return the weights of patches for each patch."""
        return self._of_patches(queries, slice(self.num_prefix_tokens, None)).unflatten(-1, self.size)

    def prefix(self, queries: Sequence[Query]) -> Tensor:
        """Return the weights of patches for each prefix token."""
        return self._of_patches(queries, slice(self.num_prefix_tokens))

    def received(self) -> Tensor:
        """Return the sum of the weights that each patch has from all patches."""
        patches = self.weights[:, :, self.num_prefix_tokens :, self.num_prefix_tokens :]
        return patches.sum(2).unflatten(-1, self.size)

    def seen(self, queries: Sequence[Query]) -> Tensor:
        """Return that each patch is seen."""
        return torch.ones(len(queries), *self.size, dtype=torch.bool, device=self.weights.device)

    def split(self, count: int) -> Iterator[Self]:
        """Yield the same for some images after the other."""
        for weights in self.weights.split(count):
            yield replace(self, weights=weights)

    def token_row(self, token: int) -> Tensor:
        """Return the weights of a token for each patch, `[B, h, H, W]`; token 0 is the class token, if there is one."""
        return self.weights[:, :, token, self.num_prefix_tokens :].unflatten(-1, self.size)

    def _of_patches(self, queries: Sequence[Query], keys: slice) -> Tensor:
        tokens = self.num_prefix_tokens + self.keys_of(queries)
        return self.weights[..., keys].index_select(2, tokens.to(self.weights.device))


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

    def rows(self, queries: Sequence[Query]) -> Tensor:
        """Return the weights of queries for each key."""
        windows, places = self._find(queries)
        weights = self.weights.unflatten(0, (-1, len(self.places)))[:, windows, :, places]  # [Q, B, h, n]
        return self._lay_out(weights.permute(1, 2, 0, 3), self.places[windows])

    def received(self) -> Tensor:
        """Return the sum of the weights that each key has from all queries, without those of padding."""
        weights = self.weights.unflatten(0, (-1, len(self.places)))
        on_map = self.places < self.size[0] * self.size[1]
        sums = torch.einsum("bwhqk,wq->bhwk", weights, on_map.to(weights.dtype))
        return self._lay_out(sums.flatten(2), self.places.flatten())

    def prefix(self, queries: Sequence[Query]) -> Tensor:
        """Return no weights."""
        count, heads, _, _ = self.weights.shape
        return self.weights.new_zeros(count // len(self.places), heads, len(queries), 0)

    def seen(self, queries: Sequence[Query]) -> Tensor:
        """Return whether keys lie in the windows of queries, and in the same part of a window that wraps around."""
        windows, places = self._find(queries)
        keys = self.places[windows]
        seen = torch.ones_like(keys, dtype=torch.bool) if self.mask is None else self.mask[windows, places]
        return self._lay_out(seen, keys)

    def split(self, count: int) -> Iterator[Self]:
        """Yield the same for some images after the other."""
        for weights in self.weights.split(count * len(self.places)):
            yield replace(self, weights=weights)

    def _find(self, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """Return the numbers of windows, and of the places in them, that queries have."""
        number = torch.empty(self.size[0] * self.size[1] + 1, dtype=torch.int64)
        number[self.places.flatten().cpu()] = torch.arange(self.places.numel())
        found = number[self.keys_of(queries)].to(self.places.device)
        return found // self.places.shape[1], found % self.places.shape[1]

    def _lay_out(self, values: Tensor, keys: Tensor) -> Tensor:
        """Place the values `[..., n]` of keys on the map `[..., H, W]`, 0 elsewhere."""
        flat = values.new_zeros(*values.shape[:-1], self.size[0] * self.size[1] + 1)
        return flat.scatter(-1, keys.expand_as(values), values)[..., :-1].unflatten(-1, self.size)


@dataclass
class WindowAttention(RecordedAttention):
    """Attention of this library's operators on maps, whose weights no network keeps.

    The output of attention, `out = sum over keys of w v`, is linear in the values v. So the weights of a query are the
    gradient of one channel of its output with respect to this channel of the values, of the operator itself. They are
    the same for each channel of a head, so one backward pass gives as many queries as a head has channels of values,
    and more if windows do not overlap. The weight of a pooled key is divided among the positions it is pooled from.

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

    def rows(self, queries: Sequence[Query]) -> Tensor:
        """Return the weights of queries for each key."""
        seen, groups = self._look_up(queries)
        rows, columns = zip(*queries, strict=True)
        found = self.inputs.new_empty(len(self.inputs), self.module.num_heads, len(queries), *self.size)
        passes, channels = groups // self._channels, groups % self._channels
        chosen = [(passes == number).nonzero()[:, 0].tolist() for number in range(int(passes.max()) + 1)]
        places = [([rows[i] for i in part], [columns[i] for i in part], channels[part]) for part in chosen]
        gradients = self._gradients([(ALL, *place, ALL, channel) for *place, channel in places])
        for part, gradient in zip(chosen, gradients, strict=True):
            found[:, :, part] = gradient.permute(0, 3, 4, 1, 2)[:, :, channels[part]]
        return found * seen.to(found.device)

    def received(self) -> Tensor:
        """Return the sum of the weights that each key has from all queries."""
        height, width = self.num_queries
        (sums,) = self._gradients([(ALL, slice(height), slice(width), ALL, 0)])
        return sums[..., 0].movedim(-1, 1)

    def prefix(self, queries: Sequence[Query]) -> Tensor:
        """Return no weights."""
        return self.inputs.new_zeros(len(self.inputs), self.module.num_heads, len(queries), 0)

    def seen(self, queries: Sequence[Query]) -> Tensor:
        """Return whether keys lie in the windows of queries."""
        return self._look_up(queries)[0].clone()

    def split(self, count: int) -> Iterator[Self]:
        """Yield the same for some images after the other."""
        for inputs in self.inputs.split(count):
            yield replace(self, inputs=inputs)

    @property
    def _channels(self) -> int:
        """Number of channels of a head's values."""
        dim = self.inputs.shape[-1]
        if isinstance(self.module, HaloAttention2d):
            dim = self.module.kv.out_channels - self.module.q.out_channels
        return dim // self.module.num_heads

    def _gradients(self, places: Sequence[tuple[Any, ...]]) -> list[Tensor]:
        """Return gradients `[B, H, W, h, c]` by the values, of sums of the outputs `[B, Q_h, Q_w, h, c]` at places."""
        with torch.inference_mode(False), torch.enable_grad():
            with torch.no_grad():
                values, attend = self.open()
            out = attend(values.requires_grad_())
            found: list[Tensor] = []
            for place in places:
                chosen = torch.zeros_like(out)
                chosen[place] = 1
                found += torch.autograd.grad(out, values, chosen, retain_graph=True)
        return [gradient[:, : self.size[0], : self.size[1]] for gradient in found]

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

    def _look_up(self, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """Return which keys queries see, `[Q, H, W]`, and their groups; these tensors are shared, never change them."""
        windows, size = self._windows()
        seen, groups = _see(tuple(windows), size, tuple(queries))
        return seen[:, : self.size[0], : self.size[1]], groups

    def _windows(self) -> tuple[list[Window], tuple[int, int]]:
        """Return the rules of the windows, whose union a query sees, and the size of the map that they apply to."""
        if isinstance(self.module, HaloAttention2d):
            return [self.module.window()], self.size
        if isinstance(self.module, PackedAttention2d):
            return self.module.windows(self.size), self.size
        if not self.module.legacy_pad:
            return [self.module.window(self.size)], self.size
        with torch.no_grad():
            _, height, width, _ = self.module.project(self.inputs[:1]).shape
        return [self.module.window((height, width))], (height, width)


@lru_cache(maxsize=64)
def _see(windows: tuple[Window, ...], size: tuple[int, int], queries: tuple[Query, ...]) -> tuple[Tensor, Tensor]:
    """Return whether queries see keys, `[Q, H, W]`, and a group for each query, whose windows do not overlap, `[Q]`."""
    places = torch.tensor(queries)
    seen = torch.zeros(len(queries), *size, dtype=torch.bool)
    for window in windows:
        rows, columns = (
            axis.visible(length, places[:, number])[0][:, axis.margin(length) :][:, :length]
            for number, (axis, length) in enumerate(zip(window.fit(size).axes, size, strict=True))
        )
        seen |= rows[:, :, None] & columns[:, None, :]
    overlap = seen.flatten(1).float()
    overlap = overlap @ overlap.T > 0
    groups = torch.full((len(queries),), len(queries))
    for query, others in enumerate(overlap):
        free = torch.ones(query + 1, dtype=torch.bool)
        free[groups[:query][others[:query]]] = False
        groups[query] = free.nonzero()[0, 0]
    return seen, groups
