"""Three bilinear products over windows: what unfused attention is made of, each the gradient of the others.

With `key(i, e)` the e-th key that query i sees, its window read row by row:

    qk(q, k)[i, e] = sum over c of          q[i, c] * k[key(i, e), c]
    av(a, v)[i, c] = sum over e of          a[i, e] * v[key(i, e), c]
    atx(a, x)[m, c] = sum over key(i, e) = m of  a[i, e] * x[i, c]

A slot that holds no key of the map counts as 0 in the first and is ignored in the others. The gradient of each product
is made of the other two, so all are differentiable to any order. They are torch operators, opaque to `torch.compile`.

A rectangle of neighbouring queries is gathered beside the union of their windows and multiplied with it; scores are
then moved between that tile's columns and the slots of each window. Tiles are taken a few megabytes of scores at a
time. Sums over the tiles that share a key are looked up per key, so results do not depend on the order of threads.

Shape letters: E slots of a window (k_h * k_w), P keys of the map, T tiles; of one chunk h (batch, head) pairs and t
tiles; q queries and k key columns of a tile, c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels.device_tables import device_tables
from visionattn_kernels.operators import Call, accumulation_dtype, define_operator
from visionattn_kernels.selected import sum_seen, until_clean
from visionattn_kernels.window import TiledMap, TilePlan, Window, choose_tile, plan_tiles
from visionattn_kernels.window.tiles import slices

Size = tuple[int, int]
Product = Callable[[Tensor, Tensor, Window, Size], Tensor]


@dataclass(frozen=True)
class _Layout:
    """Columns of a tile that hold the slots of each query's window.

    Attributes:
        plan: The tiles.
        first: `[C, q]` column of slot 0.
        rows, columns: `[C, q]` extent of each window: slots beyond it do not exist.
        step: `[E]` columns from slot 0 to each slot.
        complete: Whether every slot of every window exists.
    """

    plan: TilePlan
    first: Tensor
    rows: Tensor
    columns: Tensor
    step: Tensor
    complete: bool


@device_tables
def _lay_out(window: Window, size: Size, device: torch.device) -> _Layout:
    plan = plan_tiles(window, size, choose_tile(window, size), device)
    visible = plan.visible.unflatten(-1, plan.size[1])
    see_h, see_w = visible.any(-1).int(), visible.any(-2).int()  # [C, q, k_h], [C, q, k_w]
    rows, columns = see_h.sum(-1), see_w.sum(-1)
    slot_h, slot_w = (torch.arange(x, device=device) for x in window.kernel_size)
    width = plan.size[1][1]
    return _Layout(
        plan=plan,
        first=see_h.argmax(-1) * width + see_w.argmax(-1),
        rows=rows,
        columns=columns,
        step=(slot_h[:, None] * width + slot_w).flatten(),
        complete=bool((rows * columns == window.kernel_size[0] * window.kernel_size[1]).all()),
    )


@dataclass(frozen=True)
class _Chunk:
    """Some tiles of some heads."""

    heads: slice
    tiles: slice
    query: Tensor  # [h, t, q] rows of a flattened query map
    key: Tensor  # [h, t, k] rows of a flattened key map
    column: Tensor  # [h, t, q, E] column of each slot; that of a slot that does not exist is k


class _Tiles(TiledMap):
    """Tiles of a map, a chunk at a time, with the slots of windows."""

    def __init__(self, window: Window, size: Size, like: Tensor) -> None:
        self.layout = _lay_out(window, size, like.device)
        # Tensor cores add up half precision in float32; on a CPU that takes a product in float32.
        dtype = like.dtype if like.is_cuda else accumulation_dtype(like.dtype)
        super().__init__(self.layout.plan, size, like, dtype)
        self.kernel_width = window.kernel_size[1]

    def chunks(self, heads: slice | None = None) -> Iterator[_Chunk]:
        """Iterate over all tiles of some `batch * heads`; by default of all."""
        heads = heads or slice(0, self.num_heads)
        fit = max(1, self.SCORES_PER_CHUNK // (self.num_queries * self.num_keys))
        for tiles in slices(0, self.num_tiles, fit):
            column = self._columns(tiles)
            for some in slices(heads.start, heads.stop, fit // self.num_tiles):
                head = torch.arange(some.start, some.stop, device=column.device)[:, None, None]
                query, key = self.query_rows(head, tiles), self.key_rows(head, tiles)
                yield _Chunk(some, tiles, query, key, column.expand(len(head), -1, -1, -1))

    def _columns(self, tiles: slice) -> Tensor:
        layout, pattern = self.layout, self.plan.pattern[tiles]
        column = layout.first[pattern][..., None] + layout.step
        if not layout.complete:
            slot = torch.arange(len(layout.step), device=column.device)
            row, rest = slot // self.kernel_width, slot % self.kernel_width
            exists = (row < layout.rows[pattern][..., None]) & (rest < layout.columns[pattern][..., None])
            column = column.masked_fill_(~exists, self.num_keys)
        return column

    def at_queries(self, x: Tensor, chunk: _Chunk) -> Tensor:
        """Gather rows of a query map or of its windows, `[h, t, q, c]`."""
        return F.embedding(chunk.query, x.reshape(-1, x.shape[-1])).to(self.dtype)

    def at_keys(self, x: Tensor, chunk: _Chunk) -> Tensor:
        """Gather rows of a key map, `[h, t, k, c]`; zero beyond its border."""
        return self.gather_keys(chunk.key, x.reshape(-1, x.shape[-1]), chunk.tiles)

    def to_slots(self, scores: Tensor, chunk: _Chunk) -> Tensor:
        """Move from tile columns `[h, t, q, k]` to window slots `[h, t, q, E]`."""
        if self.layout.complete:
            return scores.gather(-1, chunk.column)
        return F.pad(scores, (0, 1)).gather(-1, chunk.column)

    def to_columns(self, slots: Tensor, chunk: _Chunk) -> Tensor:
        """Move from window slots `[h, t, q, E]` to tile columns `[h, t, q, k]`, zero where a query sees no key."""
        columns = slots.new_zeros(*slots.shape[:-1], self.num_keys + (not self.layout.complete))
        return columns.scatter_(-1, chunk.column, slots)[..., : self.num_keys]

    def sums(self, weights: Tensor, rows: Tensor, chunk: _Chunk, by_key: bool = False) -> Tensor:
        """Compute `weights @ rows` over what is seen: of the keys of each query, or of the queries of each key."""

        def compute(selects: bool) -> tuple[Tensor]:
            if not selects:
                return (weights @ rows,)
            seen = self.plan.visible[self.plan.pattern[chunk.tiles]]
            return (sum_seen(weights, rows, seen.mT if by_key else seen),)

        return until_clean(compute, rows.device)[0]


def _run_qk(q: Tensor, k: Tensor, window: Window, size: Size) -> Tensor:
    tiles = _Tiles(window, size, k)
    out = q.new_empty(*q.shape[:-1], len(tiles.layout.step))
    rows = out.view(-1, out.shape[-1]) if out.numel() else out
    for chunk in tiles.chunks():
        slots = tiles.to_slots(tiles.at_queries(q, chunk) @ tiles.at_keys(k, chunk).mT, chunk)
        rows.index_copy_(0, chunk.query.flatten(), slots.flatten(0, 2).to(out.dtype))
    return out


def _run_av(a: Tensor, v: Tensor, window: Window, size: Size) -> Tensor:
    tiles = _Tiles(window, size, v)
    out = v.new_empty(*a.shape[:-1], v.shape[-1])
    rows = out.view(-1, out.shape[-1]) if out.numel() else out
    for chunk in tiles.chunks():
        columns = tiles.to_columns(tiles.at_queries(a, chunk), chunk)
        sums = tiles.sums(columns, tiles.at_keys(v, chunk), chunk)
        rows.index_copy_(0, chunk.query.flatten(), sums.flatten(0, 2).to(out.dtype))
    return out


def _run_atx(a: Tensor, x: Tensor, window: Window, size: Size) -> Tensor:
    tiles, channels = _Tiles(window, size, x), x.shape[-1]
    plan = tiles.plan
    out = x.new_empty(tiles.num_heads, tiles.num_positions, channels)
    for heads in tiles.group_heads(channels):
        count = heads.stop - heads.start
        parts = out.new_empty(count, *plan.key.shape, channels, dtype=accumulation_dtype(x.dtype))
        for chunk in tiles.chunks(heads):
            rows = tiles.at_queries(x, chunk)
            if plan.padding is not None:
                rows.masked_fill_(plan.padding[chunk.tiles][..., None], 0)
            columns = tiles.to_columns(tiles.at_queries(a, chunk), chunk)
            here = slice(chunk.heads.start - heads.start, chunk.heads.stop - heads.start), chunk.tiles
            parts[here] = tiles.sums(columns.mT, rows, chunk, by_key=True)
        out[heads] = tiles.sum_keys(parts.flatten(0, 1))
    return out.view(tiles.batch, tiles.heads, *size, channels).permute(0, 2, 3, 1, 4).contiguous()


def _define(
    name: str, run: Product, fake: Product, grad_first: Callable[..., Tensor], grad_second: Callable[..., Tensor]
) -> Product:
    """Define `visionattn::window_NAME` and return it as a function.

    Args:
        name: Of the product.
        run: Computes it.
        fake: Makes an empty tensor of its shape.
        grad_first: The gradient of the first tensor, from that of the result, both tensors, window and size.
        grad_second: The gradient of the second tensor.
    """

    def compute(a: Tensor, b: Tensor, window: Sequence[int], size: Sequence[int]) -> Tensor:
        return run(a, b, *_geometry(window, size))

    def backward(call: Call, grad: Tensor) -> list[Tensor | None]:
        arguments = (grad, *call.tensors, *_geometry(*call.settings))
        return [f(*arguments) if x else None for f, x in zip((grad_first, grad_second), call.needed, strict=True)]

    def count_flops(a: Any, b: Any, window: Sequence[int], size: Sequence[int], **kwargs: Any) -> int:
        rule, (height, width) = _geometry(window, size)
        return int(2 * b[0] * b[3] * b[4] * rule.count_pairs((height, width)))

    operator = define_operator(
        f"window_{name}",
        "(Tensor a, Tensor b, int[] w, SymInt[] size) -> Tensor",
        compute,
        fake=lambda a, b, window, size: fake(a, b, *_geometry(window, size)),
        backward=backward,
        flops=count_flops,
        vmap=_map_batch,
    )

    def product(a: Tensor, b: Tensor, window: Window, size: Size) -> Tensor:
        out: Tensor = operator(a, b, window.to_ints(), size)
        return out

    return product


def _map_batch(
    operator: Any, info: Any, in_dims: tuple[Any, ...], a: Tensor, b: Tensor, *where: Any
) -> tuple[Tensor, int]:
    """Run an operator once, the mapped dimension being a part of the batch."""
    count = info.batch_size
    a, b = (
        x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((a, b), in_dims[:2], strict=True)
    )
    return operator(a.flatten(0, 1), b.flatten(0, 1), *where).unflatten(0, (count, a.shape[1])), 0


def _geometry(window: Sequence[int], size: Sequence[int]) -> tuple[Window, Size]:
    return Window.from_ints(window), (size[0], size[1])


qk: Product = _define(
    "qk",
    _run_qk,
    lambda q, k, window, size: q.new_empty(*q.shape[:-1], window.kernel_size[0] * window.kernel_size[1]),
    lambda grad, q, k, *where: av(grad, k, *where),
    lambda grad, q, k, *where: atx(grad, q, *where),
)
"""`[B, Q_h, Q_w, heads, c]` and `[B, H, W, heads, c]` to `[B, Q_h, Q_w, heads, E]`."""

av: Product = _define(
    "av",
    _run_av,
    lambda a, v, window, size: v.new_empty(*a.shape[:-1], v.shape[-1]),
    lambda grad, a, v, *where: qk(grad, v, *where),
    lambda grad, a, v, *where: atx(a, grad, *where),
)
"""`[B, Q_h, Q_w, heads, E]` and `[B, H, W, heads, c]` to `[B, Q_h, Q_w, heads, c]`."""

atx: Product = _define(
    "atx",
    _run_atx,
    lambda a, x, window, size: x.new_empty(x.shape[0], *size, *x.shape[3:]),
    lambda grad, a, x, *where: qk(x, grad, *where),
    lambda grad, a, x, *where: av(a, grad, *where),
)
"""`[B, Q_h, Q_w, heads, E]` and `[B, Q_h, Q_w, heads, c]` to `[B, H, W, heads, c]`."""
